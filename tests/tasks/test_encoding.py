from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Encoding
from tokenizers import Tokenizer as RawTokenizer

from tasks import Encoded, TextInput, Tokenizer, Window, collate
from tasks.encoding import without_padding
from tasks.errors import InputError, ParitybitError
from tasks.windows import head_and_tail, overlapping

pieces = st.sampled_from(
    ["where", "Card", "my", "?", "unheard", "卡", "😀", "e\u0301", "[SEP]", "\u200b", "ＡＢ", "שלום"]
)
texts = st.lists(st.tuples(pieces, st.sampled_from([" ", "", "\t", "  "])), max_size=30).map(
    lambda parts: "".join(piece + space for piece, space in parts)
)


def test_window_holds_the_whole_text_without_padding(tokenizer_file: Path) -> None:
    (window,) = Tokenizer(tokenizer_file, max_length=16).encode([("Where is my card?", None)])
    assert window.input_ids.tolist() == [2, 4, 5, 6, 7, 8, 3]
    assert window.token_type_ids.tolist() == [0] * 7
    assert window.input_ids.dtype == np.int64
    assert not window.truncated
    assert window.alignment is None


def test_cut_at_max_length_is_told(tokenizer_file: Path) -> None:
    tokenizer = Tokenizer(tokenizer_file, max_length=6)
    fits, cut = tokenizer.encode([("where is my card", None), ("where is my lost card", None)])
    assert (len(fits), fits.truncated) == (6, False)
    assert (len(cut), cut.truncated) == (6, True)
    assert cut.input_ids[-1] == 3, "the closing token stays"
    assert tokenizer.lengths([("where is my lost card", None)]).tolist() == [7]


def test_pair_has_two_token_types_and_rows_in_order(tokenizer_file: Path) -> None:
    windows = Tokenizer(tokenizer_file, 16).encode([("card", None), ("my card", "is lost")])
    assert [window.row for window in windows] == [0, 1]
    assert windows[1].input_ids.tolist() == [2, 6, 7, 3, 5, 15, 3]
    assert windows[1].token_type_ids.tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_of_a_pair_the_longer_text_is_cut(tokenizer_file: Path) -> None:
    (window,) = Tokenizer(tokenizer_file, max_length=7).encode([("where is my lost card", "old")])
    assert window.truncated
    assert window.token_type_ids.tolist() == [0, 0, 0, 0, 0, 1, 1]


def test_emoji_and_chinese_are_tokens(tokenizer_file: Path) -> None:
    (window,) = Tokenizer(tokenizer_file, 16).encode([("卡 😀", None)])
    assert window.input_ids.tolist() == [2, 16, 17, 3]


def test_windows_that_cover_the_text_truncate_nothing(tokenizer_file: Path) -> None:
    text = "where is my lost card ?"
    windows = Tokenizer(tokenizer_file, 6).encode([("card", None), (text, None)], overlapping(1), aligned=True)
    assert [window.row for window in windows] == [0, 1, 1]
    assert [window.input_ids.tolist() for window in windows[1:]] == [[2, 4, 5, 6, 15, 3], [2, 15, 7, 8, 3]]
    assert not any(window.truncated for window in windows)
    last = windows[2].aligned
    assert last.positions.tolist() == [0, 4, 5, 6, 7]
    assert last.words.tolist() == [-1, 3, 4, 5, -1]
    assert last.source.tolist() == [-1, 0, 0, 0, -1]
    assert [text[begin:end] for begin, end in last.offsets] == ["", "lost", "card", "?", ""]


def test_special_token_that_the_caller_wrote_is_text(tokenizer_file: Path, tmp_path: Path) -> None:
    raw = RawTokenizer.from_file(str(tokenizer_file))
    raw.add_special_tokens(["[SEP]"])
    raw.save(str(tmp_path / "tokenizer.json"))
    (window,) = Tokenizer(tmp_path / "tokenizer.json", 16).encode([("card [SEP] 卡", None)], aligned=True)
    assert window.input_ids.tolist() == [2, 7, 3, 16, 3]
    assert window.aligned.source.tolist() == [-1, 0, 0, 0, -1]
    assert window.aligned.offsets.tolist() == [[0, 0], [0, 4], [5, 10], [11, 12], [0, 0]]
    assert window.aligned.words.tolist() == [-1, 0, 1, 2, -1]


@settings(max_examples=150, deadline=None)
@given(texts, st.none() | texts, st.integers(5, 24))
def test_head_is_the_longest_first_truncation_of_the_library(
    tokenizer_file: Path, text: str, pair: str | None, max_length: int
) -> None:
    (window,) = Tokenizer(tokenizer_file, max_length).encode([(text, pair)], aligned=True)
    (expected, *overflowing) = truncated_by_library(tokenizer_file, (text, pair), max_length, strategy="longest_first")
    assert_equal(window, expected)
    assert window.truncated == bool(overflowing)


@settings(max_examples=150, deadline=None)
@given(texts, texts, st.integers(6, 24), st.integers(0, 12))
def test_windows_over_the_second_text_are_the_overflow_of_the_library(
    tokenizer_file: Path, question: str, context: str, max_length: int, stride: int
) -> None:
    fixed = Tokenizer(tokenizer_file, max_length).lengths([(question, None)])[0] - 2
    room = max_length - 3
    assume(room - fixed >= room / 4 and stride <= (room - fixed) // 2)
    windows = Tokenizer(tokenizer_file, max_length).encode(
        [(question, context)], overlapping(int(stride), slide_second=True), aligned=True
    )
    expected = truncated_by_library(
        tokenizer_file, (question, context), max_length, strategy="only_second", stride=stride
    )
    for window, one in zip(windows, expected, strict=True):
        assert_equal(window, one)
        assert not window.truncated


@settings(max_examples=150, deadline=None)
@given(texts, st.none() | texts, st.integers(6, 24), st.sampled_from([overlapping(3), head_and_tail]))
def test_windows_say_where_in_the_uncut_input_they_stand(
    tokenizer_file: Path, text: str, pair: str | None, max_length: int, cut: object
) -> None:
    (whole,) = Tokenizer(tokenizer_file, 1000).encode([(text, pair)], aligned=True)
    try:
        windows = Tokenizer(tokenizer_file, max_length).encode([(text, pair)], cut, aligned=True)  # type: ignore[arg-type]
    except InputError:
        assume(False)
    special = np.flatnonzero(whole.aligned.source == -1)
    for window in windows:
        assert len(window) <= max_length
        positions = window.aligned.positions
        assert np.isin(special, positions).all()
        assert (np.diff(positions) > 0).all()
        assert (window.input_ids == whole.input_ids[positions]).all()
        assert (window.token_type_ids == whole.token_type_ids[positions]).all()
        assert (window.aligned.offsets == whole.aligned.offsets[positions]).all()
        assert (window.aligned.words == whole.aligned.words[positions]).all()
    seen = np.unique(np.concatenate([window.aligned.positions for window in windows]))
    assert all(window.truncated == (len(seen) < len(whole)) for window in windows)


def test_first_text_that_fills_the_window_is_named_by_position(tokenizer_file: Path) -> None:
    rows = [("card", "is lost"), ("where is my lost card", "old lost card")]
    with pytest.raises(InputError, match="input 1: 5 tokens stand beside"):
        Tokenizer(tokenizer_file, 8).encode(rows, overlapping(1, slide_second=True))


def test_spans_find_the_windows_of_each_input() -> None:
    ids = np.array([2, 3])
    windows = [Window(row, ids, ids, False) for row in (0, 1, 1, 1, 2)]
    assert Encoded([TextInput("a")] * 3, windows).spans() == [slice(0, 1), slice(1, 4), slice(4, 5)]
    assert Encoded([], []).spans() == []


def test_collate_pads_to_the_longest(tokenizer_file: Path) -> None:
    windows = Tokenizer(tokenizer_file, 16).encode([("card", None), ("my lost card", None)])
    batch = collate(windows, pad_id=9)
    assert batch["input_ids"].tolist() == [[2, 7, 3, 9, 9], [2, 6, 15, 7, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["token_type_ids"].tolist() == [[0] * 5, [0] * 5]


def test_outputs_of_padding_are_left_out(tokenizer_file: Path) -> None:
    windows = Tokenizer(tokenizer_file, 16).encode([("card", None), ("my lost card", None)])
    of_tokens = np.arange(2 * 5 * 2, dtype=np.float32).reshape(2, 5, 2)
    first, second = without_padding(of_tokens, windows)
    assert first.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert second.tolist() == of_tokens[1].tolist()
    assert [row.tolist() for row in without_padding(of_tokens[:, 0], windows)] == [[0, 1], [10, 11]]


def test_lone_surrogate_is_named_by_position(tokenizer_file: Path) -> None:
    with pytest.raises(InputError, match="input 1: expected Unicode text"):
        Tokenizer(tokenizer_file, 16).encode([("fine", None), ("fine", "broken \ud800")])


def test_max_length_must_leave_room(tokenizer_file: Path) -> None:
    with pytest.raises(ParitybitError, match="max_length 3 leaves no room"):
        Tokenizer(tokenizer_file, max_length=3)


def test_unreadable_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ParitybitError, match=r"tokenizer\.json: not a readable"):
        Tokenizer(tmp_path / "tokenizer.json", 16)


def truncated_by_library(
    path: Path, row: tuple[str, str | None], max_length: int, *, strategy: str, stride: int = 0
) -> list[Encoding]:
    tokenizer = RawTokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length, strategy=strategy, stride=stride)
    encoding = tokenizer.encode(*row)
    return [encoding, *encoding.overflowing]


def assert_equal(window: Window, expected: Encoding) -> None:
    assert window.input_ids.tolist() == expected.ids
    assert window.token_type_ids.tolist() == expected.type_ids
    assert window.aligned.offsets.tolist() == [list(pair) for pair in expected.offsets]
    assert window.aligned.source.tolist() == [-1 if one is None else one for one in expected.sequence_ids]
    assert window.aligned.words.tolist() == [-1 if one is None else one for one in expected.word_ids]
