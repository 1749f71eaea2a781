"""What a person should know about the data before training on it."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.data import LabelledData, Split
from tasks.base import Task
from tasks.encoding import Tokenizer, Window
from tasks.errors import InputError
from tasks.inputs import Input

__all__ = ["DataReport", "SplitReport", "data_report"]

_RARE = 10
"""Training rows below which a label is named as rare."""

_FEW = 10
"""Labels up to which each is shown with its rows."""


@dataclass(frozen=True, slots=True)
class SplitReport:
    """One split.

    Attributes:
        rows: how many there are.
        duplicates: rows whose input stands earlier in the same split.
        tokens: length percentiles before any cut, special tokens included: p50, p90, p99, max.
        truncated_rows: rows of which tokens are left out.
        truncated_share: the same as a share of the rows.
        windowed_rows: rows that are read in several windows.
    """

    rows: int
    duplicates: int
    tokens: dict[str, int]
    truncated_rows: int
    truncated_share: float
    windowed_rows: int


@dataclass(frozen=True, slots=True)
class DataReport:
    """All splits.

    Attributes:
        splits: by name.
        max_length: of a window, in tokens.
        label_rows: for each label, the training rows that carry it; empty where a task's rows carry none.
        train_and_validation: validation rows whose input stands in train too.
        train_and_test: test rows whose input stands in train too.
        labels_missing_from_test: these are never measured.
    """

    splits: dict[str, SplitReport]
    max_length: int
    label_rows: dict[str, int]
    train_and_validation: int
    train_and_test: int
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
        return "\n".join([*lines, *self._window_remarks(), *self._label_remarks(), *self._overlap_remarks()])

    def _window_remarks(self) -> list[str]:
        windowed = [(name, split.windowed_rows) for name, split in self.splits.items() if split.windowed_rows]
        return [f"{count} {name} rows are read in several windows" for name, count in windowed]

    def _label_remarks(self) -> list[str]:
        if not self.label_rows:
            return []
        remarks = [f"training rows of each label: {_spread(self.label_rows)}"]
        rare = [f"{label} ({count})" for label, count in self.label_rows.items() if 0 < count < _RARE]
        missing = [label for label, count in self.label_rows.items() if not count]
        if rare:
            remarks.append(f"labels with fewer than {_RARE} training rows: {_listed(rare)}")
        if missing:
            remarks.append(f"labels without training rows: {_listed(missing)}")
        if self.labels_missing_from_test:
            remarks.append(f"labels without test rows: {_listed(self.labels_missing_from_test)}")
        return remarks

    def _overlap_remarks(self) -> list[str]:
        counts = {"validation": self.train_and_validation, "test": self.train_and_test}
        return [f"{count} {other} rows stand in train too" for other, count in counts.items() if count]


def data_report(data: LabelledData, task: Task, tokenizer: Tokenizer) -> DataReport:
    """Counts, lengths, duplicates and overlaps of the data.

    Raises:
        InputError: if the task cannot cut a row to windows, with its number in the split.
    """
    counts = {split.name: _count_names(split, task) for split in data.splits}
    labels = _labels(counts, task)
    in_train = set(data.train.inputs)
    return DataReport(
        splits={split.name: _split_report(split, task, tokenizer) for split in data.splits},
        max_length=tokenizer.max_length,
        label_rows={label: counts["train"][label] for label in labels},
        train_and_validation=_overlap(in_train, data.validation),
        train_and_test=_overlap(in_train, data.test),
        labels_missing_from_test=tuple(label for label in labels if not counts["test"][label]),
    )


def _count_names(split: Split, task: Task) -> Counter[str]:
    return Counter(name for gold in split.golds for name in task.names(gold))


def _labels(counts: dict[str, Counter[str]], task: Task) -> list[str]:
    names = sorted({name for count in counts.values() for name in count})
    # the labels of a model that answers each token are tags, not what its rows carry
    return list(task.spec.labels) if names and set(names) <= set(task.spec.labels) else names


def _split_report(split: Split, task: Task, tokenizer: Tokenizer) -> SplitReport:
    lengths = tokenizer.lengths([task.texts(one) for one in split.inputs])
    # only these can need a cut
    long = [_windows(split, int(row), task, tokenizer) for row in np.flatnonzero(lengths > tokenizer.max_length)]
    truncated = sum(windows[0].truncated for windows in long)
    return SplitReport(
        rows=len(split),
        duplicates=len(split) - len(set(split.inputs)),
        tokens={f"p{p}": int(np.percentile(lengths, p)) for p in (50, 90, 99)} | {"max": int(lengths.max())},
        truncated_rows=truncated,
        truncated_share=truncated / len(split),
        windowed_rows=sum(len(windows) > 1 for windows in long),
    )


def _windows(split: Split, row: int, task: Task, tokenizer: Tokenizer) -> Sequence[Window]:
    try:
        return task.encode(tokenizer, [split.inputs[row]]).windows
    except InputError as error:
        reason = str(error).removeprefix("input 0: ")
        raise InputError(f"row {row + 1} of the {split.name} rows: {reason}") from None


def _overlap(inputs: set[Input], split: Split) -> int:
    return sum(one in inputs for one in split.inputs)


def _spread(rows: dict[str, int]) -> str:
    if len(rows) <= _FEW:
        return ", ".join(f"{label} {count}" for label, count in rows.items())
    counts = list(rows.values())
    return f"{min(counts)} to {max(counts)}, median {np.median(counts):g}, of {len(rows)} labels"


def _listed(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (f", and {len(names) - most} more" if len(names) > most else "")
