"""The right answers to a question, as rows of SQuAD and its descendants give them."""

from dataclasses import dataclass
from typing import Any

from tasks.errors import DataError

__all__ = ["GoldAnswers", "read_answers"]


@dataclass(frozen=True, slots=True)
class GoldAnswers:
    """The right answers and the first character of each in the context; none to a question without an answer."""

    texts: tuple[str, ...]
    starts: tuple[int, ...]


def read_answers(answers: Any, context: str) -> GoldAnswers:
    """The answers of a row, each checked against the context.

    Args:
        answers: `{"text": [...], "answer_start": [...]}`, or a list of `{"text", "answer_start"}`; both may be empty.
        context: that they index.

    Raises:
        DataError: if they have another form, or the context says something else at their places.
    """
    pairs = _pairs(answers)
    for number, (text, start) in enumerate(pairs):
        _check_answer(f"answer {number}", text, start, context)
    return GoldAnswers(tuple(text for text, _ in pairs), tuple(start for _, start in pairs))


def _pairs(answers: Any) -> list[tuple[Any, Any]]:
    """Text and start of each answer, whatever they are."""
    match answers:
        case {"text": list() | tuple() as texts, "answer_start": list() | tuple() as starts}:
            if len(texts) != len(starts):
                raise DataError(f"{len(texts)} texts of answers, but {len(starts)} places (answer_start)")
            return list(zip(texts, starts, strict=True))
        case list() | tuple() if all(isinstance(answer, dict) for answer in answers):
            return [(answer.get("text"), answer.get("answer_start")) for answer in answers]
    raise DataError(
        f'the answers are {str(answers)[:60]}; expected {{"text": […], "answer_start": […]}}, perhaps empty'
    )


def _check_answer(which: str, text: Any, start: Any, context: str) -> None:
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{which}: found {text!r}, expected a text (no list entry where there is no answer)")
    if not isinstance(start, int) or isinstance(start, bool):
        raise DataError(f"{which}: answer_start is {start!r}, expected a whole number")
    there = context[start : start + len(text)] if start >= 0 else ""
    if there != text:
        raise DataError(f"{which}: {there[:40]!r} stands at character {start} of the context, expected {text[:40]!r}")
