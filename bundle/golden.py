"""Golden rows: inputs with the outputs that a ready server must reproduce."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks.base import FloatArray
from tasks.encoding import TextInput
from tasks.errors import BundleError

__all__ = ["GoldenRow", "read_golden", "write_golden"]


@dataclass(frozen=True, slots=True)
class GoldenRow:
    """One input and the certified model's raw output for its first window, float32."""

    input: TextInput
    output: FloatArray


def write_golden(path: Path, rows: Sequence[GoldenRow]) -> None:
    """One JSON object a line: text, text_pair (where there is one), output."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            entry: dict[str, object] = {"text": row.input.text}
            if row.input.text_pair is not None:
                entry["text_pair"] = row.input.text_pair
            entry["output"] = row.output.tolist()
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def read_golden(path: Path) -> list[GoldenRow]:
    """Reads what `write_golden` wrote.

    Raises:
        BundleError: if a line cannot be read, with its number, or there is none.
    """
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                entry = json.loads(line)
                golden = GoldenRow(
                    TextInput(entry["text"], entry.get("text_pair")), np.array(entry["output"], dtype=np.float32)
                )
            except (ValueError, KeyError, TypeError) as error:
                raise BundleError(f"{path}:{number}: not a golden row: {error}") from None
            rows.append(golden)
    if not rows:
        raise BundleError(f"{path}: holds no golden rows")
    return rows
