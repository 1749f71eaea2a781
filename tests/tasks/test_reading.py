from typing import Any

import pytest

from tasks.errors import DataError
from tasks.reading import label_cell, labels_cell, number_cell, sorted_labels, text_cell


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (None, "no text pair"),
        (7, r"the text pair is int \(7\), expected a string"),
        (["a"], r"the text pair is list \(\['a'\]\), expected a string"),
        (" \n", "empty text pair"),
        ("a\ud800", "the text pair holds a lone surrogate"),
    ],
)
def test_what_is_no_text_is_told_by_field(cell: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        text_cell({"text_pair": cell}, "text_pair")


def test_text_keeps_its_spaces() -> None:
    assert text_cell({"text": " a\t"}, "text") == " a\t"


@pytest.mark.parametrize(("cell", "expected"), [("joy", "joy"), (0, "0"), (-1, "-1"), (0.5, "0.5"), ("0", "0")])
def test_labels_may_be_numbers(cell: Any, expected: str) -> None:
    assert label_cell(cell) == expected


@pytest.mark.parametrize("cell", [None, "", "  ", float("nan"), True, ["a"]])
def test_what_is_no_label_is_told(cell: Any) -> None:
    with pytest.raises(DataError, match="no label"):
        label_cell(cell)


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (None, ()),
        ("", ()),
        (" ", ()),
        ([], ()),
        (["love", "joy"], ("joy", "love")),
        (("b", "a"), ("a", "b")),
        ([10, 9], ("9", "10")),
        ("love| joy ", ("joy", "love")),
        ("joy, pure", ("joy, pure",)),
        (["a|b"], ("a|b",)),
        (3, ("3",)),
    ],
)
def test_label_sets_may_be_lists_texts_or_nothing(cell: Any, expected: tuple[str, ...]) -> None:
    assert labels_cell(cell, "|") == expected


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (["joy", "joy"], "the label 'joy' stands twice"),
        ("1|1", "the label '1' stands twice"),
        ([1, "1"], "the label '1' stands twice"),
        ("joy|", r"no label \(found ''\)"),
        (["joy", None], r"no label \(found None\)"),
        ({"joy": 1}, "no label"),
        (True, r"no label \(found True\)"),
    ],
)
def test_what_is_no_label_set_is_told(cell: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        labels_cell(cell, "|")


@pytest.mark.parametrize(("cell", "expected"), [(3, 3.0), (-0.5, -0.5), ("4.25", 4.25), (" 1e-3 ", 0.001)])
def test_numbers_may_be_texts(cell: Any, expected: float) -> None:
    assert number_cell(cell) == expected


@pytest.mark.parametrize("cell", [None, "", "four", "1,5", "nan", float("inf"), float("nan"), True, [1.0], 10**400])
def test_what_is_no_finite_number_is_told(cell: Any) -> None:
    with pytest.raises(DataError, match=r"no number \(found"):
        number_cell(cell)


def test_whole_numbers_are_sorted_as_numbers() -> None:
    assert sorted_labels(["10", "9", "-1", "9"]) == ("-1", "9", "10")
    assert sorted_labels(["10", "9", "a"]) == ("10", "9", "a")
    assert sorted_labels([]) == ()
