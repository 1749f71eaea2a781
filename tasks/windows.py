"""Which tokens of a long input stand in which window.

A cut takes the number of tokens of the first and of the second text (0 where there is none) and the room that a window
has beside the special tokens, and gives, for each window, the positions that it keeps of both.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt

from tasks.errors import InputError

__all__ = ["Cut", "Positions", "Truncation", "choose_cut", "head", "head_and_tail", "overlapping"]

Positions = npt.NDArray[np.int64]
Cut = Callable[[int, int, int], list[tuple[Positions, Positions]]]
Truncation = Literal["head", "head_tail", "windows"]

_HEAD_SHARE = 0.25
"""Of the room of a text, for its beginning: 128 of 510 tokens in Sun et al. 2019 (arXiv:1905.05583)."""

_SMALLEST_SHARE = 0.25
"""Of the room, what the text that stands whole in every window must leave for the other one."""


def choose_cut(truncation: Truncation, stride: int) -> Cut:
    """The cut that classification options name."""
    cuts: dict[Truncation, Cut] = {"head": head, "head_tail": head_and_tail, "windows": overlapping(stride)}
    return cuts[truncation]


def head(first: int, second: int, room: int) -> list[tuple[Positions, Positions]]:
    """One window with the beginnings; of a pair, the longer text is cut first."""
    keep_first, keep_second = _shares(first, second, room)
    return [(np.arange(keep_first), np.arange(keep_second))]


def head_and_tail(first: int, second: int, room: int) -> list[tuple[Positions, Positions]]:
    """One window with the beginning and the end of what is too long (Sun et al. 2019)."""
    keep_first, keep_second = _shares(first, second, room)
    return [(_ends(first, keep_first), _ends(second, keep_second))]


def overlapping(stride: int, *, slide_second: bool = False) -> Cut:
    """Windows over the longer text, the other one whole in each of them.

    Args:
        stride: tokens that neighbouring windows share, fewer where the room is less than twice as large.
        slide_second: the windows always run over the second text.
    """

    def cut(first: int, second: int, room: int) -> list[tuple[Positions, Positions]]:
        over_second = slide_second or second > first
        fixed, sliding = (first, second) if over_second else (second, first)
        left = room - fixed
        if left < room * _SMALLEST_SHARE:
            most = room - int(np.ceil(room * _SMALLEST_SHARE))
            raise InputError(f"{fixed} tokens stand beside the text that is cut into windows; expected at most {most}")
        step = left - min(stride, left // 2)
        count = max(0, -(-(sliding - left) // step)) + 1
        pieces = [np.arange(start * step, min(start * step + left, sliding)) for start in range(count)]
        whole = np.arange(fixed)
        return [(whole, piece) if over_second else (piece, whole) for piece in pieces]

    return cut


def _shares(first: int, second: int, room: int) -> tuple[int, int]:
    if first + second <= room:
        return first, second
    shorter = min(first, second, room // 2)
    return (shorter, room - shorter) if first <= second else (room - shorter, shorter)


def _ends(length: int, kept: int) -> Positions:
    beginning = kept if kept == length else round(kept * _HEAD_SHARE)
    return np.concatenate([np.arange(beginning), np.arange(length - (kept - beginning), length)])
