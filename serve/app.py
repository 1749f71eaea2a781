"""The HTTP endpoints as a Starlette application, which the BentoML service mounts.

An endpoint of BentoML's own takes two to three times as long per request and words its errors in its own way (a list,
or a count of problems with details); the mounted application answers one line, and adds about a millisecond.
"""

import asyncio
import json
import logging
import re
import signal
import sys
import time
import uuid
from collections.abc import Coroutine, Mapping, Sequence
from types import FrameType
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.engine import DeadlineError, Engine, EngineError, StoppingError
from serve.http import (
    HuggingFaceRequest,
    ModelResponse,
    PredictRequest,
    TooLargeError,
    check_limits,
    parse_request,
    read_inputs,
    read_timeout,
)
from serve.hugging_face import HUGGING_FACE_FORMS
from serve.openapi import openapi_document
from serve.page import page_route
from serve.queue import OverloadedError, Usage
from tasks import Answer, Input
from tasks.errors import InputError

__all__ = ["attach_engine", "build_app"]

_LOG = logging.getLogger("bentoml.paritybit")
_ACCESS_LOG = logging.getLogger("paritybit.access")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)
_GONE = 499
"""Status of a request whose client did not wait; nobody reads it but the log, in which proxies write it too."""

_REFUSALS: dict[type[Exception], tuple[int, str]] = {
    InputError: (400, "invalid"),
    TooLargeError: (413, "too_large"),
    OverloadedError: (429, "overloaded"),
    ClientDisconnect: (_GONE, "client_gone"),
    EngineError: (500, "engine"),
    StoppingError: (503, "stopping"),
    DeadlineError: (504, "deadline"),
}
"""Status and, in the metrics, reason."""

_T = TypeVar("_T")


def build_app() -> Starlette:
    """The application, without an engine yet; `/livez`, `/readyz` and `/metrics` are BentoML's."""
    return Starlette(
        routes=[
            Route("/predict", _predict, methods=["POST"]),
            Route("/", _hugging_face, methods=["POST"]),
            Route("/", _model, methods=["GET"]),
            Route("/model", _model, methods=["GET"]),
            Route("/docs.json", _docs, methods=["GET"]),
            page_route(),
        ],
        middleware=[Middleware(_AccessLog)],
        exception_handlers={HTTPException: _http_error, **dict.fromkeys(_REFUSALS, _refused)},
    )


def attach_engine(app: Starlette, engine: Engine) -> None:
    """Gives the application its engine and the documentation that belongs to it; it can answer from now on.

    From then on the access log is ours, and SIGTERM stops the taking of requests before the server drains.
    """
    app.state.engine = engine
    app.state.docs = openapi_document(engine.predictor)
    _open_access_log()
    _heed_sigterm(engine)


class _AccessLog:
    """Gives each request an id and writes a line of JSON about it, in which none of its text stands."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin = time.perf_counter()
        asked = Headers(scope=scope).get("x-request-id", "")
        request_id = asked if _REQUEST_ID.fullmatch(asked) else uuid.uuid4().hex
        usage = scope.setdefault("state", {})["usage"] = Usage()
        status = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            _LOG.exception("request %s failed", request_id)
            if status is None:
                await _error(500, "an unexpected error; the server's log has it")(scope, receive, send_with_id)
        finally:
            seconds = time.perf_counter() - begin
            _ACCESS_LOG.info(json.dumps(_access(request_id, scope, status or _GONE, seconds, usage)))


def _access(request_id: str, scope: Scope, status: int, seconds: float, usage: Usage) -> dict[str, Any]:
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "request_id": request_id,
        "method": scope["method"],
        "path": scope["path"],
        "status": status,
        "ms": round(seconds * 1000, 3),
        "tokens": usage.tokens,
        "wait_ms": round(usage.wait_s * 1000, 3),
        "engine_ms": round(usage.engine_s * 1000, 3),
    }


async def _predict(request: Request) -> Response:
    engine: Engine = request.app.state.engine
    asked = parse_request(await _read_body(request, engine), PredictRequest)
    inputs = read_inputs(asked.inputs, engine.predictor.task.input_types)
    answers = await _answer(request, engine, inputs, asked.given)
    return JSONResponse({"model": engine.predictor.manifest.name, "answers": answers})


async def _hugging_face(request: Request) -> Response:
    engine: Engine = request.app.state.engine
    task = engine.predictor.task
    form = HUGGING_FACE_FORMS[task.name]
    asked = parse_request(await _read_body(request, engine), HuggingFaceRequest)
    inputs = form.read(asked.inputs, task.input_types)
    given = form.heeded(asked.given)
    answers = await _answer(request, engine, inputs, given)
    return JSONResponse(form.write(answers, asked.inputs, given))


async def _model(request: Request) -> Response:
    engine: Engine = request.app.state.engine
    return JSONResponse(ModelResponse.of(engine.predictor.manifest).model_dump(mode="json"))


async def _docs(request: Request) -> Response:
    return JSONResponse(request.app.state.docs)


async def _answer(request: Request, engine: Engine, inputs: Sequence[Input], given: dict[str, Any]) -> list[Answer]:
    check_limits(inputs, engine.settings)
    parameters = engine.predictor.parameters(given)
    timeout_s = read_timeout(request.headers.get("x-request-timeout-ms"), engine.settings)
    answering = engine.answer(inputs, parameters, timeout_s=timeout_s, usage=request.state.usage)
    return await _while_connected(request, answering)


async def _while_connected(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """What the work gives; it is cancelled when the client leaves first.

    Raises:
        ClientDisconnect: then.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _read_body(request: Request, engine: Engine) -> bytes:
    """The body, read no further than the limit.

    Raises:
        TooLargeError: by the declared length before anything is read, else as soon as too much has come.
    """
    limit = engine.settings.max_body_bytes
    too_large = TooLargeError(f"the body has more than {limit} bytes, which is the limit (PARITYBIT_MAX_BODY_BYTES)")
    if int(request.headers.get("content-length", 0)) > limit:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_large
    return bytes(body)


async def _refused(request: Request, error: Exception) -> Response:
    kind = next(kind for kind in type(error).mro() if kind in _REFUSALS)
    status, reason = _REFUSALS[kind]
    request.app.state.engine.metrics.rejected.labels(reason).inc()
    headers = {"Retry-After": str(error.retry_after_s)} if isinstance(error, OverloadedError) else None
    return _error(status, str(error), headers)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, error.detail, error.headers)


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    # a caller's own key may hold a line break
    return JSONResponse({"error": " ".join(message.splitlines())}, status_code=status, headers=headers)


def _open_access_log() -> None:
    """Our lines go to standard output as they are; BentoML's of the same requests, which say less, end."""
    if not _ACCESS_LOG.handlers:
        _ACCESS_LOG.addHandler(logging.StreamHandler(sys.stdout))
        _ACCESS_LOG.setLevel(logging.INFO)
        _ACCESS_LOG.propagate = False
    logging.getLogger("bentoml.access").setLevel(logging.WARNING)


def _heed_sigterm(engine: Engine) -> None:
    """On SIGTERM the engine takes nothing new; what the server does of its own, draining, comes after."""
    servers = signal.getsignal(signal.SIGTERM)
    if not callable(servers):  # nobody drains: the process just ends
        return

    def stop(number: int, frame: FrameType | None) -> None:
        engine.stop_taking()
        servers(number, frame)

    signal.signal(signal.SIGTERM, stop)
