"""The OpenAPI document of the service, with examples that the served model has really answered."""

from typing import Any

from pydantic import BaseModel

from bundle import Predictor
from bundle.golden import read_golden
from bundle.manifest import GOLDEN_FILE
from serve.http import ErrorResponse, HuggingFaceRequest, ModelResponse, PredictRequest, PredictResponse
from serve.hugging_face import hugging_face_form
from tasks import Answer

__all__ = ["openapi_document"]

Json = dict[str, Any]

_REFERENCE = "#/components/schemas/{model}"
_ERRORS = {
    400: "The request cannot be used; the error says what is wrong and where.",
    413: "More than the service takes at once; the error names the limit.",
}


def openapi_document(predictor: Predictor) -> Json:
    """OpenAPI 3.1 for what the predictor's task takes and answers."""
    manifest = predictor.manifest
    request, answers = _example(predictor)
    model = ModelResponse.of(manifest)
    schemas = _schemas(PredictRequest, HuggingFaceRequest, PredictResponse, ModelResponse, ErrorResponse)
    parameters = predictor.task.parameters.model_json_schema(ref_template=_REFERENCE)
    schemas[parameters["title"]] = parameters
    for form in ("PredictRequest", "HuggingFaceRequest"):
        schemas[form]["properties"]["parameters"] = {"$ref": _REFERENCE.format(model=parameters["title"])}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"paritybit: {manifest.name}",
            "version": manifest.checkpoint_digest[:12],
            "description": f"{manifest.task.task} with {len(manifest.task.labels)} labels, served without PyTorch.",
        },
        "paths": {
            "/predict": _post(
                "Answers one text or many, in order.",
                _body("PredictRequest", request),
                _body("PredictResponse", {"model": manifest.name, "answers": answers}),
            ),
            "/": _post(
                "The Hugging Face inference form, for huggingface_hub.InferenceClient.",
                _body("HuggingFaceRequest", request),
                {"application/json": {"example": hugging_face_form(predictor.task.name, answers)}},
            ),
            "/model": _get("What is served.", _body("ModelResponse", model.model_dump(mode="json"))),
            "/livez": _get("Whether the process lives."),
            "/readyz": _get("Whether the golden rows were replayed and requests are taken."),
            "/metrics": _get("Prometheus metrics."),
        },
        "components": {"schemas": schemas},
    }


def _example(predictor: Predictor) -> tuple[Json, list[Answer]]:
    """A request made of the first golden row, and the model's answers to it."""
    first = read_golden(predictor.directory / GOLDEN_FILE)[0].input
    one = first.text if first.text_pair is None else {"text": first.text, "text_pair": first.text_pair}
    values = {"top_k": 3} if "top_k" in predictor.task.parameters.model_fields else {}
    return {"inputs": one, "parameters": values}, predictor([first], **values)


def _schemas(*models: type[BaseModel]) -> dict[str, Json]:
    """Schemas of the models and of what they refer to, by name."""
    schemas: dict[str, Json] = {}
    for model in models:
        schema = model.model_json_schema(ref_template=_REFERENCE)
        schemas.update(schema.pop("$defs", {}))
        schemas[model.__name__] = schema
    return schemas


def _body(schema: str, example: Any) -> Json:
    return {"application/json": {"schema": {"$ref": _REFERENCE.format(model=schema)}, "example": example}}


def _post(summary: str, request: Json, response: Json) -> Json:
    error = {"application/json": {"schema": {"$ref": _REFERENCE.format(model="ErrorResponse")}}}
    return {
        "post": {
            "summary": summary,
            "requestBody": {"required": True, "content": request},
            "responses": {
                "200": {"description": "The answer.", "content": response},
                **{str(status): {"description": text, "content": error} for status, text in _ERRORS.items()},
            },
        }
    }


def _get(summary: str, response: Json | None = None) -> Json:
    answer: Json = {"description": "The answer."} | ({"content": response} if response else {})
    return {"get": {"summary": summary, "responses": {"200": answer}}}
