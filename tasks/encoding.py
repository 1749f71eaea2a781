"""Text to arrays: the one tokenization that training, calibration, parity and serving share."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding
from tokenizers import Tokenizer as _Tokenizer

from tasks.errors import InputError, ParitybitError
from tasks.windows import Cut, head

__all__ = ["Alignment", "FloatArray", "IntArray", "Texts", "Tokenizer", "Window", "collate", "without_padding"]

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

Texts = tuple[str, str | None]
"""A text and, where there is one, the text that is read together with it."""

FIRST, SECOND = 0, 1


@dataclass(frozen=True, slots=True)
class Alignment:
    """Where the tokens of a window come from.

    Attributes:
        source: 0 for a token of the first text, 1 for one of the second, -1 for a special token, shape `[tokens]`.
        offsets: begin and end of each token in its text, in characters, `[0, 0]` for a special token, shape
            `[tokens, 2]`.
        words: number of the pre-tokenizer's word that a token belongs to, rising in each text, -1 for a special token,
            shape `[tokens]`.
        positions: place of each token in the whole input before any cut, shape `[tokens]`.
    """

    source: IntArray
    offsets: IntArray
    words: IntArray
    positions: IntArray


@dataclass(frozen=True, slots=True)
class Window:
    """One row of model input, without padding.

    Attributes:
        row: index of the input that this window was cut from; an input may give several windows, one after another.
        input_ids: token ids, int64, shape `[tokens]`.
        token_type_ids: 0 for the first text, 1 for the second, int64, shape `[tokens]`.
        truncated: whether tokens of the input stand in none of its windows.
        alignment: only where it was asked for.
    """

    row: int
    input_ids: IntArray
    token_type_ids: IntArray
    truncated: bool
    alignment: Alignment | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def aligned(self) -> Alignment:
        """The alignment of a window that was made with one."""
        assert self.alignment is not None, "encoded without alignment"
        return self.alignment


class Tokenizer:
    """A `tokenizer.json` whose texts are cut to windows of at most `max_length` tokens.

    Padding and truncation stored in the file are ignored: both are ours to decide, per batch and per task.
    """

    def __init__(self, path: Path, max_length: int, pad_id: int = 0) -> None:
        """Reads the tokenizer.

        Args:
            path: a `tokenizer.json` of the tokenizers library.
            max_length: longest window in tokens, special tokens included.
            pad_id: id of the padding token.

        Raises:
            ParitybitError: if the file cannot be read or `max_length` leaves no room for text.
        """
        self.max_length = max_length
        self.pad_id = pad_id
        self._tokenizer = _read_tokenizer(path)
        if max_length <= self._tokenizer.num_special_tokens_to_add(is_pair=True):
            raise ParitybitError(f"max_length {max_length} leaves no room for text beside the special tokens")

    def encode(self, rows: Sequence[Texts], cut: Cut = head, *, aligned: bool = False) -> list[Window]:
        """The windows of each row, in order.

        Args:
            rows: the texts.
            cut: decides which tokens of a row longer than `max_length` stand in which window.
            aligned: whether the windows know where their tokens come from.

        Raises:
            InputError: if a text is not valid Unicode (lone surrogates) or cannot be cut, with its position.
        """
        windows: list[Window] = []
        for row, encoding in enumerate(self._encode_batch(rows)):
            if len(encoding) <= self.max_length:
                alignment = _alignment(encoding) if aligned else None
                windows.append(Window(row, _array(encoding.ids), _array(encoding.type_ids), False, alignment))
                continue
            try:
                windows += self._cut(row, encoding, cut, aligned)
            except InputError as error:
                raise InputError(f"input {row}: {error}") from None
        return windows

    def lengths(self, rows: Sequence[Texts]) -> IntArray:
        """Tokens of each row before any cut, special tokens included; shape `[rows]`."""
        return np.array([len(encoding) for encoding in self._encode_batch(rows)], dtype=np.int64)

    def _cut(self, row: int, encoding: Encoding, cut: Cut, aligned: bool) -> list[Window]:
        whole = _alignment(encoding)
        ids, types = _array(encoding.ids), _array(encoding.type_ids)
        special, first, second = (np.flatnonzero(whole.source == source) for source in (-1, FIRST, SECOND))
        kept = [
            np.sort(np.concatenate([special, first[of_first], second[of_second]]))
            for of_first, of_second in cut(len(first), len(second), self.max_length - len(special))
        ]
        truncated = len(np.unique(np.concatenate(kept))) < len(ids)
        return [
            Window(row, ids[chosen], types[chosen], truncated, _part(whole, chosen) if aligned else None)
            for chosen in kept
        ]

    def _encode_batch(self, rows: Sequence[Texts]) -> list[Encoding]:
        try:
            return self._tokenizer.encode_batch([text if pair is None else (text, pair) for text, pair in rows])
        except (TypeError, UnicodeEncodeError):
            raise InputError(_first_bad_row(rows)) from None


def collate(windows: Sequence[Window], pad_id: int) -> dict[str, IntArray]:
    """Pads windows to the longest of them.

    Returns:
        `input_ids`, `attention_mask` (1 for text, 0 for padding) and `token_type_ids`, int64, shape `[batch, tokens]`.
    """
    shape = (len(windows), max(map(len, windows)))
    batch = {
        "input_ids": np.full(shape, pad_id, dtype=np.int64),
        "attention_mask": np.zeros(shape, dtype=np.int64),
        "token_type_ids": np.zeros(shape, dtype=np.int64),
    }
    for row, window in enumerate(windows):
        batch["input_ids"][row, : len(window)] = window.input_ids
        batch["attention_mask"][row, : len(window)] = 1
        batch["token_type_ids"][row, : len(window)] = window.token_type_ids
    return batch


def without_padding(outputs: FloatArray, windows: Sequence[Window]) -> list[FloatArray]:
    """The outputs of each window of a collated batch, those of padding left out.

    Args:
        outputs: float32, shape `[batch, labels]`, or `[batch, tokens, labels]` of a model that answers each token.
        windows: of the batch, in order.

    Returns:
        One array a window, shape `[labels]` or `[tokens of the window, labels]`.
    """
    if outputs.ndim == 2:
        return list(outputs)
    return [output[: len(window)] for output, window in zip(outputs, windows, strict=True)]


def _alignment(encoding: Encoding) -> Alignment:
    return Alignment(
        source=_array([-1 if source is None else source for source in encoding.sequence_ids]),
        offsets=np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2),
        words=_array([-1 if word is None else word for word in encoding.word_ids]),
        positions=np.arange(len(encoding), dtype=np.int64),
    )


def _part(whole: Alignment, chosen: IntArray) -> Alignment:
    return Alignment(whole.source[chosen], whole.offsets[chosen], whole.words[chosen], whole.positions[chosen])


def _array(values: Sequence[int]) -> IntArray:
    return np.array(values, dtype=np.int64)


def _read_tokenizer(path: Path) -> _Tokenizer:
    try:
        tokenizer = _Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for a missing or malformed file
        raise ParitybitError(f"{path}: not a readable tokenizer.json: {error}") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _first_bad_row(rows: Sequence[Texts]) -> str:
    for position, texts in enumerate(rows):
        for text in texts:
            if text is None:
                continue
            if not isinstance(text, str):
                return f"input {position}: expected a text, got {type(text).__name__}"
            try:
                text.encode("utf-8")
            except UnicodeEncodeError:
                return f"input {position}: expected Unicode text, got a lone surrogate"
    return "an input could not be tokenized"
