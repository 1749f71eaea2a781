"""What a task is asked: texts, words, questions; and their one form in JSON."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from tasks.errors import InputError

__all__ = ["Asked", "Input", "QuestionInput", "TextInput", "WordsInput", "input_from_json", "input_to_json", "shape_of"]

_CLOSED = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True)
class TextInput:
    """A text, or a pair of texts."""

    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED

    text: str
    text_pair: str | None = None


@dataclass(frozen=True, slots=True)
class WordsInput:
    """A text that was cut into words before."""

    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED

    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class QuestionInput:
    """A question and the text that may hold its answer."""

    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED

    question: str
    context: str


Input = TextInput | WordsInput | QuestionInput
Asked = str | dict[str, Any] | Input
"""What can be asked: a text, an input of the task, or the same as a dictionary."""

_ADAPTERS: dict[type, TypeAdapter[Any]] = {kind: TypeAdapter(kind) for kind in (TextInput, WordsInput, QuestionInput)}
_MESSAGES = {
    "missing": "missing",
    "unexpected_keyword_argument": "unknown key",
    "string_type": "expected a text",
    "tuple_type": "expected a list of words",
}


def input_from_json(value: Any, kinds: Sequence[type]) -> Input:
    """One input from plain values: an object of one of the kinds, or a plain text where `TextInput` is among them.

    Args:
        value: a string, a dictionary, or an input already.
        kinds: what the task takes; a dictionary is read as the first kind whose first field it names.

    Raises:
        InputError: with what was expected; it begins with the key that is wrong, where one is.
    """
    if isinstance(value, str) and TextInput in kinds:
        value = {"text": value}
    if isinstance(value, dict):
        kind = next((kind for kind in kinds if _fields(kind)[0] in value), kinds[0])
        try:
            value = _ADAPTERS[kind].validate_python(value)
        except ValidationError as error:
            raise InputError(_explain(error)) from None
    if not isinstance(value, tuple(kinds)):
        raise InputError(f"expected {shape_of(kinds)}")
    one: Input = value  # type: ignore[assignment]
    _check_not_empty(one)
    return one


def input_to_json(one: Input) -> dict[str, Any]:
    """The object that `input_from_json` reads; keys without a value are left out."""
    values = {name: getattr(one, name) for name in _fields(type(one))}
    lists = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return {name: value for name, value in lists.items() if value is not None}


def shape_of(kinds: Sequence[type]) -> str:
    """What a task takes, in a few words: `a text or {"text", "text_pair"}`."""
    objects = ["{" + ", ".join(f'"{name}"' for name in _fields(kind)) + "}" for kind in kinds]
    return " or ".join((["a text"] if TextInput in kinds else []) + objects)


def _fields(kind: type) -> tuple[str, ...]:
    names: tuple[str, ...] = kind.__match_args__  # type: ignore[attr-defined]
    return names


def _check_not_empty(one: Input) -> None:
    for name in _fields(type(one)):
        value = getattr(one, name)
        if isinstance(value, tuple) and not value:
            raise InputError(f"{name}: the list is empty")
        text = "".join(value) if isinstance(value, tuple) else value
        if text is not None and not text.strip():
            raise InputError(f"{name}: the text is empty")


def _explain(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    place = ""
    for step in problem["loc"]:
        place += f"[{step}]" if isinstance(step, int) else str(step)
    return f"{place}: {_MESSAGES.get(problem['type'], problem['msg'])}"
