"""Entities as stretches of text: what a row of data says of them, what a model finds, and how both are compared."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from tasks.base import Example
from tasks.classification import softmax
from tasks.encoding import FloatArray, IntArray
from tasks.errors import DataError
from tasks.inputs import TextInput, WordsInput
from tasks.reading import text_cell
from tasks.tags import Tag, chunks, parse_tag
from tasks.units import Units, trimmed, word_offsets

__all__ = [
    "Entity",
    "Found",
    "entity_f1",
    "find_entities",
    "macro_entity_f1",
    "overlapped",
    "read_spans",
    "read_words",
]


@dataclass(frozen=True, slots=True, order=True)
class Entity:
    """The characters `[start, end)` of a text and what they name."""

    start: int
    end: int
    label: str


@dataclass(frozen=True, slots=True)
class Found:
    """An entity that a model sees, its score, and the words `[begin, end)` of the caller that it covers."""

    entity: Entity
    score: float
    words: tuple[int, int]


def read_words(values: Mapping[str, Any], joiner: str) -> Example:
    """A list of words and a list of as many tags, of any scheme.

    Entities of nothing but white space are left out: no token stands for them.

    Raises:
        DataError: if the lists do not fit together or hold something else than strings.
    """
    words, tags = _strings(values, "words"), _strings(values, "tags")
    if len(words) != len(tags):
        raise DataError(f"{len(words)} words but {len(tags)} tags")
    for place, tag in enumerate(tags):
        if not tag.strip():
            raise DataError(f"tag {place} is empty")
    text, offsets = joiner.join(words), word_offsets(words, joiner)
    spans = [
        (*trimmed(text, int(offsets[chunk.begin, 0]), int(offsets[chunk.end - 1, 1])), chunk.kind)
        for chunk in chunks([parse_tag(tag) for tag in tags])
    ]
    return Example(WordsInput(words), tuple(Entity(*span) for span in spans if span[0] < span[1]))


def read_spans(values: Mapping[str, Any]) -> Example:
    """A text and a list of `{"start", "end", "label"}` or `[start, end, label]`, in any order.

    White space at the ends of a span is left out, as it is of what a model finds.

    Raises:
        DataError: if a span is malformed, empty, outside of the text or overlaps another.
    """
    text, spans = text_cell(values, "text"), values["spans"]
    if not isinstance(spans, list | tuple):
        raise DataError(f"the spans are {type(spans).__name__} ({str(spans)[:40]}), expected a list")
    entities = sorted(_entity(text, place, span) for place, span in enumerate(spans))
    for left, right in pairwise(entities):
        if right.start < left.end:
            raise DataError(f"the spans {left.start}-{left.end} and {right.start}-{right.end} overlap")
    return Example(TextInput(text), tuple(entities))


def overlapped(units: Units, entities: Sequence[Entity]) -> IntArray:
    """For each unit the place of the entity that it shares most characters with, the earlier of two; -1 for none."""
    if not entities:
        return np.full(len(units.tokens), -1)
    starts, ends = (np.array([getattr(one, name) for one in entities]) for name in ("start", "end"))
    shared = np.minimum(units.ends[:, None], ends) - np.maximum(units.begins[:, None], starts)
    return np.where(shared.max(axis=1) > 0, shared.argmax(axis=1), -1)


def find_entities(logits: FloatArray, tags: Sequence[Tag], units: Units, text: str) -> list[Found]:
    """The entities that the best tag of each unit gives, in order; they neither touch a blank nor overlap.

    Args:
        logits: of the units, shape `[units, tags]`.
        tags: what the labels mean.
        units: of the text.
        text: the text.
    """
    scores = softmax(logits.astype(np.float64)).max(axis=1)
    found: list[Found] = []
    reached = 0
    for chunk in chunks([tags[index] for index in logits.argmax(axis=1)]):
        own = slice(chunk.begin, chunk.end)
        # pieces of one character, and marks taken along by the unit before, stand in two units
        begin = max(int(units.begins[own].min()), reached)
        start, end = trimmed(text, begin, int(units.ends[own].max()))
        if start < end:
            words = int(units.words[chunk.begin, 0]), int(units.words[chunk.end - 1, 1])
            found.append(Found(Entity(start, end, chunk.kind), float(scores[own].mean()), words))
            reached = end
    return found


def entity_f1(correct: float, found: float, gold: float) -> float:
    """F1 of entities from three counts; 0.0 where there are none."""
    return float(2 * correct / (found + gold)) if found + gold else 0.0


def macro_entity_f1(predicted: Sequence[Sequence[Entity]], golds: Sequence[Sequence[Entity]]) -> float:
    """The mean F1 of the types that occur among the right entities."""
    correct = Counter(one.label for found, gold in zip(predicted, golds, strict=True) for one in {*found} & {*gold})
    seen, there = (Counter(one.label for entities in side for one in entities) for side in (predicted, golds))
    return float(np.mean([entity_f1(correct[kind], seen[kind], there[kind]) for kind in there])) if there else 0.0


def _strings(values: Mapping[str, Any], field: str) -> tuple[str, ...]:
    cells = values[field]
    if not isinstance(cells, list | tuple) or not cells:
        raise DataError(f"the {field} are {type(cells).__name__} ({str(cells)[:40]}), expected a list of strings")
    for place, cell in enumerate(cells):
        if not isinstance(cell, str):
            raise DataError(f"{field[:-1]} {place} is {type(cell).__name__} ({str(cell)[:40]}), expected a string")
        try:
            cell.encode("utf-8")
        except UnicodeEncodeError:
            raise DataError(f"{field[:-1]} {place} holds a lone surrogate, expected Unicode text") from None
    return tuple(cells)


def _entity(text: str, place: int, span: Any) -> Entity:
    values = [span.get(key) for key in ("start", "end", "label")] if isinstance(span, dict) else span
    match values:
        case [int(begin), int(end), str(label)] if label.strip() and not {type(begin), type(end)} & {bool}:
            if not 0 <= begin < end <= len(text):
                raise DataError(f"span {place} is {begin}-{end}, in a text of {len(text)} characters")
        case _:
            raise DataError(f"span {place} is {str(span)[:60]}, expected whole numbers start and end, and a label")
    begin, end = trimmed(text, begin, end)
    if begin == end:
        raise DataError(f"span {place} holds nothing but white space")
    return Entity(begin, end, label)
