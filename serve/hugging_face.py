"""The Hugging Face inference form: what `huggingface_hub.InferenceClient` reads, task by task."""

from collections.abc import Callable, Sequence
from typing import Any

from tasks import Answer

__all__ = ["hugging_face_form"]


def hugging_face_form(task: str, answers: Sequence[Answer]) -> Any:
    """Answers in the form that the Hugging Face client of this task parses; ready for JSON."""
    return _FORMS[task](answers)


def _text_classification(answers: Sequence[Answer]) -> list[Any]:
    # one text or many: always a list of lists, of which the client takes the first
    return [answer["labels"] for answer in answers]


_FORMS: dict[str, Callable[[Sequence[Answer]], Any]] = {"single_label": _text_classification}
