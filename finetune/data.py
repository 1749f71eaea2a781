"""Labelled splits, checked row by row before anything is trained on them."""

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.reading import Problem, Row, Table, format_of, read_file, read_hub
from finetune.recipe import DataSection
from tasks.encoding import TextInput
from tasks.errors import DataError

__all__ = ["LabelledData", "Split", "load_data", "stratified_split"]

_LISTED_PROBLEMS = 10


@dataclass(frozen=True)
class Split:
    """Rows of one purpose; `inputs` and `labels` are of equal length."""

    name: str
    inputs: list[TextInput]
    labels: list[str]

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class LabelledData:
    """All rows of a recipe.

    Attributes:
        train, validation, test: the splits.
        labels: in the order of their ids.
        fingerprint: hex SHA-256 over the rows of each split, their order, and the labels.
    """

    train: Split
    validation: Split
    test: Split
    labels: tuple[str, ...]
    fingerprint: str

    @property
    def splits(self) -> tuple[Split, Split, Split]:
        """Train, validation, test."""
        return self.train, self.validation, self.test


@dataclass(frozen=True, slots=True)
class _Labelled:
    place: str
    input: TextInput
    label: str


def load_data(data: DataSection, *, seed: int, labels: tuple[str, ...] | None) -> LabelledData:
    """Reads and checks the rows of a recipe.

    Args:
        data: the section of the recipe, with absolute paths.
        seed: of the stratified split, when validation is missing.
        labels: their order; sorted from the training rows when None.

    Raises:
        DataError: if a file is missing, empty or lacks a column; or, with the first ten of them by file and line and
            their number, if rows are broken, lack a text or a label, or have an unknown label.
    """
    sources = {"train": data.train, "validation": data.validation, "test": data.test}
    problems: list[Problem] = []
    read: dict[str, list[_Labelled]] = {}
    for name, source in sources.items():
        if source is not None:
            table = _read(data, source)
            read[name], found = _checked(table, has_pair=data.text_pair_column is not None)
            problems += found
    known = labels or _sorted_labels({row.label for row in read["train"]})
    problems += [problem for rows in read.values() for problem in _unknown_labels(rows, known)]
    if problems:
        raise DataError(_listing(problems))
    if len(known) < 2:
        raise DataError(f"{data.train}: one label only, {known[0]!r}; expected at least two")
    if "validation" not in read:
        read["train"], read["validation"] = _cut_validation(read["train"], data, seed)
    splits = {name: _split(name, rows) for name, rows in read.items()}
    return LabelledData(**splits, labels=known, fingerprint=_fingerprint(splits, known))


def stratified_split(labels: Sequence[str], fraction: float, seed: int) -> list[int]:
    """Chooses rows for validation, each label in proportion, by largest remainder.

    A label keeps at least one training row.

    Returns:
        The chosen rows, rising; about `fraction` of all.
    """
    generator = np.random.default_rng(seed)
    by_label: dict[str, list[int]] = defaultdict(list)
    for row, label in enumerate(labels):
        by_label[label].append(row)
    names = sorted(by_label)
    exact = np.array([len(by_label[name]) * fraction for name in names])
    quota = np.floor(exact).astype(int)
    wanted = max(1, round(len(labels) * fraction)) - int(quota.sum())
    # ties among equal remainders are drawn, else the labels early in the alphabet would always win
    order = np.lexsort((generator.random(len(names)), -(exact - quota)))
    room = np.array([len(by_label[name]) - 1 for name in names])
    quota = np.minimum(quota, room)
    for index in [index for index in order if quota[index] < room[index]][: max(0, wanted)]:
        quota[index] += 1
    chosen: list[int] = []
    for name, count in zip(names, quota, strict=True):
        chosen.extend(generator.permutation(by_label[name])[:count].tolist())
    return sorted(chosen)


def _read(data: DataSection, source: str) -> Table:
    columns = [data.text_column, data.label_column]
    if data.text_pair_column is not None:
        columns.append(data.text_pair_column)
    if data.hub is not None:
        return read_hub(data.hub, data.hub_config, source, columns)
    path = Path(source)
    return read_file(path, data.format or format_of(path), columns)


def _split(name: str, rows: Sequence[_Labelled]) -> Split:
    return Split(name, [row.input for row in rows], [row.label for row in rows])


def _checked(table: Table, has_pair: bool) -> tuple[list[_Labelled], list[Problem]]:
    good, problems = [], list(table.problems)
    for row in table.rows:
        outcome = _labelled(row, has_pair)
        if isinstance(outcome, Problem):
            problems.append(outcome)
        else:
            good.append(outcome)
    return good, problems


def _labelled(row: Row, has_pair: bool) -> _Labelled | Problem:
    text, label, *pair = row.values
    wrong = _text_problem("text", text) or (_text_problem("text pair", pair[0]) if has_pair else None)
    name = _label_name(label)
    wrong = wrong or (None if name else f"no label (found {label!r})")
    if wrong or name is None:
        return Problem(row.place, wrong or "no label")
    return _Labelled(row.place, TextInput(text, pair[0] if has_pair else None), name)


def _text_problem(what: str, text: Any) -> str | None:
    if text is None:
        return f"no {what}"
    if not isinstance(text, str):
        return f"the {what} is {type(text).__name__} ({str(text)[:40]}), expected a string"
    if not text.strip():
        return f"empty {what}"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return f"the {what} holds a lone surrogate, expected Unicode text"
    return None


def _label_name(label: Any) -> str | None:
    """A label as text; None when there is none."""
    if isinstance(label, str):
        return label if label.strip() else None
    # a truth value is an int to Python, but names nothing
    is_number = isinstance(label, int | float) and not isinstance(label, bool)
    return str(label) if is_number and not math.isnan(label) else None


def _sorted_labels(labels: set[str]) -> tuple[str, ...]:
    """By number where all are whole numbers, else by name."""
    if all(re.fullmatch(r"-?\d+", label) for label in labels):
        return tuple(sorted(labels, key=int))
    return tuple(sorted(labels))


def _unknown_labels(rows: Iterable[_Labelled], known: Sequence[str]) -> list[Problem]:
    names = set(known)
    return [Problem(row.place, f"unknown label {row.label!r}") for row in rows if row.label not in names]


def _listing(problems: Sequence[Problem]) -> str:
    count = len(problems)
    shown = "" if count <= _LISTED_PROBLEMS else f"; the first {_LISTED_PROBLEMS}"
    head = f"{count} bad row{'s' if count > 1 else ''}{shown}:"
    return "\n".join([head, *(f"  {problem}" for problem in problems[:_LISTED_PROBLEMS])])


def _cut_validation(rows: list[_Labelled], data: DataSection, seed: int) -> tuple[list[_Labelled], list[_Labelled]]:
    chosen = set(stratified_split([row.label for row in rows], data.validation_fraction, seed))
    if not chosen:
        raise DataError(f"{data.train}: every label has one row; expected more, to cut validation rows from")
    kept = [row for index, row in enumerate(rows) if index not in chosen]
    return kept, [rows[index] for index in sorted(chosen)]


def _fingerprint(splits: Mapping[str, Split], labels: Sequence[str]) -> str:
    total = hashlib.sha256(json.dumps(list(labels)).encode())
    for name in sorted(splits):
        split = splits[name]
        total.update(f"\n{name} {len(split)}\n".encode())
        for one, label in zip(split.inputs, split.labels, strict=True):
            total.update(json.dumps([one.text, one.text_pair, label]).encode() + b"\n")
    return total.hexdigest()
