"""HTTP request and response types, and how a body becomes inputs; no server needed."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    ValidationError,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from bundle.manifest import Manifest
from serve.settings import ServeSettings
from tasks import Answer, TextInput
from tasks.errors import InputError

__all__ = [
    "ErrorResponse",
    "HuggingFaceRequest",
    "ModelResponse",
    "PredictRequest",
    "PredictResponse",
    "TextPair",
    "TooLargeError",
    "check_limits",
    "parse_request",
]


class TooLargeError(InputError):
    """More than the operator's limits allow; answered with a 413."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _not_empty(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("empty_text", "the text is empty")
    return text


def _at_least_one(texts: list[Any]) -> list[Any]:
    if not texts:
        raise PydanticCustomError("empty_list", "the list is empty")
    return texts


Text = Annotated[str, AfterValidator(_not_empty)]


class TextPair(_Frozen):
    """One input of a task that reads two texts together."""

    text: Text
    text_pair: Text | None = None


def _kind(value: Any) -> str | None:
    """Which member of a union a value is meant to be, so that the error is about that one and not about all."""
    if isinstance(value, str):
        return "<text>"
    if isinstance(value, dict | TextPair):
        return "<pair>"
    return "<texts>" if isinstance(value, list) else None


def _kind_of_item(value: Any) -> str | None:
    return None if isinstance(value, list) else _kind(value)


_One = Annotated[Text, Tag("<text>")] | Annotated[TextPair, Tag("<pair>")]
_Item = Annotated[
    _One,
    Discriminator(
        _kind_of_item,
        custom_error_type="not_an_input",
        custom_error_message='expected a text or {"text", "text_pair"}',
    ),
]
_Inputs = Annotated[
    _One | Annotated[list[_Item], AfterValidator(_at_least_one), Tag("<texts>")],
    Discriminator(
        _kind,
        custom_error_type="not_inputs",
        custom_error_message='expected a text, {"text", "text_pair"}, or a list of them',
    ),
]


class PredictRequest(_Frozen):
    """Body of `POST /predict`."""

    inputs: _Inputs = Field(description="One text, one pair of texts, or a list of them.")
    parameters: dict[str, JsonValue] | None = Field(default=None, description="The task's parameters.")


class HuggingFaceRequest(PredictRequest):
    """Body of `POST /`: the Hugging Face inference form."""

    options: dict[str, JsonValue] | None = Field(
        default=None, description="Sent by older clients for the hosted service; has no meaning here."
    )


class PredictResponse(_Frozen):
    """Answer of `POST /predict`: one answer per input, in order."""

    model: str
    answers: list[Answer]


class ErrorResponse(_Frozen):
    """Answer to a request that cannot be served."""

    error: str = Field(description="One line: what is wrong, where, and what was expected.")


class ModelResponse(_Frozen):
    """Answer of `GET /model`: what is served."""

    name: str
    task: str
    labels: tuple[str, ...]
    max_length: int
    default_variant: str
    checkpoint_digest: str
    verdict: str

    @classmethod
    def of(cls, manifest: Manifest) -> "ModelResponse":
        """What a manifest says to callers."""
        return cls(
            name=manifest.name,
            task=manifest.task.task,
            labels=manifest.task.labels,
            max_length=manifest.task.max_length,
            default_variant=manifest.default_variant,
            checkpoint_digest=manifest.checkpoint_digest,
            verdict=manifest.verdict,
        )


def parse_request(body: bytes, form: type[PredictRequest]) -> tuple[list[TextInput], dict[str, Any]]:
    """Inputs and parameters of a JSON body; a parameter that is null counts as missing, as some clients send it.

    Raises:
        InputError: if the body is not JSON or not of the form, with the place.
    """
    try:
        request = form.model_validate_json(body)
    except ValidationError as error:
        raise InputError(_explain(error.errors()[0])) from None
    inputs = request.inputs if isinstance(request.inputs, list) else [request.inputs]
    parameters: dict[str, Any] = {key: value for key, value in (request.parameters or {}).items() if value is not None}
    return [_as_input(one) for one in inputs], parameters


def check_limits(inputs: Sequence[TextInput], settings: ServeSettings) -> None:
    """Compares inputs with the operator's limits.

    Raises:
        TooLargeError: naming the limit, its value and the variable that raises it.
    """
    if len(inputs) > settings.max_texts:
        raise TooLargeError(
            f"inputs: {len(inputs)} texts, at most {settings.max_texts} are taken (PARITYBIT_MAX_TEXTS)"
        )
    for position, one in enumerate(inputs):
        length = max(len(one.text), len(one.text_pair or ""))
        if length > settings.max_text_chars:
            raise TooLargeError(
                f"inputs[{position}]: {length} characters, at most {settings.max_text_chars} are taken "
                "(PARITYBIT_MAX_TEXT_CHARS)"
            )


def _as_input(one: str | TextPair) -> TextInput:
    return TextInput(one) if isinstance(one, str) else TextInput(one.text, one.text_pair)


_HINTS = {
    "hex escape": " (a surrogate stands without its other half)",
    "invalid unicode": " (the body must be UTF-8)",
}
_MESSAGES = {"missing": "missing", "extra_forbidden": "unknown key", "string_type": "expected a text"}


def _explain(problem: ErrorDetails) -> str:
    """A validation problem as one line: `inputs[3].text: expected a text`."""
    if problem["type"] == "json_invalid":
        reason = problem["ctx"]["error"]
        hint = next((hint for words, hint in _HINTS.items() if words in reason), "")
        return f"malformed JSON: {reason}{hint}"
    place = ""
    for step in problem["loc"]:
        if isinstance(step, int):
            place += f"[{step}]"
        elif not step.startswith("<"):  # the union's own tags
            place += f".{step}" if place else step
    if not place:
        return 'expected a JSON object like {"inputs": "a text"}'
    return f"{place}: {_MESSAGES.get(problem['type'], problem['msg'])}"
