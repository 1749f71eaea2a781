import re
from pathlib import Path

import numpy as np
import pytest

from bundle.golden import GoldenRow, read_golden, write_golden
from tasks import QuestionInput, TextInput, WordsInput
from tasks.base import FloatArray
from tasks.errors import BundleError

GOOD = '{"input": {"text": "a"}, "outputs": [[1.0]]}'


def outputs(*shape: int) -> FloatArray:
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    "row",
    [
        GoldenRow(TextInput("卡 💳\u2028\n"), (outputs(5),)),
        GoldenRow(TextInput("a", "b"), (outputs(1), outputs(1))),
        GoldenRow(WordsInput(("New", "", "York")), (outputs(7, 3),)),
        GoldenRow(QuestionInput("who?", "Ann"), (outputs(9, 2), outputs(4, 2))),
    ],
)
def test_a_row_comes_back_as_it_was_bit_by_bit(tmp_path: Path, row: GoldenRow) -> None:
    write_golden(tmp_path / "golden.jsonl", [row, row])
    back = read_golden(tmp_path / "golden.jsonl", [type(row.input)])
    assert [one.input for one in back] == [row.input] * 2
    for one in back:
        assert all(output.dtype == np.float32 for output in one.outputs)
        assert all(np.array_equal(*pair) for pair in zip(one.outputs, row.outputs, strict=True))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", ": holds no golden rows"),
        ("{}", ":1: not a golden row: 'outputs'"),
        ("[]", ":1: not a golden row"),
        ("{", ":1: not a golden row: Expecting"),
        (f'{GOOD}\n{{"input": {{"text": "a"}}, "outputs": "b"}}', ":2: not a golden row: could not convert"),
        (f'{GOOD}\n{{"input": {{"text": "a"}}, "outputs": [[[1], [1, 2]]]}}', ":2: not a golden row: setting an array"),
        (f'{GOOD}\n{{"input": {{"question": "a"}}, "outputs": []}}', ":2: not a golden row: text: missing"),
        ('{"input": {"text": 1}, "outputs": []}', ":1: not a golden row: text: expected a text"),
    ],
)
def test_unreadable_rows_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "golden.jsonl"
    path.write_text(content)
    with pytest.raises(BundleError, match=re.escape(f"{path}{message}")):
        read_golden(path, [TextInput])
