"""Services as processes of their own, each on a free loopback port; stopped with SIGTERM at the end."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import ParitybitError

__all__ = ["OURS", "RunningService", "running_service"]

OURS = "serve.service:ParitybitService"
"""What `bentoml serve` starts by that name in this source tree."""

_ROOT = Path(__file__).resolve().parents[1]
_READY_WITHIN_S = 60.0
_STOPPED_WITHIN_S = 15.0


@dataclass(slots=True)
class RunningService:
    """A `bentoml serve` that is ready.

    Attributes:
        address: without a path.
        process: id of BentoML's supervisor, whose children the workers are.
        ready_s: seconds from its start until `/readyz` said so.
        exit_code: of the stopped service; None while it runs.
    """

    address: str
    process: int
    ready_s: float
    exit_code: int | None = None


@contextmanager
def running_service(target: str, bundle: Path, log: Path, **settings: str) -> Iterator[RunningService]:
    """Starts a service of a bundle and waits until it is ready.

    Args:
        target: as `bentoml serve` takes it.
        bundle: goes to the service as PARITYBIT_BUNDLE.
        log: gets all that it writes.
        settings: further environment variables.

    Raises:
        ParitybitError: if it ends, or is not ready within a minute.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    begin = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "bentoml", "serve", target, "--host", "127.0.0.1", "--port", str(port)],
            cwd=_ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(bundle, settings),
        )
    service = RunningService(f"http://127.0.0.1:{port}", process.pid, 0.0)
    try:
        _wait_until_ready(f"{service.address}/readyz", process, log)
        service.ready_s = time.monotonic() - begin
        yield service
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            service.exit_code = process.wait(_STOPPED_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            service.exit_code = process.wait()


def _environment(bundle: Path, settings: Mapping[str, str]) -> dict[str, str]:
    return {**os.environ, "BENTOML_DO_NOT_TRACK": "True", **settings, "PARITYBIT_BUNDLE": str(bundle.resolve())}


def _wait_until_ready(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _READY_WITHIN_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ParitybitError(f"the service ended with exit code {process.returncode}; see {log}")
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise ParitybitError(f"the service was not ready within {_READY_WITHIN_S:.0f} s; see {log}")
