from typing import Any

import pytest

from tasks.entities import Entity
from tasks.errors import DataError
from tasks.inputs import TextInput, WordsInput
from tasks.token_classification import TokenClassification, TokenClassificationOptions


def read(values: dict[str, Any], **options: Any) -> Any:
    return TokenClassification.read_row(values, TokenClassificationOptions(**options))


def test_words_and_tags_of_any_scheme_become_spans() -> None:
    example = read({"words": ["Ann", "Lee", "in", "York"], "tags": ["B-person", "L-person", "O", "U-place"]})
    assert example.input == WordsInput(("Ann", "Lee", "in", "York"))
    assert example.gold == (Entity(0, 7, "person"), Entity(11, 15, "place"))
    assert TokenClassification.names((*example.gold, Entity(16, 17, "person"))) == ("person", "place")


def test_empty_and_invisible_words_keep_the_offsets_right() -> None:
    example = read({"words": ["", "\u200b", "Ann", " "], "tags": ["B-x", "O", "B-y", "I-y"]})
    assert example.gold == (Entity(3, 6, "y"),), "an entity of an empty word is none"
    chinese = read({"words": ["王", "小", "明"], "tags": ["O", "B-x", "I-x"]}, joiner="")
    assert chinese.gold == (Entity(1, 3, "x"),)


def test_spans_are_objects_or_lists_in_any_order() -> None:
    spans = [{"start": 8, "end": 12, "label": "place", "id": 7}, [0, 4, "person"]]
    example = read({"text": "Ann in  York", "spans": spans})
    assert example.input == TextInput("Ann in  York")
    assert example.gold == (Entity(0, 3, "person"), Entity(8, 12, "place")), "white space at an end is left out"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"words": "Ann", "tags": ["O"]}, "the words are str .Ann., expected a list of strings"),
        ({"words": [], "tags": []}, "the words are list"),
        ({"words": ["Ann"], "tags": None}, "the tags are NoneType"),
        ({"words": ["Ann", 5], "tags": ["O", "O"]}, "word 1 is int .5., expected a string"),
        ({"words": ["Ann"], "tags": [3]}, "tag 0 is int"),
        ({"words": ["Ann"], "tags": [" "]}, "tag 0 is empty"),
        ({"words": ["Ann", "b"], "tags": ["O"]}, "2 words but 1 tags"),
        ({"words": ["\ud800"], "tags": ["O"]}, "word 0 holds a lone surrogate"),
        ({"text": "Ann", "spans": "x"}, "the spans are str"),
        ({"text": None, "spans": []}, "no text"),
        ({"text": "Ann", "spans": [[0, 4, "x"]]}, "span 0 is 0-4, in a text of 3 characters"),
        ({"text": "Ann", "spans": [[-1, 2, "x"]]}, "span 0 is -1-2"),
        ({"text": "Ann", "spans": [[2, 2, "x"]]}, "span 0 is 2-2"),
        ({"text": "Ann", "spans": [[2, 1, "x"]]}, "span 0 is 2-1"),
        ({"text": "a  b", "spans": [[1, 3, "x"]]}, "span 0 holds nothing but white space"),
        ({"text": "Ann", "spans": [[0, 2, "x"], [1, 3, "y"]]}, "the spans 0-2 and 1-3 overlap"),
        ({"text": "Ann", "spans": [[0, 2]]}, "span 0 is .*expected whole numbers start and end, and a label"),
        ({"text": "Ann", "spans": [{"start": 0, "end": 2}]}, "span 0 is .*and a label"),
        ({"text": "Ann", "spans": [[0, True, "x"]]}, "span 0 is .*whole numbers"),
        ({"text": "Ann", "spans": ["0-2"]}, "span 0 is 0-2, expected whole numbers"),
        ({"text": "Ann", "spans": [[0, 2, " "]]}, "span 0 is .*and a label"),
    ],
)
def test_bad_rows_are_explained(values: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(values)
