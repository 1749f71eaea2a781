"""Environments of the peers: built once from the requirements beside this file, built anew when these change."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from tasks.errors import ParitybitError

__all__ = ["PEERS", "environment", "requirements_of", "run_in"]

PEERS = ("optimum", "openvino")

_HERE = Path(__file__).resolve().parent


def requirements_of(peer: str) -> Path:
    """The file that pins what a peer's environment holds."""
    return _HERE / f"{peer}.txt"


def environment(peer: str, folder: Path) -> Path:
    """The Python of a peer's environment, which is built where it is missing or of other requirements.

    Args:
        peer: one of `PEERS`.
        folder: holds the environments.

    Raises:
        ParitybitError: if the packages cannot be installed, with pip's last line.
    """
    wanted = hashlib.sha256(requirements_of(peer).read_bytes()).hexdigest()
    place = folder / peer
    ready, python = place / ".ready", place / "bin" / "python"
    if ready.is_file() and ready.read_text() == wanted:
        return python
    shutil.rmtree(place, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(place)], f"an environment for {peer}")
    options = ["--quiet", "--disable-pip-version-check", "-r", str(requirements_of(peer))]
    _run([str(python), "-m", "pip", "install", *options], f"packages of {peer}")
    ready.write_text(wanted)
    return python


def run_in(python: Path, script: str, *arguments: Path) -> None:
    """Runs a script of this folder by a peer's Python.

    Raises:
        ParitybitError: if it fails, with its last line.
    """
    _run([str(python), str(_HERE / script), *map(str, arguments)], script)


def _run(command: list[str], what: str) -> None:
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise ParitybitError(f"{what}: exit code {done.returncode}: {lines[-1] if lines else 'no message'}")
