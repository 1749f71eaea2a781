"""The bounded head, over a real socket and a bare uvicorn."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from functools import partial

import pytest
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http import auto

from serve.protocol import MAX_HEAD_BYTES, BoundedHttpToolsProtocol, use_bounded_protocol


async def app(scope: dict, receive: object, send: object) -> None:
    headers = [(b"content-length", b"0"), (b"x-seen", b"%d" % len(scope["headers"]))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})  # type: ignore[operator]
    await send({"type": "http.response.body"})  # type: ignore[operator]


async def turned_away(scope: dict, receive: object, send: object) -> None:
    headers = [(b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 429, "headers": headers})  # type: ignore[operator]
    await send({"type": "http.response.body"})  # type: ignore[operator]


def doorman(method: bytes, target: bytes) -> ASGIApp | None:
    return turned_away if (method, target) == (b"POST", b"/full?a=b") else None  # type: ignore[return-value]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    http = partial(BoundedHttpToolsProtocol, doorman=doorman)
    server = uvicorn.Server(
        uvicorn.Config(app, http=http, log_config=None, lifespan="off", port=0, host="127.0.0.1")  # type: ignore[arg-type]
    )
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    while not server.started:
        thread.join(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()


def answer(connection: socket.socket, *parts: bytes) -> bytes:
    for part in parts:
        connection.sendall(part)
    return connection.recv(1000)


def test_uvicorn_takes_it_where_nobody_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "AutoHTTPProtocol", auto.AutoHTTPProtocol)
    use_bounded_protocol(doorman)
    config = uvicorn.Config(app, log_config=None)
    config.load()
    assert isinstance(config.http_protocol_class, partial)
    assert config.http_protocol_class.func is BoundedHttpToolsProtocol


def test_whom_the_doorman_turns_away_the_application_does_not_see(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        for _ in range(3):
            head = b"POST /full?a=b HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n"
            assert answer(connection, head, b"x" * 100_000).startswith(b"HTTP/1.1 429"), (
                "the body is read and forgotten"
            )
            assert answer(connection, b"POST / HTTP/1.1\r\nHost: a\r\n\r\n").startswith(b"HTTP/1.1 200")


def test_a_head_of_the_usual_size_is_read_again_and_again(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        for _ in range(40):
            headers = b"".join(b"A%d: %s\r\n" % (number, b"b" * 90) for number in range(10))
            got = answer(connection, b"GET / HTTP/1.1\r\nHost: a\r\n", headers, b"\r\n")
            assert got.startswith(b"HTTP/1.1 200"), "each head has its own bound"
            assert b"x-seen: 11\r\n" in got


def test_a_body_has_no_bound_here(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        body = b"x" * (10 * MAX_HEAD_BYTES)
        head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
        assert answer(connection, head, body).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\nB: " + b"b" * MAX_HEAD_BYTES,
        b"GET / HTTP/1.1\r\nHost: a\r\nB: " + b"b" * MAX_HEAD_BYTES + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: bcdefgh\r\n" * MAX_HEAD_BYTES,
        b"GET /" + b"a" * 2 * MAX_HEAD_BYTES,
    ],
    ids=["one header that goes on", "one header", "many headers", "a path that goes on"],
)
def test_a_longer_one_is_a_400_and_the_end(port: int, head: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        got = b""
        try:
            got = answer(connection, head)
            while more := connection.recv(1000):
                got += more
        except ConnectionResetError:
            pass
        assert got.startswith(b"HTTP/1.1 400")
