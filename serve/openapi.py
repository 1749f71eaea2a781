"""The OpenAPI document of the service, with examples that the served model has really answered."""

import json
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, TypeAdapter

from bundle import Predictor
from bundle.golden import read_golden
from bundle.manifest import GOLDEN_FILE
from serve.http import ErrorResponse, HuggingFaceRequest, ModelResponse, PredictRequest, PredictResponse
from serve.hugging_face import HUGGING_FACE_FORMS, HuggingFaceForm
from serve.open_inference import (
    InferRequest,
    InferResponse,
    example_request,
    model_metadata,
    read_infer_request,
    write_infer_response,
)
from tasks import Answer, Task, TextInput
from tasks.inputs import input_to_json

__all__ = ["openapi_document"]

Json = dict[str, Any]

_REFERENCE = "#/components/schemas/{model}"
_ERRORS = {
    400: "The request cannot be used; the error says what is wrong and where.",
    401: "The service asks for a key, and none of its keys was given.",
    413: "More than the service takes at once; the error names the limit.",
    415: "A compressed body is not read.",
    429: "Too much waits already; `Retry-After` says in how many seconds there should be room.",
    500: "The engine failed at this request; the server's log has it.",
    503: "The server is stopping; another one should be asked.",
    504: "The request's time was over before it was answered.",
}
_HEADERS = [
    {
        "name": "X-Request-Timeout-Ms",
        "in": "header",
        "description": "Milliseconds that the caller waits; the operator's limit holds beside it.",
        "schema": {"type": "integer", "minimum": 1, "maximum": 9_999_999_999},
    },
    {
        "name": "X-Request-Id",
        "in": "header",
        "description": "Comes back with the answer and stands in the server's log; made where it is missing.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
    },
]


_HEADER_LENGTH = {
    "name": "Inference-Header-Content-Length",
    "in": "header",
    "description": "How many bytes of the body are JSON, where tensors stand behind it.",
    "schema": {"type": "integer", "minimum": 0},
}
_UNKNOWN_MODEL = {404: "The server has no model of this name."}
_NO = {**_UNKNOWN_MODEL, 503: "No: the server is stopping."}


def openapi_document(predictor: Predictor, model: ModelResponse, *, asks_for_keys: bool) -> Json:
    """OpenAPI 3.1 for what the predictor's task takes and answers.

    Args:
        predictor: whose answers are the examples.
        model: what is served.
        asks_for_keys: whether a key must be given.
    """
    manifest = predictor.manifest
    request, answers = _example(predictor)
    form = HUGGING_FACE_FORMS[predictor.task.name]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"paritybit: {manifest.name}",
            "version": manifest.checkpoint_digest[:12],
            "description": f"{manifest.task.task} with {len(manifest.task.labels)} labels, served without PyTorch.",
        },
        "paths": {
            "/predict": _post(
                "Answers one input or many, in order.",
                _body("PredictRequest", request),
                _body("PredictResponse", {"model": manifest.name, "answers": answers}),
            ),
            "/": _post(
                "The Hugging Face inference form, for huggingface_hub.InferenceClient.",
                _body("HuggingFaceRequest", request),
                {"application/json": {"example": form.write(answers, request["inputs"], request["parameters"])}},
            ),
            "/model": _get("What is served.", _body("ModelResponse", model.model_dump(mode="json"))),
            "/certificate": _get("The certificate, for people.", {"text/html": {}}, {404: "The bundle has none."}),
            **_open_inference_paths(predictor),
            "/ui": _probe("A page on which a person tries the model."),
            "/livez": _probe("Whether the process lives."),
            "/readyz": _probe("Whether the golden rows were replayed and requests are taken.", 503),
            "/metrics": _probe("Prometheus metrics."),
        },
        "components": {
            "schemas": _all_schemas(predictor.task, form),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}] if asks_for_keys else [],
    }


def _open_inference_paths(predictor: Predictor) -> Json:
    """The Open Inference Protocol v2."""
    name, task = predictor.manifest.name, predictor.task
    first = read_golden(predictor.directory / GOLDEN_FILE, task.input_types)[0].input
    request = example_request(first, _example_parameters(task), task)
    asked = read_infer_request(json.dumps(request).encode(), None, task)
    answers = predictor.predict(asked.inputs, predictor.parameters(asked.given))
    response = json.loads(write_infer_response(asked, answers, name, task)[0])
    infer = _post(
        "The Open Inference Protocol v2: texts come and answers go as tensors.",
        _body("InferRequest", request),
        _body("InferResponse", response) | {"application/octet-stream": {}},
        _UNKNOWN_MODEL,
    )
    infer["post"]["parameters"] = [*_HEADERS, _HEADER_LENGTH]
    metadata = {"application/json": {"example": model_metadata(predictor.manifest, task)}}
    path = "/v2/models/{name}"
    paths = {
        path: _get("The model's tensors.", metadata, _UNKNOWN_MODEL),
        f"{path}/ready": _probe("Whether the model answers.", 404, 503),
        f"{path}/infer": infer,
    }
    which = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}, "example": name}
    return {
        "/v2": _get("The server and the extensions of the protocol that it speaks."),
        "/v2/health/live": _probe("Whether the process lives."),
        "/v2/health/ready": _probe("Whether requests are taken.", 503),
        **{one: {"parameters": [which], **operations} for one, operations in paths.items()},
    }


def _example(predictor: Predictor) -> tuple[Json, list[Answer]]:
    """A request made of the first golden row, and the model's answers to it."""
    task = predictor.task
    first = read_golden(predictor.directory / GOLDEN_FILE, task.input_types)[0].input
    asked = first.text if isinstance(first, TextInput) and first.text_pair is None else input_to_json(first)
    values = _example_parameters(task)
    return {"inputs": asked, "parameters": values}, predictor(first, **values)


def _example_parameters(task: Task) -> Json:
    return {"top_k": 3} if "top_k" in task.parameters.model_fields else {}


def _all_schemas(task: Task, form: HuggingFaceForm) -> dict[str, Json]:
    """Of all bodies; what the task takes stands where the request models are open."""
    schemas = _schemas(PredictRequest, HuggingFaceRequest, PredictResponse, ModelResponse, ErrorResponse)
    schemas |= _schemas(InferRequest, InferResponse)
    schemas |= _schemas(task.parameters, *form.inputs)
    schemas |= {kind.__name__: TypeAdapter(kind).json_schema(ref_template=_REFERENCE) for kind in task.input_types}
    own = schemas[task.parameters.__name__]
    ignored = {name: _ignored_schema(values) for name, values in form.ignored.items()}
    schemas["HuggingFaceParameters"] = own | {
        "title": "HuggingFaceParameters",
        "description": "The task's parameters, and those of the client that change nothing here.",
        "properties": own["properties"] | ignored,
    }
    names: dict[str, tuple[Sequence[type], str]] = {
        "PredictRequest": ((), task.parameters.__name__),
        "HuggingFaceRequest": (form.inputs, "HuggingFaceParameters"),
    }
    for request, (further, parameters) in names.items():
        schemas[request]["properties"]["inputs"] |= _inputs_schema(task.input_types, further)
        schemas[request]["properties"]["parameters"] = _reference(parameters)
    return schemas


def _inputs_schema(kinds: Sequence[type], further: Sequence[type]) -> Json:
    texts: list[Json] = [{"type": "string"}] if TextInput in kinds else []
    one = texts + [_reference(kind.__name__) for kind in kinds]
    many = {"type": "array", "minItems": 1, "items": {"anyOf": one}}
    return {"anyOf": [*one, many, *(_reference(kind.__name__) for kind in further)]}


def _ignored_schema(values: Sequence[Any] | None) -> Json:
    return {"description": "Taken from Hugging Face clients; changes nothing."} | (
        {"enum": [*values]} if values else {}
    )


def _schemas(*models: type[BaseModel]) -> dict[str, Json]:
    """Schemas of the models and of what they refer to, by name."""
    schemas: dict[str, Json] = {}
    for model in models:
        schema = model.model_json_schema(ref_template=_REFERENCE)
        schemas.update(schema.pop("$defs", {}))
        schemas[model.__name__] = schema
    return schemas


def _reference(model: str) -> Json:
    return {"$ref": _REFERENCE.format(model=model)}


def _body(schema: str, example: Any) -> Json:
    return {"application/json": {"schema": _reference(schema), "example": example}}


def _post(summary: str, request: Json, response: Json, further: dict[int, str] | None = None) -> Json:
    return {
        "post": {
            "summary": summary,
            "parameters": _HEADERS,
            "requestBody": {"required": True, "content": request},
            "responses": {"200": {"description": "The answer.", "content": response}} | _errors(_ERRORS, further),
        }
    }


def _get(summary: str, response: Json | None = None, further: dict[int, str] | None = None) -> Json:
    answer: Json = {"description": "The answer."} | ({"content": response} if response else {})
    return {"get": {"summary": summary, "responses": {"200": answer} | _errors({401: _ERRORS[401]}, further)}}


def _probe(summary: str, *otherwise: int) -> Json:
    """A GET for which no key is asked, and which may answer in other words than ours."""
    responses = {"200": {"description": "Yes."}} | {str(status): {"description": _NO[status]} for status in otherwise}
    return {"get": {"summary": summary, "security": [], "responses": responses}}


def _errors(usual: dict[int, str], further: dict[int, str] | None) -> Json:
    content = {"application/json": {"schema": _reference("ErrorResponse")}}
    described = {**usual, **(further or {})}
    return {str(status): {"description": text, "content": content} for status, text in sorted(described.items())}
