"""The Hugging Face inference form: what `huggingface_hub.InferenceClient` sends and reads, task by task.

https://huggingface.co/docs/inference-providers/tasks describes each task's body; the client's own parsers
(`huggingface_hub/inference/_client.py`) are stricter in places and were followed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serve.http import explain, read_inputs
from tasks import Answer, Input, TextInput
from tasks.errors import InputError

__all__ = ["HUGGING_FACE_FORMS", "HuggingFaceForm", "Sentences"]

_ANY = None


@dataclass(frozen=True, slots=True)
class HuggingFaceForm:
    """How the client of a task asks and what it reads.

    Attributes:
        write: the answers as the client reads them, given what the body's `inputs` and parameters were.
        read: the inputs of a body, given the kinds that the task takes.
        inputs: what `inputs` may be beside the task's own kinds.
        ignored: parameters that the client offers and that change nothing here, with the values for which that is
            true; `None` for all values.
    """

    write: Callable[[Sequence[Answer], Any, dict[str, Any]], Any]
    read: Callable[[Any, Sequence[type]], list[Input]] = read_inputs
    inputs: tuple[type[BaseModel], ...] = ()
    ignored: dict[str, tuple[Any, ...] | None] = field(default_factory=dict)

    def heeded(self, given: dict[str, Any]) -> dict[str, Any]:
        """The parameters without those that change nothing.

        Raises:
            InputError: if one of these has a value that would have to change the answer.
        """
        for name, value in given.items():
            values = self.ignored.get(name, _ANY)
            if values is not None and value not in values:
                expected = " or ".join(repr(one) for one in values)
                raise InputError(f"parameter {name}: only {expected} has a meaning for this task, got {value!r}")
        return {name: value for name, value in given.items() if name not in self.ignored}


class Sentences(BaseModel):
    """A text and others, each of which it is compared with."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    source_sentence: Annotated[str, Field(pattern=r"\S")]
    sentences: Annotated[list[Annotated[str, Field(pattern=r"\S")]], Field(min_length=1)]


class _SentencesBody(BaseModel):
    inputs: Sentences


def _read_sentences(value: Any, kinds: Sequence[type]) -> list[Input]:
    if not _are_sentences(value):
        return read_inputs(value, kinds)
    try:
        sentences = _SentencesBody.model_validate({"inputs": value}).inputs
    except ValidationError as error:
        raise InputError(explain(error.errors()[0])) from None
    return [TextInput(sentences.source_sentence, other) for other in sentences.sentences]


def _are_sentences(value: Any) -> bool:
    return isinstance(value, dict) and not Sentences.model_fields.keys().isdisjoint(value)


def _text_classification(answers: Sequence[Answer], asked: Any, given: dict[str, Any]) -> Any:
    # one text or many: always a list of lists, of which the client takes the first
    return [answer["labels"] for answer in answers]


def _sentence_similarity(answers: Sequence[Answer], asked: Any, given: dict[str, Any]) -> Any:
    if _are_sentences(asked):
        return [answer["score"] for answer in answers]
    return [[{"label": "score", "score": answer["score"]}] for answer in answers]


def _token_classification(answers: Sequence[Answer], asked: Any, given: dict[str, Any]) -> Any:
    rows = [[_entity_group(entity) for entity in answer["entities"]] for answer in answers]
    return rows if isinstance(asked, list) else rows[0]


def _entity_group(entity: dict[str, Any]) -> dict[str, Any]:
    names = {"label": "entity_group", "text": "word"}
    return {names.get(name, name): value for name, value in entity.items()}


def _question_answering(answers: Sequence[Answer], asked: Any, given: dict[str, Any]) -> Any:
    rows = [answer["answers"] for answer in answers]
    if given.get("top_k", 1) == 1:
        rows = [row[0] for row in rows]
    return rows if isinstance(asked, list) else rows[0]


HUGGING_FACE_FORMS: dict[str, HuggingFaceForm] = {
    "single_label": HuggingFaceForm(_text_classification),
    "multi_label": HuggingFaceForm(_text_classification, ignored={"function_to_apply": ("sigmoid",)}),
    "regression": HuggingFaceForm(
        _sentence_similarity,
        read=_read_sentences,
        inputs=(Sentences,),
        ignored={"function_to_apply": ("none",), "top_k": _ANY},
    ),
    "token_classification": HuggingFaceForm(
        _token_classification,
        # an entity is read where it has the most context, so the windows' overlap is not the caller's matter
        ignored={"stride": _ANY},
    ),
    "question_answering": HuggingFaceForm(
        _question_answering,
        # windows are those that the model was trained and certified with
        ignored={"align_to_words": _ANY, "doc_stride": _ANY, "max_question_len": _ANY, "max_seq_len": _ANY},
    ),
}
"""By the task's name."""
