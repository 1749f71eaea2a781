"""What a person should know about the data before training on it."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.data import LabelledData, Split
from tasks.encoding import TextInput, Tokenizer

__all__ = ["DataReport", "SplitReport", "data_report"]

_RARE = 10
"""Training rows below which a label is named as rare."""


@dataclass(frozen=True, slots=True)
class SplitReport:
    """One split.

    Attributes:
        rows: how many there are.
        duplicates: rows whose input stands earlier in the same split.
        tokens: length percentiles before any cut, special tokens included: p50, p90, p99, max.
        truncated_rows: rows longer than max_length.
        truncated_share: the same as a share of the rows.
    """

    rows: int
    duplicates: int
    tokens: dict[str, int]
    truncated_rows: int
    truncated_share: float


@dataclass(frozen=True, slots=True)
class DataReport:
    """All splits.

    Attributes:
        splits: by name.
        max_length: the cut, in tokens.
        labels: how many there are.
        label_rows: training rows of a label: min, median, max.
        rare_labels: labels with fewer than ten training rows, and how many.
        train_and_validation: validation rows whose input stands in train too.
        train_and_test: test rows whose input stands in train too.
        labels_missing_from_train: these can never be learnt.
        labels_missing_from_test: these are never measured.
    """

    splits: dict[str, SplitReport]
    max_length: int
    labels: int
    label_rows: dict[str, float]
    rare_labels: dict[str, int]
    train_and_validation: int
    train_and_test: int
    labels_missing_from_train: tuple[str, ...]
    labels_missing_from_test: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    def to_text(self) -> str:
        """For people: a table of the splits, then what is worth a look."""
        rows = [["split", "rows", "duplicates", "tokens p50", "p90", "p99", "max", f"cut at {self.max_length}"]]
        for name, split in self.splits.items():
            cut = f"{split.truncated_rows} ({split.truncated_share:.1%})"
            tokens = [str(split.tokens[key]) for key in ("p50", "p90", "p99", "max")]
            rows.append([name, str(split.rows), str(split.duplicates), *tokens, cut])
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        return "\n".join([*lines, *self._remarks()])

    def _remarks(self) -> list[str]:
        low, median, high = (self.label_rows[key] for key in ("min", "median", "max"))
        remarks = [f"{self.labels} labels; training rows of a label: {low:g} to {high:g}, median {median:g}"]
        if self.rare_labels:
            named = [f"{label} ({count})" for label, count in self.rare_labels.items()]
            remarks.append(f"labels with fewer than {_RARE} training rows: {_listed(named)}")
        if self.labels_missing_from_train:
            remarks.append(f"labels without training rows: {_listed(self.labels_missing_from_train)}")
        if self.labels_missing_from_test:
            remarks.append(f"labels without test rows: {_listed(self.labels_missing_from_test)}")
        for other, count in [("validation", self.train_and_validation), ("test", self.train_and_test)]:
            if count:
                remarks.append(f"{count} {other} rows stand in train too")
        return remarks


def data_report(data: LabelledData, tokenizer: Tokenizer) -> DataReport:
    """Counts, lengths, duplicates and overlaps of the data."""
    counts = Counter(data.train.labels)
    rows_of = [counts[label] for label in data.labels]
    in_train = set(data.train.inputs)
    in_test = set(data.test.labels)
    return DataReport(
        splits={split.name: _split_report(split, tokenizer) for split in data.splits},
        max_length=tokenizer.max_length,
        labels=len(data.labels),
        label_rows={"min": min(rows_of), "median": float(np.median(rows_of)), "max": max(rows_of)},
        rare_labels={label: counts[label] for label in data.labels if 0 < counts[label] < _RARE},
        train_and_validation=_overlap(in_train, data.validation),
        train_and_test=_overlap(in_train, data.test),
        labels_missing_from_train=tuple(label for label in data.labels if not counts[label]),
        labels_missing_from_test=tuple(label for label in data.labels if label not in in_test),
    )


def _split_report(split: Split, tokenizer: Tokenizer) -> SplitReport:
    lengths = tokenizer.lengths(split.inputs)
    cut = int((lengths > tokenizer.max_length).sum())
    return SplitReport(
        rows=len(split),
        duplicates=len(split) - len(set(split.inputs)),
        tokens={f"p{p}": int(np.percentile(lengths, p)) for p in (50, 90, 99)} | {"max": int(lengths.max())},
        truncated_rows=cut,
        truncated_share=cut / len(split),
    )


def _overlap(inputs: set[TextInput], split: Split) -> int:
    return sum(one in inputs for one in split.inputs)


def _listed(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (f", and {len(names) - most} more" if len(names) > most else "")
