"""Cuts of token counts; `test_encoding` compares them with the truncation of the tokenizers library."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tasks.errors import InputError
from tasks.windows import choose_cut, head, head_and_tail, overlapping

rooms = st.integers(1, 40)
lengths = st.integers(0, 120)


@settings(max_examples=200, deadline=None)
@given(lengths, lengths, rooms)
def test_head_keeps_beginnings_and_fills_the_room(first: int, second: int, room: int) -> None:
    ((of_first, of_second),) = head(first, second, room)
    assert of_first.tolist() == list(range(len(of_first)))
    assert of_second.tolist() == list(range(len(of_second)))
    assert len(of_first) + len(of_second) == min(room, first + second)
    if len(of_first) < first:
        assert len(of_first) >= len(of_second) - 1, "a text is cut only while it is the longer one"
    if len(of_second) < second:
        assert len(of_second) >= len(of_first) - 1


@settings(max_examples=200, deadline=None)
@given(lengths, lengths, rooms)
def test_head_and_tail_keep_as_much_as_head_from_both_ends(first: int, second: int, room: int) -> None:
    (kept,) = head_and_tail(first, second, room)
    (beginnings,) = head(first, second, room)
    for length, positions, beginning in zip((first, second), kept, beginnings, strict=True):
        assert len(positions) == len(beginning)
        first_part = len(positions) if len(positions) == length else round(len(positions) / 4)
        last_part = len(positions) - first_part
        assert positions.tolist() == [*range(first_part), *range(length - last_part, length)]


def test_head_and_tail_are_those_of_sun_et_al() -> None:
    """128 of the first and 382 of the last tokens, of 510."""
    ((kept, _),) = head_and_tail(1000, 0, 510)
    assert kept.tolist() == [*range(128), *range(618, 1000)]


@settings(max_examples=200, deadline=None)
@given(lengths, lengths, rooms, st.integers(0, 50), st.booleans())
def test_windows_cover_all_and_share_the_stride(first: int, second: int, room: int, stride: int, last: bool) -> None:
    over_second = last or second > first
    fixed, sliding = (first, second) if over_second else (second, first)
    assume(first + second > room and room - fixed >= room / 4)
    pieces = overlapping(stride, slide_second=last)(first, second, room)
    whole = [of_first if over_second else of_second for of_first, of_second in pieces]
    moving = [of_second if over_second else of_first for of_first, of_second in pieces]
    left = room - fixed
    assert all(one.tolist() == list(range(fixed)) for one in whole)
    assert all((np.diff(one) == 1).all() for one in moving)
    assert all(len(one) == left for one in moving[:-1])
    assert len(moving[-1]) <= left
    assert np.unique(np.concatenate(moving)).tolist() == list(range(sliding))
    shared = [len(np.intersect1d(*pair)) for pair in pairwise(moving)]
    assert shared == [min(stride, left // 2)] * (len(moving) - 1)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 100), st.integers(1, 200), rooms)
def test_what_leaves_no_room_for_windows_is_told(question: int, context: int, room: int) -> None:
    assume(question + context > room and room - question < room / 4)
    with pytest.raises(InputError, match=rf"{question} tokens stand beside .* at most \d+") as caught:
        overlapping(2, slide_second=True)(question, context, room)
    most = int(str(caught.value).split()[-1])
    assert most < question
    overlapping(2, slide_second=True)(most, room + 1, room)


def test_options_choose_the_cut() -> None:
    assert choose_cut("head", 0) is head
    assert choose_cut("head_tail", 0) is head_and_tail
    assert [len(first) for first, _ in choose_cut("windows", 1)(5, 0, 3)] == [3, 3]
