"""Golden rows: inputs with the outputs that a ready server must reproduce."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.base import FloatArray
from tasks.errors import BundleError, InputError
from tasks.inputs import Input, input_from_json, input_to_json

__all__ = ["GoldenRow", "read_golden", "write_golden"]


@dataclass(frozen=True, slots=True)
class GoldenRow:
    """One input and the certified model's raw outputs, float32, one of each of its windows."""

    input: Input
    outputs: tuple[FloatArray, ...]


def write_golden(path: Path, rows: Sequence[GoldenRow]) -> None:
    """One JSON object a line: input, outputs."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            entry = {"input": input_to_json(row.input), "outputs": [output.tolist() for output in row.outputs]}
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def read_golden(path: Path, kinds: Sequence[type]) -> list[GoldenRow]:
    """Reads what `write_golden` wrote.

    Args:
        path: the file.
        kinds: of inputs that the task takes.

    Raises:
        BundleError: if a line cannot be read, with its number, or there is none.
    """
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                rows.append(_read_row(json.loads(line), kinds))
            except (ValueError, KeyError, TypeError, InputError) as error:
                raise BundleError(f"{path}:{number}: not a golden row: {error}") from None
    if not rows:
        raise BundleError(f"{path}: holds no golden rows")
    return rows


def _read_row(entry: Any, kinds: Sequence[type]) -> GoldenRow:
    outputs = tuple(np.array(output, dtype=np.float32) for output in entry["outputs"])
    return GoldenRow(input_from_json(entry["input"], kinds), outputs)
