"""The HTTP endpoints as a Starlette application, which the BentoML service mounts.

An endpoint of BentoML's own takes two to three times as long per request and words its errors in its own way (a list,
or a count of problems with details); the mounted application answers one line, and adds about a millisecond.
"""

import asyncio
import importlib.metadata
import signal
from collections.abc import Callable, Coroutine, Sequence
from types import FrameType
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.access import GONE, AccessLog, KeyCheck, open_access_log
from serve.certificate import read_certificate, read_certificate_page
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
from serve.keys import read_keys
from serve.open_inference import EXTENSIONS, model_metadata, read_infer_request, write_infer_response
from serve.openapi import openapi_document
from serve.page import html_page, page_route
from serve.protocol import Doorman
from serve.queue import OverloadedError
from serve.responses import error_response
from serve.telemetry import METRICS_TYPE, scrape
from tasks import Answer, Input
from tasks.errors import InputError

__all__ = ["attach_engine", "build_app", "doorman_of"]

_REFUSALS: dict[type[Exception], tuple[int, str]] = {
    InputError: (400, "invalid"),
    TooLargeError: (413, "too_large"),
    OverloadedError: (429, "overloaded"),
    ClientDisconnect: (GONE, "client_gone"),
    EngineError: (500, "engine"),
    StoppingError: (503, "stopping"),
    DeadlineError: (504, "deadline"),
}
"""Status and, in the metrics, reason."""

_HEADER_LENGTH = "Inference-Header-Content-Length"

_T = TypeVar("_T")


def build_app() -> Starlette:
    """The application, without an engine yet; `/livez` and `/readyz` are BentoML's."""
    return Starlette(
        routes=[
            Route("/predict", _predict, methods=["POST"]),
            Route("/", _hugging_face, methods=["POST"]),
            Route("/", _model, methods=["GET"]),
            Route("/model", _model, methods=["GET"]),
            Route("/certificate", _certificate, methods=["GET"]),
            Route("/docs.json", _docs, methods=["GET"]),
            Route("/metrics", _metrics, methods=["GET"]),
            Route("/v2", _server_metadata, methods=["GET"]),
            Route("/v2/health/live", _live, methods=["GET"]),
            Route("/v2/health/ready", _ready, methods=["GET"]),
            Route("/v2/models/{name}", _model_metadata, methods=["GET"]),
            Route("/v2/models/{name}/ready", _model_ready, methods=["GET"]),
            Route("/v2/models/{name}/infer", _infer, methods=["POST"]),
            page_route(),
        ],
        middleware=[Middleware(AccessLog), Middleware(KeyCheck)],
        exception_handlers={HTTPException: _http_error, **dict.fromkeys(_REFUSALS, _refused)},
    )


def attach_engine(app: Starlette, engine: Engine) -> None:
    """Gives the application its engine and the documentation that belongs to it; it can answer from now on.

    From then on the access log is ours, and SIGTERM stops the taking of requests before the server drains.

    Raises:
        ParitybitError: if the settings name keys that cannot be read.
    """
    predictor = engine.predictor
    model = ModelResponse.of(predictor.manifest, read_certificate(predictor))
    app.state.engine = engine
    app.state.keys = read_keys(engine.settings)
    app.state.model = model.model_dump(mode="json")
    app.state.certificate = read_certificate_page(predictor)
    app.state.docs = openapi_document(predictor, model, asks_for_keys=bool(app.state.keys))
    open_access_log()
    _heed_sigterm(engine)


def doorman_of(app: Starlette) -> Doorman:
    """Refuses questions while too much waits, before anything is made of them (benchmarks/LOG.md).

    They are logged and counted like others, and ask for a key like others; traces have none of them.
    """

    def doorman(method: bytes, target: bytes) -> ASGIApp | None:
        engine: Engine | None = getattr(app.state, "engine", None)
        if engine is None or method != b"POST":
            return None
        question = _questions(engine).get(target.partition(b"?")[0])
        if question is None:
            return None
        try:
            engine.check_room()
        except OverloadedError as error:
            return _refusing(app, question, error)
        return None

    return doorman


def _questions(engine: Engine) -> dict[bytes, Callable[[Request], Coroutine[Any, Any, Response]]]:
    name = engine.predictor.manifest.name.encode()
    return {b"/predict": _predict, b"/": _hugging_face, b"/v2/models/%s/infer" % name: _infer}


def _refusing(app: Starlette, endpoint: Callable[..., Any], error: OverloadedError) -> ASGIApp:
    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        response = await _refused(Request(scope), error)
        await response(scope, receive, send)

    guarded = AccessLog(KeyCheck(refuse))

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        # what Starlette would have written there
        scope.update(app=app, endpoint=endpoint)
        await guarded(scope, receive, send)

    return answer


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
    return JSONResponse(request.app.state.model)


async def _certificate(request: Request) -> Response:
    page: str | None = request.app.state.certificate
    if page is None:
        raise HTTPException(404, "the bundle has no certificate.html")
    return html_page(page)


async def _docs(request: Request) -> Response:
    return JSONResponse(request.app.state.docs)


async def _metrics(_: Request) -> Response:
    return Response(await run_in_threadpool(scrape), media_type=METRICS_TYPE)


async def _server_metadata(_: Request) -> Response:
    return JSONResponse({"name": "paritybit", "version": _version(), "extensions": EXTENSIONS})


async def _live(_: Request) -> Response:
    return JSONResponse({"live": True})


async def _ready(request: Request) -> Response:
    engine: Engine = request.app.state.engine
    return JSONResponse({"ready": not engine.stopping}, status_code=503 if engine.stopping else 200)


async def _model_ready(request: Request) -> Response:
    _named_engine(request)
    return await _ready(request)


async def _model_metadata(request: Request) -> Response:
    predictor = _named_engine(request).predictor
    return JSONResponse(model_metadata(predictor.manifest, predictor.task))


async def _infer(request: Request) -> Response:
    engine = _named_engine(request)
    predictor = engine.predictor
    body = await _read_body(request, engine)
    asked = read_infer_request(body, request.headers.get(_HEADER_LENGTH), predictor.task)
    answers = await _answer(request, engine, asked.inputs, asked.given)
    content, header_length = write_infer_response(asked, answers, predictor.manifest.name, predictor.task)
    if header_length is None:
        return Response(content, media_type="application/json")
    headers = {_HEADER_LENGTH: str(header_length)}
    return Response(content, media_type="application/octet-stream", headers=headers)


def _named_engine(request: Request) -> Engine:
    """The engine, if the path names its model; else it is a 404."""
    engine: Engine = request.app.state.engine
    name = engine.predictor.manifest.name
    if request.path_params["name"] != name:
        raise HTTPException(404, f"no such model; this server has {name}")
    return engine


def _version() -> str:
    try:
        return importlib.metadata.version("paritybit")
    except importlib.metadata.PackageNotFoundError:
        return "source"  # in a Bento, too, the source runs without being installed


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
    """The body, read no further than the limit, and not at all when too much waits already.

    Raises:
        OverloadedError: then: beyond saturation most requests are refused, and that must cost little.
        TooLargeError: by the declared length before anything is read, else as soon as too much has come.
        HTTPException: if it is compressed: small bodies could become huge.
    """
    engine.check_room()
    if request.headers.get("content-encoding", "identity") != "identity":
        raise HTTPException(415, "a compressed body is not read; send it without Content-Encoding")
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
    return error_response(status, str(error), headers)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_response(error.status_code, error.detail, error.headers)


def _heed_sigterm(engine: Engine) -> None:
    """On SIGTERM the engine takes nothing new; what the server does of its own, draining, comes after."""
    servers = signal.getsignal(signal.SIGTERM)
    if not callable(servers):  # nobody drains: the process just ends
        return

    def stop(number: int, frame: FrameType | None) -> None:
        engine.stop_taking()
        servers(number, frame)

    signal.signal(signal.SIGTERM, stop)
