"""What goes wrong around a service: processes that die, ports that are taken, clients that mean no good."""

import itertools
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest

from tests.serve.conftest import ROOT, Server, environment, free_port, serving, wait_until_ready

pytestmark = pytest.mark.thorough

BODY = b'{"inputs": "my card"}'
HEAD = f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()


@pytest.fixture
def alone(tiny_bundle: Path, tmp_path: Path) -> Iterator[Server]:
    """A server that a test may harm."""
    with serving(tmp_path / "log", PARITYBIT_BUNDLE=str(tiny_bundle)) as server:
        yield server


def connected(server: Server) -> socket.socket:
    url = httpx.URL(server.url)
    return socket.create_connection((url.host, url.port or 0), timeout=10)


def worker_of(server: Server) -> int:
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    commands = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
    (worker,) = [child for child, command in commands.items() if b"worker" in command]
    return worker


def most_memory(pid: int) -> int:
    """Bytes that a process has had at most."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def seconds_of_an_answer(server: Server) -> float:
    begin = time.monotonic()
    assert server.post("/predict", BODY).status_code == 200
    return time.monotonic() - begin


def test_a_killed_worker_is_replaced_and_who_waited_for_it_gets_an_error(alone: Server) -> None:
    with connected(alone) as waiting:
        waiting.sendall(HEAD + BODY[:9])
        time.sleep(1)
        killed = worker_of(alone)
        os.kill(killed, signal.SIGKILL)
        with suppress(ConnectionResetError):
            assert waiting.recv(100) == b"", "the connection ends"
    wait_until_ready(alone)
    assert worker_of(alone) != killed
    assert seconds_of_an_answer(alone) < 5


def test_sigterm_under_load_loses_no_request_that_was_taken(alone: Server) -> None:
    """Those that still stand in the socket's queue when it closes were not taken; a balancer asks another server."""
    outcomes: dict[str, str] = {}
    ended = threading.Event()

    def ask(name: int) -> None:
        with httpx.Client(timeout=20) as client:
            for number in itertools.count():
                if ended.is_set():
                    return
                request_id = f"load-{name}-{number}"
                try:
                    response = client.post(alone.url + "/predict", content=BODY, headers={"X-Request-Id": request_id})
                    outcomes[request_id] = str(response.status_code)
                except httpx.TransportError as error:
                    outcomes[request_id] = type(error).__name__
                    ended.wait(0.02)

    threads = [threading.Thread(target=ask, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    alone.process.terminate()
    assert alone.process.wait(30) == 0
    ended.set()
    for thread in threads:
        thread.join()
    lines = [json.loads(line) for line in alone.log.read_text().splitlines() if '"request_id": "load-' in line]
    taken = {line["request_id"]: str(line["status"]) for line in lines}
    assert Counter(taken.values())["200"] > 5
    assert {one: outcomes[one] for one in taken} == taken
    assert {outcomes[one] for one in outcomes.keys() - taken.keys()} <= {
        "ConnectError",
        "ReadError",
        "RemoteProtocolError",
    }


def test_a_port_that_is_taken_is_named(alone: Server, tiny_bundle: Path, tmp_path: Path) -> None:
    port = str(httpx.URL(alone.url).port)
    command = [sys.executable, "-m", "bentoml", "serve", "--host", "127.0.0.1", "--port", port]
    settings = environment(PARITYBIT_BUNDLE=str(tiny_bundle), BENTOML_HOME=str(tmp_path / "bentoml"))
    second = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, check=False, timeout=60)
    assert second.returncode == 1
    assert f"Could not bind 127.0.0.1:{port}" in second.stdout + second.stderr
    assert seconds_of_an_answer(alone) < 5


def test_a_client_of_one_byte_a_second_holds_up_nobody(alone: Server) -> None:
    with connected(alone) as slow:
        slow.sendall(HEAD)
        for place in range(4):
            slow.sendall(BODY[place : place + 1])
            assert seconds_of_an_answer(alone) < 5
            time.sleep(1)
        slow.sendall(BODY[4:])
        assert slow.recv(100).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("part", [b"A: b\r\n", b"a" * 1000])
def test_headers_without_end_are_cut_off(alone: Server, part: bytes) -> None:
    before = most_memory(worker_of(alone))
    sent = 0
    with connected(alone) as endless:
        endless.sendall(b"GET /model HTTP/1.1\r\nHost: a\r\nX: ")
        with suppress(ConnectionResetError, BrokenPipeError):
            while sent < 50_000_000:
                endless.sendall(part * 100)
                sent += 100 * len(part)
    assert sent < 10_000_000, "what the socket's buffers hold"
    assert most_memory(worker_of(alone)) - before < 20_000_000
    assert seconds_of_an_answer(alone) < 5


def test_ten_thousand_idle_connections_hold_up_nobody(alone: Server) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= hard < 11_000:
        pytest.skip(f"only {hard} open files are allowed here")
    if 0 <= soft < 11_000:
        resource.setrlimit(resource.RLIMIT_NOFILE, (11_000, hard))
        resource.prlimit(worker_of(alone), resource.RLIMIT_NOFILE, (11_000, hard))
    try:
        with ExitStack() as idle:
            for _ in range(10_000):
                idle.enter_context(connected(alone))
            assert seconds_of_an_answer(alone) < 5
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert seconds_of_an_answer(alone) < 5


@pytest.mark.parametrize("length", ["told", "untold"])
def test_a_body_of_100_megabytes_is_refused_and_not_kept(alone: Server, length: str) -> None:
    pieces, count = b" " * 65_536, 1_600
    headers = {"Content-Length": str(len(pieces) * count)} if length == "told" else {}
    seconds_of_an_answer(alone)
    before = most_memory(worker_of(alone))
    response = httpx.post(alone.url + "/predict", content=(pieces for _ in range(count)), headers=headers, timeout=60)
    assert response.status_code == 413
    assert "PARITYBIT_MAX_BODY_BYTES" in response.json()["error"]
    assert most_memory(worker_of(alone)) - before < 20e6


def test_a_disk_that_fills_up_costs_log_lines_and_no_answer(alone: Server) -> None:
    assert seconds_of_an_answer(alone) < 5
    worker, written = worker_of(alone), alone.log.stat().st_size
    for process in (worker, alone.process.pid):
        resource.prlimit(process, resource.RLIMIT_FSIZE, (written, written))
    answers = {alone.post("/predict", BODY).text for _ in range(20)}
    assert len(answers) == 1
    assert json.loads(answers.pop())["answers"]
    assert alone.log.stat().st_size == written, "there is no room for a line"
    assert worker_of(alone) == worker
    assert httpx.get(alone.url + "/readyz").status_code == 200
    alone.process.terminate()
    assert alone.process.wait(30) == 0


def test_a_full_disk_at_the_start_is_told_in_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    settings = environment(PARITYBIT_BUNDLE=str(tiny_bundle), BENTOML_HOME=str(tmp_path / "bentoml"))
    command = ["prlimit", "--fsize=0", sys.executable, "-m", "bentoml", "serve", "--port", str(free_port())]
    done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    (line,) = (done.stdout + done.stderr).strip().splitlines()
    assert "no file can be written in TMPDIR or /tmp; is the disk full?" in line
