"""Starting and not starting `bentoml serve`."""

import shutil
import signal
import socket
import time
from pathlib import Path

import httpx

from tests.serve.conftest import Server, serving
from tests.serve.test_engine import change_golden


def refusal(tmp_path: Path, **settings: str) -> str:
    """The whole output of a server that refuses to start."""
    with serving(tmp_path / "log", ready=False, **settings) as server:
        assert server.process.wait(30) == 1
    return (tmp_path / "log").read_text().strip()


def test_a_damaged_bundle_is_refused_in_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    (bundle / "tokenizer.json").write_text("{}")
    output = refusal(tmp_path, PARITYBIT_BUNDLE=str(bundle))
    assert f"{bundle}/tokenizer.json: changed: 2 bytes, expected" in output
    assert "\n" not in output


def test_a_golden_mismatch_is_refused_in_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    change_golden(bundle, -1.0)
    output = refusal(tmp_path, PARITYBIT_BUNDLE=str(bundle))
    assert "6 of 6 golden rows have another answer here than certified" in output
    assert "\n" not in output


def test_a_missing_bundle_and_bad_settings_are_refused_in_one_line(tmp_path: Path) -> None:
    assert "absent: not a bundle (manifest.json is missing)" in refusal(
        tmp_path, PARITYBIT_BUNDLE=str(tmp_path / "absent")
    )
    output = refusal(tmp_path, PARITYBIT_THREADS="many")
    assert "PARITYBIT_THREADS='many': Input should be a valid integer" in output
    assert "\n" not in output


def test_it_stops_on_sigterm_with_0_and_sends_no_usage_statistics(tiny_bundle: Path, tmp_path: Path) -> None:
    # with this variable BentoML logs what it would send
    debug = {"__BENTOML_DEBUG_USAGE": "true"}
    files = sorted(tiny_bundle.iterdir())
    with serving(tmp_path / "log", PARITYBIT_BUNDLE=str(tiny_bundle), **debug) as server:
        server.process.terminate()
        assert server.process.wait(20) == 0
    log = (tmp_path / "log").read_text()
    assert "serving tiny" in log
    assert "Tracking Payload" not in log
    assert sorted(tiny_bundle.iterdir()) == files


def half_asked(server: Server) -> tuple[socket.socket, bytes]:
    """A connection over which half a request has come, and the other half."""
    body = b'{"inputs": "my card"}'
    head = f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    one = socket.create_connection(("127.0.0.1", httpx.URL(server.url).port or 0), timeout=10)
    one.sendall(head + body[:9])
    return one, body[9:]


def test_a_request_that_sigterm_overtakes_gets_a_503_and_then_the_server_ends_with_0(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    with serving(tmp_path / "log", PARITYBIT_BUNDLE=str(tiny_bundle)) as server:
        taken, rest = half_asked(server)
        taken.sendall(rest)
        assert taken.recv(100).startswith(b"HTTP/1.1 200 ")
        late, rest = half_asked(server)
        time.sleep(0.2)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(1)
        assert server.process.poll() is None, "it waits for the request that has begun"
        late.sendall(rest)
        answer = late.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"the server is stopping" in answer
        assert server.process.wait(20) == 0
        taken.close()
        late.close()
