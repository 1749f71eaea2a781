"""Rows with the place they came from, and the columns that a task's fields stand in."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.base import Fields
from tasks.errors import DataError

__all__ = ["Columns", "Problem", "Row", "Table", "table_of"]

_OTHER_NAMES = {"words": ("words", "tokens"), "tags": ("tags", "ner_tags")}
"""Columns that a field is looked for in, where published data sets do not call them by the field's name."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row, its values by the fields of the task; None where a value is missing."""

    place: str
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one row; `place` is `file:line`."""

    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Table:
    """What a file gave: its readable rows, and what is wrong with the others."""

    rows: list[Row]
    problems: list[Problem]


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns that a recipe wants.

    Attributes:
        forms: what the rows of the task may look like.
        named: the column of a field, where the recipe names it. Optional fields are read only then: a stray column
            must not change what a model reads.
    """

    forms: tuple[Fields, ...]
    named: Mapping[str, str]

    @property
    def possible(self) -> list[Fields]:
        """The forms that have all the fields that the recipe names."""
        return [form for form in self.forms if set(self.named) <= {*form.required, *form.optional}]

    def find(
        self, place: str, found: Sequence[str], defaults: Mapping[str, Sequence[str]] = _OTHER_NAMES
    ) -> dict[str, str]:
        """The column of each field, of the first form that is there as a whole.

        Args:
            place: of the file, for the error.
            found: its columns.
            defaults: columns of fields that the recipe does not name, most likely first; else the field's name.

        Raises:
            DataError: naming the columns that are missing and those found.
        """
        chosen = [self._choose(form, found, defaults) for form in self.possible]
        for columns in chosen:
            if set(columns.values()) <= set(found):
                return columns
        missing = [column for column in chosen[0].values() if column not in found]
        others = "".join(f" (or else {_listed(columns.values())})" for columns in chosen[1:])
        raise DataError(f"{place}: no column {_listed(missing)}{others}; found {_listed(found)}")

    def wanted(self) -> str:
        """The columns of the usual form, for messages."""
        return _listed(self._choose(self.possible[0], (), {}).values())

    def clash(self) -> str | None:
        """The column that two fields would share in every possible form."""
        shared = [_first_repeated(self._choose(form, (), {}).values()) for form in self.possible]
        return shared[0] if shared and all(shared) else None

    def _choose(self, form: Fields, found: Sequence[str], defaults: Mapping[str, Sequence[str]]) -> dict[str, str]:
        fields = [*form.required, *(name for name in form.optional if name in self.named)]
        chosen = {}
        for field in fields:
            likely = defaults.get(field, (field,))
            chosen[field] = self.named.get(field) or next((name for name in likely if name in found), likely[0])
        return chosen


def table_of(
    place: str, entries: Sequence[tuple[str, Mapping[str, Any]]], columns: Columns, problems: list[Problem]
) -> Table:
    """A table of JSON objects, each with its place.

    Raises:
        DataError: if no object has a wanted column.
    """
    if not entries:
        return Table([], problems)
    found = list(dict.fromkeys(key for _, entry in entries for key in entry))
    chosen = columns.find(place, found)
    rows = [Row(where, {field: entry.get(column) for field, column in chosen.items()}) for where, entry in entries]
    return Table(rows, problems)


def _first_repeated(names: Iterable[str]) -> str | None:
    listed = list(names)
    return next((name for name in listed if listed.count(name) > 1), None)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"
