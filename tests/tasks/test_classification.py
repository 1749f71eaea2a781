from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import expit
from scipy.special import softmax as scipy_softmax

from tasks import TaskSpec, TextInput, Tokenizer
from tasks.base import options_of
from tasks.classification import (
    TextOptions,
    averaged,
    encode_texts,
    never_predicted,
    read_text,
    repeated,
    sigmoid,
    softmax,
    truncated,
)
from tasks.errors import DataError, ParitybitError
from tests.tasks.outputs import encoded, outputs

LONG = TextInput("where is my lost card ? how old must i be ?")
logits = arrays(np.float64, (3, 4), elements=st.floats(-1e30, 1e30))


@settings(max_examples=100, deadline=None)
@given(logits)
def test_scores_are_those_of_scipy(values: np.ndarray) -> None:
    assert softmax(values) == pytest.approx(scipy_softmax(values, axis=-1))
    assert sigmoid(values) == pytest.approx(expit(values))


def test_windows_of_an_input_are_averaged() -> None:
    several = averaged(outputs([1, 2], [3, 0], [4, 4], [7, 7], [1, 1]), encoded([0, 1, 1, 1, 2]))
    assert several.tolist() == [[1, 2], [14 / 3, 11 / 3], [1, 1]]
    assert several.dtype == np.float64


def test_windows_share_the_target_of_their_input() -> None:
    assert repeated(encoded([0, 1, 1]), ["a", "b"]) == ["a", "b", "b"]


@pytest.mark.parametrize(
    ("options", "windows", "cut"),
    [({}, 1, True), ({"truncation": "head_tail"}, 1, True), ({"truncation": "windows"}, 2, False)],
)
def test_options_choose_what_happens_to_a_long_text(
    tokenizer_file: Path, options: dict[str, str], windows: int, cut: bool
) -> None:
    tokenizer = Tokenizer(tokenizer_file, 9)
    result = encode_texts(tokenizer, [LONG, TextInput("card")], TextOptions.model_validate(options))
    assert len(result.windows) == windows + 1
    assert truncated(result) == [cut, False]


def test_windows_share_a_quarter_unless_told(tokenizer_file: Path) -> None:
    tokenizer = Tokenizer(tokenizer_file, 8)

    def shared(options: TextOptions) -> int:
        first, second, *_ = encode_texts(tokenizer, [LONG], options).windows
        return next(n for n in range(6, -1, -1) if (first.input_ids[7 - n : 7] == second.input_ids[1 : n + 1]).all())

    assert shared(TextOptions(truncation="windows")) == 2
    assert shared(TextOptions(truncation="windows", stride=3)) == 3
    assert shared(TextOptions(truncation="windows", stride=0)) == 0


def test_second_text_is_expected_where_there_is_a_column() -> None:
    assert read_text({"text": "a", "label": 1}) == TextInput("a")
    assert read_text({"text": "a", "text_pair": "b"}) == TextInput("a", "b")
    with pytest.raises(DataError, match="no text pair"):
        read_text({"text": "a", "text_pair": None})


def test_labels_never_predicted_are_listed_up_to_five() -> None:
    assert never_predicted("ab", np.array([True, True])) == []
    assert never_predicted("abc", np.array([False, True, False])) == ["2 of 3 labels are never predicted: a, c"]
    (line,) = never_predicted("abcdefg", np.zeros(7, dtype=bool))
    assert line == "7 of 7 labels are never predicted: a, b, c, d, e, …"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truncation": "tail"}, r"toy: options\.truncation: Input should be 'head', 'head_tail' or 'windows'"),
        ({"stride": -1}, r"toy: options\.stride"),
        ({"strides": 1}, r"toy: options\.strides: Extra"),
    ],
)
def test_options_of_a_specification_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(ParitybitError, match=message):
        options_of(TaskSpec(task="toy", labels=(), max_length=8, options=options), TextOptions)
