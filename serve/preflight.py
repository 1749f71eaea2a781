"""A dry start in a process of its own: `python -m serve.preflight` says in one line why the service would not start.

BentoML's supervisor starts a worker that fails again and again. Asked before the first worker, the question has one
answer, and the supervisor's process stays free of the engine.
"""

import os
import subprocess
import sys
import tempfile

from serve.keys import read_keys
from serve.lookup import SOURCE_ROOT
from serve.settings import read_settings
from tasks.errors import ParitybitError

__all__ = ["preflight"]


def preflight() -> None:
    """Opens the engine in a child process, which ends again.

    Raises:
        ParitybitError: with the child's one line, if the service would not start; and if BentoML could not, which keeps
            its sockets among temporary files.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        raise ParitybitError(
            "no file can be written in TMPDIR or /tmp; is the disk full? The server needs one"
        ) from None
    search_path = [str(SOURCE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    child = subprocess.run(
        [sys.executable, "-m", "serve.preflight"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(search_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if child.returncode != 0:
        complaint = child.stderr.strip().splitlines() or [f"the engine's process ended with {child.returncode}"]
        raise ParitybitError(complaint[-1])


def main() -> int:
    """Entry point of the child: 0, or the error's line on standard error and its exit code."""
    from serve.engine import open_engine

    try:
        settings = read_settings()
        read_keys(settings)
        open_engine(settings)
    except ParitybitError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
