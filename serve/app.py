"""The HTTP endpoints as a Starlette application, which the BentoML service mounts.

An endpoint of BentoML's own takes two to three times as long per request and words its errors in its own way (a list,
or a count of problems with details); the mounted application answers one line, and adds about a millisecond.
"""

from collections.abc import Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serve.engine import Engine
from serve.http import (
    HuggingFaceRequest,
    ModelResponse,
    PredictRequest,
    TooLargeError,
    check_limits,
    parse_request,
    read_inputs,
)
from serve.hugging_face import HUGGING_FACE_FORMS
from serve.openapi import openapi_document
from tasks import Answer, Input
from tasks.errors import InputError

__all__ = ["attach_engine", "build_app"]


def build_app() -> Starlette:
    """The application, without an engine yet; `/livez`, `/readyz` and `/metrics` are BentoML's."""
    return Starlette(
        routes=[
            Route("/predict", _predict, methods=["POST"]),
            Route("/", _hugging_face, methods=["POST"]),
            Route("/", _model, methods=["GET"]),
            Route("/model", _model, methods=["GET"]),
            Route("/docs.json", _docs, methods=["GET"]),
        ],
        exception_handlers={
            InputError: _bad_request,
            HTTPException: _http_error,
            ClientDisconnect: _gone,
            Exception: _unexpected,
        },
    )


def attach_engine(app: Starlette, engine: Engine) -> None:
    """Gives the application its engine and the documentation that belongs to it; it can answer from now on."""
    app.state.engine = engine
    app.state.docs = openapi_document(engine.predictor)


async def _predict(request: Request) -> Response:
    engine: Engine = request.app.state.engine
    asked = parse_request(await _read_body(request, engine), PredictRequest)
    inputs = read_inputs(asked.inputs, engine.predictor.task.input_types)
    answers = await _answer(engine, inputs, asked.given)
    return JSONResponse({"model": engine.predictor.manifest.name, "answers": answers})


async def _hugging_face(request: Request) -> Response:
    engine: Engine = request.app.state.engine
    task = engine.predictor.task
    form = HUGGING_FACE_FORMS[task.name]
    asked = parse_request(await _read_body(request, engine), HuggingFaceRequest)
    inputs = form.read(asked.inputs, task.input_types)
    given = form.heeded(asked.given)
    answers = await _answer(engine, inputs, given)
    return JSONResponse(form.write(answers, asked.inputs, given))


async def _model(request: Request) -> Response:
    engine: Engine = request.app.state.engine
    return JSONResponse(ModelResponse.of(engine.predictor.manifest).model_dump(mode="json"))


async def _docs(request: Request) -> Response:
    return JSONResponse(request.app.state.docs)


async def _answer(engine: Engine, inputs: Sequence[Input], given: dict[str, Any]) -> list[Answer]:
    check_limits(inputs, engine.settings)
    return await engine.answer(inputs, engine.predictor.parameters(given))


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


async def _bad_request(_: Request, error: Exception) -> Response:
    return _error(413 if isinstance(error, TooLargeError) else 400, str(error))


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, error.detail, error.headers)


async def _gone(_: Request, __: Exception) -> Response:
    return _error(400, "the client closed the connection before the body was complete")


async def _unexpected(_: Request, __: Exception) -> Response:
    # Starlette raises it again after the answer, so the traceback is in the log and only there
    return _error(500, "an unexpected error; the server's log has it")


def _error(status: int, message: str, headers: object = None) -> Response:
    # a caller's own key may hold a line break
    return JSONResponse({"error": " ".join(message.splitlines())}, status_code=status, headers=headers)  # type: ignore[arg-type]
