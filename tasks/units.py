"""The units of text that a model judges one by one, from the tokens of all windows of an input."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tasks.encoding import FIRST, Alignment, FloatArray, IntArray, Window

__all__ = ["Pieces", "Units", "merged", "snapped", "trimmed", "units_of", "visible", "word_offsets"]

Pieces = Literal["first", "all"]


@dataclass(frozen=True, slots=True)
class Units:
    """Stretches of a text that get a tag each, in order.

    Attributes:
        begins: first character of each, shape `[units]`.
        ends: behind the last character of each, shape `[units]`.
        tokens: the token that is judged for each, by its place in the uncut input, shape `[units]`.
        words: the caller's words `[begin, end)` that they are, their own places where the caller gave a text, shape
            `[units, 2]`.
    """

    begins: IntArray
    ends: IntArray
    tokens: IntArray
    words: IntArray


def units_of(windows: Sequence[Window], text: str, pieces: Pieces) -> Units:
    """The units of an input: the words of the pre-tokenizer, judged by their first piece, or all pieces.

    A unit is trimmed of white space and reaches over the combining marks behind it, which some normalizers remove;
    one that holds nothing else than white space is none.

    Args:
        windows: all of the input.
        text: the input, as the tokenizer reads it.
        pieces: which pieces are judged.
    """
    whole = _uncut(windows)
    tokens = np.flatnonzero(whole.source == FIRST)
    if not len(tokens):
        return Units(tokens, tokens, tokens, tokens.reshape(-1, 2))
    groups = whole.words[tokens] if pieces == "first" else tokens
    firsts = np.flatnonzero(np.diff(groups, prepend=-2))
    begins = np.minimum.reduceat(whole.offsets[tokens, 0], firsts).tolist()
    ends = np.maximum.reduceat(whole.offsets[tokens, 1], firsts).tolist()
    spans = np.array([visible(text, begin, end) for begin, end in zip(begins, ends, strict=True)])
    kept = spans[:, 0] < spans[:, 1]
    places = np.arange(int(kept.sum()))
    return Units(spans[kept, 0], spans[kept, 1], tokens[firsts][kept], np.stack([places, places + 1], axis=1))


def snapped(units: Units, offsets: IntArray) -> Units:
    """The caller's words, each judged by the first unit that begins in it.

    A word in which none begins belongs to the word before where a unit reaches over from there (`J` `o` `h` `n`, joined
    to one). Else it is empty or invisible to the tokenizer and no unit: not part of an entity by itself, but one that
    goes on behind it goes over it.

    Args:
        units: of the joined text.
        offsets: of the words, as `word_offsets` gives them.
    """
    words = np.searchsorted(offsets[:, 0], units.begins, side="right") - 1
    inside = np.flatnonzero(units.begins < offsets[words, 1])
    begins, first = np.unique(words[inside], return_index=True)
    reached = np.maximum.reduceat(units.ends[inside], first)
    ends = np.searchsorted(offsets[:, 0], reached, side="left")
    ends = np.clip(ends, begins + 1, np.append(begins[1:], len(offsets)))
    tokens = units.tokens[inside[first]]
    return Units(offsets[begins, 0], offsets[ends - 1, 1], tokens, np.stack([begins, ends], axis=1))


def merged(outputs: Sequence[FloatArray], windows: Sequence[Window]) -> FloatArray:
    """The outputs of an input's windows as those of one: each token's come from where it has most context.

    The context of a token in a window is its distance to the nearer end of the window; of equals the earlier window
    is taken. That nothing is cut off at the ends of the text changes no choice, as windows share half at most.

    Args:
        outputs: of each window, shape `[tokens, labels]`.
        windows: all of the input.

    Returns:
        Shape `[tokens of the uncut input, labels]`; zero for special tokens where there are several windows.
    """
    if len(windows) == 1:
        return outputs[0]
    chosen = [np.flatnonzero(window.aligned.source == FIRST) for window in windows]
    places = [window.aligned.positions[inside] for window, inside in zip(windows, chosen, strict=True)]
    count = int(places[-1][-1]) + 1
    result = np.zeros((count, outputs[0].shape[1]), dtype=np.float32)
    context = np.full(count, -1)
    for output, inside, place in zip(outputs, chosen, places, strict=True):
        distance = np.minimum(place - place[0], place[-1] - place)
        better = distance > context[place]
        context[place[better]] = distance[better]
        result[place[better]] = output[inside[better]]
    return result


def word_offsets(words: Sequence[str], joiner: str) -> IntArray:
    """Begin and end of each word in the joined text, shape `[words, 2]`."""
    lengths = np.array([len(word) for word in words], dtype=np.int64)
    ends = np.cumsum(lengths + len(joiner)) - len(joiner)
    return np.stack([ends - lengths, ends], axis=1)


def trimmed(text: str, begin: int, end: int) -> tuple[int, int]:
    """A span without the white space at its ends; begin and end are equal where nothing is left."""
    part = text[begin:end]
    begin += len(part) - len(part.lstrip())
    return begin, begin + len(part.strip())


def _uncut(windows: Sequence[Window]) -> Alignment:
    parts = [window.aligned for window in windows]
    _, first = np.unique(np.concatenate([part.positions for part in parts]), return_index=True)
    source, offsets, words, positions = (
        np.concatenate([getattr(part, name) for part in parts])[first]
        for name in ("source", "offsets", "words", "positions")
    )
    return Alignment(source, offsets, words, positions)


def visible(text: str, begin: int, end: int) -> tuple[int, int]:
    """A span without the white space at its ends, and with the combining marks behind it.

    They belong to its last character, but some normalizers drop them.
    """
    begin, end = trimmed(text, begin, end)
    while begin < end < len(text) and unicodedata.category(text[end])[0] == "M":
        end += 1
    return begin, end
