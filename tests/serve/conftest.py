"""Real servers of a small real bundle."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from bundle import Predictor
from tasks.catalogue import TASKS
from tests.bundles import write_bundle

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"PARITYBIT_MAX_TEXTS": "8", "PARITYBIT_MAX_TEXT_CHARS": "20000", "PARITYBIT_MAX_BODY_BYTES": "300000"}
"""Of the server that most tests share."""


@dataclass(frozen=True)
class Server:
    """A running `bentoml serve`."""

    url: str
    process: subprocess.Popen[str]
    log: Path

    def post(self, path: str, content: object) -> httpx.Response:
        """A POST of JSON, or of bytes as they are."""
        if isinstance(content, bytes):
            return httpx.post(self.url + path, content=content, timeout=20)
        return httpx.post(self.url + path, json=content, timeout=20)

    def logged(self, expected: str, seconds: float = 20) -> str:
        """The whole log once it holds a text: the line of a request is written after its answer is sent."""
        deadline = time.monotonic() + seconds
        while expected not in (log := self.log.read_text()):
            assert time.monotonic() < deadline, f"{expected} is not in the log:\n{log}"
            time.sleep(0.02)
        return log


def environment(**settings: str) -> dict[str, str]:
    """This process's environment without anybody's paritybit or telemetry settings, plus the given ones."""
    ours = ("PARITYBIT_", "BENTOML_", "ORT_DISABLE", "HF_HUB_DISABLE")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return clean | settings


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def serving(log: Path, *command: str, cwd: Path = ROOT, ready: bool = True, **settings: str) -> Iterator[Server]:
    """`bentoml serve` on a free port; stopped at the end if it still runs."""
    port = free_port()
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "bentoml", "serve", *command, "--host", "127.0.0.1", "--port", str(port)],
            cwd=cwd,
            env=environment(**{"BENTOML_HOME": str(log.parent / "bentoml"), **settings}),
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )
    server = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        if ready:
            wait_until_ready(server)
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(20)


def wait_until_ready(server: Server, seconds: float = 60) -> None:
    """Returns when `/readyz` says so; fails with the server's log when it ends or takes too long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            if httpx.get(server.url + "/readyz", timeout=10).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    pytest.fail(f"not ready, exit status {server.process.poll()}:\n{server.log.read_text()}")


@pytest.fixture(scope="session")
def server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the tiny bundle with small limits."""
    log = tmp_path_factory.mktemp("server") / "log"
    with serving(log, PARITYBIT_BUNDLE=str(tiny_bundle), **SETTINGS) as running:
        yield running


@dataclass(frozen=True)
class Served:
    """A bundle, opened here and behind a running server."""

    server: Server
    predictor: Predictor


@pytest.fixture(scope="session", params=sorted(TASKS.keys() - {"single_label"}))
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of a bundle of each other task in turn."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "bundle").mkdir()
    write_bundle(folder / "bundle", task=request.param)
    with serving(folder / "log", PARITYBIT_BUNDLE=str(folder / "bundle"), **SETTINGS) as running:
        yield Served(running, Predictor.load(folder / "bundle"))
