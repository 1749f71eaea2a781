"""HTTP request and response types, and how a body becomes inputs; no server needed."""

import re
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from pydantic_core import ErrorDetails

from bundle.manifest import Manifest
from serve.certificate import CertificateSummary
from serve.settings import ServeSettings
from tasks import Answer, Input, TextInput
from tasks.errors import InputError
from tasks.inputs import input_from_json, shape_of

__all__ = [
    "ErrorResponse",
    "HuggingFaceRequest",
    "ModelResponse",
    "PredictRequest",
    "PredictResponse",
    "TooLargeError",
    "check_limits",
    "explain",
    "parse_request",
    "read_inputs",
    "read_timeout",
]


class TooLargeError(InputError):
    """More than the operator's limits allow; answered with a 413."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PredictRequest(_Frozen):
    """Body of `POST /predict`."""

    inputs: Any = Field(description="One input of the task, or a list of them.")
    parameters: dict[str, JsonValue] | None = Field(default=None, description="The task's parameters.")

    @property
    def given(self) -> dict[str, Any]:
        """The parameters; one that is null counts as missing, as some clients send it."""
        return {key: value for key, value in (self.parameters or {}).items() if value is not None}


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
    options: dict[str, JsonValue] = Field(description="Of the task: thresholds, scale.")
    default_variant: str
    checkpoint_digest: str
    verdict: str
    certificate: CertificateSummary | None = Field(description="What was measured of the variant that is served.")

    @classmethod
    def of(cls, manifest: Manifest, certificate: CertificateSummary | None) -> "ModelResponse":
        """What a manifest and a certificate say to callers."""
        return cls(
            name=manifest.name,
            task=manifest.task.task,
            labels=manifest.task.labels,
            max_length=manifest.task.max_length,
            options=manifest.task.options,
            default_variant=manifest.default_variant,
            checkpoint_digest=manifest.checkpoint_digest,
            verdict=manifest.verdict,
            certificate=certificate,
        )


_Form = TypeVar("_Form", bound=BaseModel)


def parse_request(body: bytes, form: type[_Form]) -> _Form:
    """A JSON body; what its `inputs` are is still to be read.

    Raises:
        InputError: if the body is not JSON or not of the form, with the place.
    """
    try:
        return form.model_validate_json(body)
    except ValidationError as error:
        raise InputError(explain(error.errors()[0])) from None


def read_inputs(value: Any, kinds: Sequence[type]) -> list[Input]:
    """The inputs of a body: one of the kinds that the task takes, or a list of them.

    Raises:
        InputError: with the place: `inputs[3].text: expected a text`.
    """
    if isinstance(value, list):
        if not value:
            raise InputError("inputs: the list is empty")
        return [_read_input(one, kinds, f"inputs[{position}]") for position, one in enumerate(value)]
    if isinstance(value, dict) or (isinstance(value, str) and TextInput in kinds):
        return [_read_input(value, kinds, "inputs")]
    raise InputError(f"inputs: expected {shape_of(kinds)}, or a list of them")


def check_limits(inputs: Sequence[Input], settings: ServeSettings) -> None:
    """Compares inputs with the operator's limits.

    Raises:
        TooLargeError: naming the limit, its value and the variable that raises it.
    """
    if len(inputs) > settings.max_texts:
        raise TooLargeError(
            f"inputs: {len(inputs)} texts, at most {settings.max_texts} are taken (PARITYBIT_MAX_TEXTS)"
        )
    for position, one in enumerate(inputs):
        length = max(len(text if isinstance(text, str) else " ".join(text)) for text in astuple(one) if text)
        if length > settings.max_text_chars:
            raise TooLargeError(
                f"inputs[{position}]: {length} characters, at most {settings.max_text_chars} are taken "
                "(PARITYBIT_MAX_TEXT_CHARS)"
            )


def read_timeout(header: str | None, settings: ServeSettings) -> float:
    """Seconds that a request has: what its header says in milliseconds, the operator's limit at most.

    Raises:
        InputError: if the header is not a whole number above zero.
    """
    limit = settings.timeout_ms / 1000
    if header is None:
        return limit
    if re.fullmatch(r"0*[1-9][0-9]{0,9}", header, re.ASCII) is None:
        raise InputError(f"header X-Request-Timeout-Ms: expected milliseconds, a whole number, got {header[:40]!r}")
    return min(limit, int(header) / 1000)


def _read_input(value: Any, kinds: Sequence[type], place: str) -> Input:
    try:
        return input_from_json(value, kinds)
    except InputError as error:
        # a plain text has no key that could be wrong
        reason = str(error).removeprefix("text: ") if isinstance(value, str) else str(error)
        names_a_key = re.match(r"\w+(\[\d+\])?: ", reason) is not None
        raise InputError(f"{place}.{reason}" if names_a_key else f"{place}: {reason}") from None


_HINTS = {
    "hex escape": " (a surrogate stands without its other half)",
    "invalid unicode": " (the body must be UTF-8)",
}
_MESSAGES = {
    "missing": "missing",
    "extra_forbidden": "unknown key",
    "string_type": "expected a text",
    "list_type": "expected a list",
    "string_pattern_mismatch": "the text is empty",
    "too_short": "the list is empty",
}


def explain(problem: ErrorDetails) -> str:
    """A validation problem as one line: `inputs[3].text: expected a text`."""
    if problem["type"] == "json_invalid":
        reason = problem["ctx"]["error"]
        hint = next((hint for words, hint in _HINTS.items() if words in reason), "")
        return f"malformed JSON: {reason}{hint}"
    place = ""
    for step in problem["loc"]:
        place += f"[{step}]" if isinstance(step, int) else f".{step}" if place else step
    if not place:
        return 'expected a JSON object like {"inputs": …}'
    return f"{place}: {_MESSAGES.get(problem['type'], problem['msg'])}"
