"""Labelled splits, checked row by row before anything is trained on them."""

import dataclasses
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.reading import format_of, read_file, read_hub
from finetune.recipe import DataSection, Recipe
from finetune.rows import Columns, Problem, Table
from tasks.base import Example, Gold, Task, TaskSpec
from tasks.catalogue import TASKS, load_task
from tasks.errors import DataError
from tasks.inputs import Input

__all__ = ["LabelledData", "PlacedRow", "Split", "load_data", "read_training_rows", "strata", "stratified_split"]

_LISTED_PROBLEMS = 10


@dataclass(frozen=True)
class Split:
    """Rows of one purpose; `inputs` and `golds` are of equal length."""

    name: str
    inputs: list[Input]
    golds: list[Gold]

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class LabelledData:
    """All rows of a recipe.

    Attributes:
        train, validation, test: the splits.
        spec: the task that they are rows of.
        fingerprint: hex SHA-256 over the rows of each split, their order, and the labels.
    """

    train: Split
    validation: Split
    test: Split
    spec: TaskSpec
    fingerprint: str

    @property
    def splits(self) -> tuple[Split, Split, Split]:
        """Train, validation, test."""
        return self.train, self.validation, self.test


@dataclass(frozen=True, slots=True)
class PlacedRow:
    """A good row.

    Attributes:
        place: `file:line`.
        values: by the fields of the task.
        example: what the task reads in them.
    """

    place: str
    values: dict[str, Any]
    example: Example


def load_data(recipe: Recipe, *, spec: TaskSpec | None = None) -> LabelledData:
    """Reads and checks the rows of a recipe.

    Args:
        recipe: with absolute paths.
        spec: of a checkpoint, which the rows must fit; made from the training rows when None.

    Raises:
        DataError: if a file is missing, empty or lacks a column; or, with the first ten of them by file and line and
            their number, if rows are broken, lack a text or a label, or have an unknown label.
    """
    data, task = recipe.data, TASKS[recipe.task]
    sources = {"train": data.train, "validation": data.validation, "test": data.test}
    read: dict[str, list[PlacedRow]] = {}
    problems: list[Problem] = []
    for name, source in sources.items():
        if source is not None:
            read[name], found = _examples(_read(data, source, task), task, recipe)
            problems += found
    _raise_if_any(problems)
    made = spec or _spec(read["train"], task, recipe)
    remedy = "expected one that the checkpoint knows" if spec else _remedy(recipe)
    _raise_if_any([problem for rows in read.values() for problem in _unknown(rows, load_task(made), remedy)])
    if "validation" not in read:
        read["train"], read["validation"] = _cut_validation(read["train"], task, recipe)
    splits = {name: _split(name, rows) for name, rows in read.items()}
    return LabelledData(**splits, spec=made, fingerprint=_fingerprint(splits, made.labels))


def read_training_rows(recipe: Recipe) -> list[PlacedRow]:
    """The rows of `data.train`, before any validation rows are cut from them.

    Args:
        recipe: with absolute paths.

    Raises:
        DataError: as `load_data`.
    """
    task = TASKS[recipe.task]
    rows, problems = _examples(_read(recipe.data, recipe.data.train, task), task, recipe)
    _raise_if_any(problems)
    return rows


def stratified_split(strata: Sequence[str], groups: Sequence[Hashable | None], fraction: float, seed: int) -> list[int]:
    """Chooses rows for validation, each stratum in proportion, by largest remainder.

    A group goes as a whole, with the stratum of its first row; a stratum keeps at least one group or row.

    Args:
        strata: of each row.
        groups: of each row; None for a row of its own.
        fraction: of the rows to choose.
        seed: of the draws.

    Returns:
        The chosen rows, rising; about `fraction` of all.
    """
    generator = np.random.default_rng(seed)
    units = _units(strata, groups)
    names = sorted(units)
    sizes = np.array([sum(map(len, units[name])) for name in names])
    exact = sizes * fraction
    quota = np.floor(exact).astype(int)
    wanted = max(1, round(len(strata) * fraction)) - int(quota.sum())
    # ties among equal remainders are drawn, else the labels early in the alphabet would always win
    order = np.lexsort((generator.random(len(names)), -(exact - quota)))
    room = sizes - np.array([min(map(len, units[name])) for name in names])
    quota = np.minimum(quota, room)
    for index in [index for index in order if quota[index] < room[index]][: max(0, wanted)]:
        quota[index] += 1
    chosen: list[int] = []
    for name, count in zip(names, quota, strict=True):
        drawn = [units[name][index] for index in generator.permutation(len(units[name]))]
        chosen += _filled(drawn[:-1], int(count))
    return sorted(chosen)


def _units(strata: Sequence[str], groups: Sequence[Hashable | None]) -> dict[str, list[list[int]]]:
    """The rows that go together, by stratum."""
    units: dict[str, list[list[int]]] = defaultdict(list)
    known: dict[Hashable, list[int]] = {}
    for row, (stratum, group) in enumerate(zip(strata, groups, strict=True)):
        if group is not None and group in known:
            known[group].append(row)
            continue
        unit = [row]
        units[stratum].append(unit)
        if group is not None:
            known[group] = unit
    return units


def _filled(units: Sequence[list[int]], quota: int) -> list[int]:
    """The rows of the units that bring the number of rows nearest to the quota, taken in turn."""
    chosen: list[int] = []
    for unit in units:
        if len(unit) < 2 * (quota - len(chosen)):
            chosen += unit
    return chosen


def _read(data: DataSection, source: str, task: type[Task]) -> Table:
    columns = Columns(task.fields, data.columns)
    if data.hub is not None:
        return read_hub(data.hub, data.hub_config, source, columns)
    path = Path(source)
    return read_file(path, data.format or format_of(path), columns)


def _examples(table: Table, task: type[Task], recipe: Recipe) -> tuple[list[PlacedRow], list[Problem]]:
    good, problems, options = [], list(table.problems), recipe.task_options
    for row in table.rows:
        try:
            good.append(PlacedRow(row.place, row.values, task.read_row(row.values, options)))
        except DataError as error:
            problems.append(Problem(row.place, str(error)))
    return good, problems


def _spec(rows: Sequence[PlacedRow], task: type[Task], recipe: Recipe) -> TaskSpec:
    golds = [row.example.gold for row in rows]
    try:
        return task.make_spec(golds, labels=recipe.labels, max_length=recipe.max_length, options=recipe.task_options)
    except DataError as error:
        raise DataError(f"{recipe.data.train}: {error}") from None


def _unknown(rows: Sequence[PlacedRow], task: Task, remedy: str) -> Iterator[Problem]:
    for row in rows:
        try:
            task.check(row.example.gold)
        except DataError as error:
            yield Problem(row.place, f"{error}; {remedy}")


def _remedy(recipe: Recipe) -> str:
    if recipe.labels:
        return "expected one of the recipe's labels"
    return "expected one of the training labels, or list it in the recipe's labels"


def _raise_if_any(problems: Sequence[Problem]) -> None:
    if not problems:
        return
    count = len(problems)
    shown = "" if count <= _LISTED_PROBLEMS else f"; the first {_LISTED_PROBLEMS}"
    head = f"{count} bad row{'s' if count > 1 else ''}{shown}:"
    raise DataError("\n".join([head, *(f"  {problem}" for problem in problems[:_LISTED_PROBLEMS])]))


def _split(name: str, rows: Sequence[PlacedRow]) -> Split:
    return Split(name, [row.example.input for row in rows], [row.example.gold for row in rows])


def _cut_validation(
    rows: Sequence[PlacedRow], task: type[Task], recipe: Recipe
) -> tuple[list[PlacedRow], list[PlacedRow]]:
    groups = [task.group(row.example.input) for row in rows]
    rarest = strata([task.names(row.example.gold) for row in rows])
    chosen = set(stratified_split(rarest, groups, recipe.data.validation_fraction, recipe.seed))
    if not chosen:
        raise DataError(
            f"{recipe.data.train}: no row to spare for validation, each label has one; expected more rows, "
            "or data.validation"
        )
    kept = [row for index, row in enumerate(rows) if index not in chosen]
    return kept, [rows[index] for index in sorted(chosen)]


def strata(names: Sequence[tuple[str, ...]]) -> list[str]:
    """What rows are spread evenly by: the rarest label of each row; rows without one are a stratum too."""
    counts = Counter(name for row in names for name in row)
    return [min(row, key=lambda name: (counts[name], name), default="") for row in names]


def _fingerprint(splits: Mapping[str, Split], labels: Sequence[str]) -> str:
    total = hashlib.sha256(json.dumps(list(labels)).encode())
    for name in sorted(splits):
        split = splits[name]
        total.update(f"\n{name} {len(split)}\n".encode())
        for row in zip(split.inputs, split.golds, strict=True):
            total.update(json.dumps(row, default=dataclasses.asdict).encode() + b"\n")
    return total.hexdigest()
