"""Text to arrays: the one tokenization that training, calibration, parity and serving share."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding
from tokenizers import Tokenizer as _Tokenizer

from tasks.errors import InputError, ParitybitError

__all__ = ["IntArray", "TextInput", "Tokenizer", "Window", "collate"]

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TextInput:
    """One input of a text task: a text, or a pair of texts."""

    text: str
    text_pair: str | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """One row of model input, without padding.

    Attributes:
        row: index of the input that this window was cut from; an input may give several windows.
        input_ids: token ids, int64, shape `[tokens]`.
        token_type_ids: 0 for the first text, 1 for the second, int64, shape `[tokens]`.
        truncated: whether tokens of the input were left out.
    """

    row: int
    input_ids: IntArray
    token_type_ids: IntArray
    truncated: bool

    def __len__(self) -> int:
        return len(self.input_ids)


class Tokenizer:
    """A `tokenizer.json` that cuts at `max_length` and says so.

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
        self._cutting = _read_tokenizer(path)
        if max_length <= self._cutting.num_special_tokens_to_add(is_pair=True):
            raise ParitybitError(f"max_length {max_length} leaves no room for text beside the special tokens")
        self._cutting.enable_truncation(max_length)
        self._whole = _read_tokenizer(path)

    def encode(self, inputs: Sequence[TextInput]) -> list[Window]:
        """One window per input, cut at `max_length`; of a pair, the longer text is cut first.

        Raises:
            InputError: if a text is not valid Unicode (lone surrogates), with its position.
        """
        encodings = self._encode_batch(self._cutting, inputs)
        return [_window(row, encoding) for row, encoding in enumerate(encodings)]

    def lengths(self, inputs: Sequence[TextInput]) -> IntArray:
        """Tokens of each input before any cut, special tokens included; shape `[inputs]`."""
        return np.array([len(encoding) for encoding in self._encode_batch(self._whole, inputs)], dtype=np.int64)

    @staticmethod
    def _encode_batch(tokenizer: _Tokenizer, inputs: Sequence[TextInput]) -> list[Encoding]:
        rows = [one.text if one.text_pair is None else (one.text, one.text_pair) for one in inputs]
        try:
            return tokenizer.encode_batch(rows)
        except (TypeError, UnicodeEncodeError):
            raise InputError(_first_bad_input(inputs)) from None


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


def _window(row: int, encoding: Encoding) -> Window:
    return Window(
        row=row,
        input_ids=np.array(encoding.ids, dtype=np.int64),
        token_type_ids=np.array(encoding.type_ids, dtype=np.int64),
        truncated=bool(encoding.overflowing),
    )


def _read_tokenizer(path: Path) -> _Tokenizer:
    try:
        tokenizer = _Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for a missing or malformed file
        raise ParitybitError(f"{path}: not a readable tokenizer.json: {error}") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _first_bad_input(inputs: Sequence[TextInput]) -> str:
    for position, one in enumerate(inputs):
        for text in (one.text, one.text_pair or ""):
            if not isinstance(text, str):
                return f"input {position}: expected a text, got {type(text).__name__}"
            try:
                text.encode("utf-8")
            except UnicodeEncodeError:
                return f"input {position}: expected Unicode text, got a lone surrogate"
    return "an input could not be tokenized"
