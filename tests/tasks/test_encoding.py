from pathlib import Path

import numpy as np
import pytest

from tasks import TextInput, Tokenizer, collate
from tasks.errors import InputError, ParitybitError


def test_window_holds_the_whole_text_without_padding(tokenizer_file: Path) -> None:
    (window,) = Tokenizer(tokenizer_file, max_length=16).encode([TextInput("Where is my card?")])
    assert window.input_ids.tolist() == [2, 4, 5, 6, 7, 8, 3]
    assert window.token_type_ids.tolist() == [0] * 7
    assert window.input_ids.dtype == np.int64
    assert not window.truncated


def test_cut_at_max_length_is_told(tokenizer_file: Path) -> None:
    tokenizer = Tokenizer(tokenizer_file, max_length=6)
    fits, cut = tokenizer.encode([TextInput("where is my card"), TextInput("where is my lost card")])
    assert (len(fits), fits.truncated) == (6, False)
    assert (len(cut), cut.truncated) == (6, True)
    assert cut.input_ids[-1] == 3, "the closing token stays"
    assert tokenizer.lengths([TextInput("where is my lost card")]).tolist() == [7]


def test_pair_has_two_token_types_and_rows_in_order(tokenizer_file: Path) -> None:
    windows = Tokenizer(tokenizer_file, 16).encode([TextInput("card"), TextInput("my card", "is lost")])
    assert [window.row for window in windows] == [0, 1]
    assert windows[1].input_ids.tolist() == [2, 6, 7, 3, 5, 15, 3]
    assert windows[1].token_type_ids.tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_of_a_pair_the_longer_text_is_cut(tokenizer_file: Path) -> None:
    pair = TextInput("where is my lost card", "old")
    (window,) = Tokenizer(tokenizer_file, max_length=7).encode([pair])
    assert window.truncated
    assert window.token_type_ids.tolist() == [0, 0, 0, 0, 0, 1, 1]


def test_emoji_and_chinese_are_tokens(tokenizer_file: Path) -> None:
    (window,) = Tokenizer(tokenizer_file, 16).encode([TextInput("卡 😀")])
    assert window.input_ids.tolist() == [2, 16, 17, 3]


def test_collate_pads_to_the_longest(tokenizer_file: Path) -> None:
    windows = Tokenizer(tokenizer_file, 16).encode([TextInput("card"), TextInput("my lost card")])
    batch = collate(windows, pad_id=9)
    assert batch["input_ids"].tolist() == [[2, 7, 3, 9, 9], [2, 6, 15, 7, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["token_type_ids"].tolist() == [[0] * 5, [0] * 5]


def test_lone_surrogate_is_named_by_position(tokenizer_file: Path) -> None:
    with pytest.raises(InputError, match="input 1: expected Unicode text"):
        Tokenizer(tokenizer_file, 16).encode([TextInput("fine"), TextInput("broken \ud800")])


def test_max_length_must_leave_room(tokenizer_file: Path) -> None:
    with pytest.raises(ParitybitError, match="max_length 3 leaves no room"):
        Tokenizer(tokenizer_file, max_length=3)


def test_unreadable_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ParitybitError, match=r"tokenizer\.json: not a readable"):
        Tokenizer(tmp_path / "tokenizer.json", 16)
