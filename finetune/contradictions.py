"""Combinations in a recipe that make no sense, each as `key: found …; expected …`.

They are looked for in what was read from the file, which may have any other problem too.
"""

import json
from collections.abc import Iterator
from typing import Any

from finetune.rows import Columns
from tasks.base import Task

__all__ = ["data_contradictions", "task_contradictions"]


def data_contradictions(raw: dict[str, Any]) -> Iterator[str]:
    """Keys of `[data]` that exclude each other. Not for a stored recipe, which has every default filled in."""
    data = _section(raw, "data")
    if "hub" in data and "format" in data:
        yield "data.format: found together with data.hub; expected without it, a hub data set knows its format"
    if "hub_config" in data and "hub" not in data:
        yield "data.hub_config: found without data.hub; expected together with it"
    if "validation" in data and "validation_fraction" in data:
        yield "data.validation_fraction: found together with data.validation; expected one of the two"
    for left, right in [("train", "test"), ("train", "validation"), ("validation", "test")]:
        if left in data and data[left] == data.get(right):
            yield f"data.{right}: found the same as data.{left}; expected other rows"


def task_contradictions(raw: dict[str, Any], task: type[Task]) -> Iterator[str]:
    """Labels and columns that the task cannot have."""
    yield from _of_labels(raw.get("labels"), task)
    named = _section(_section(raw, "data"), "columns")
    yield from _of_columns({field: column for field, column in named.items() if isinstance(column, str)}, task)


def _of_labels(labels: Any, task: type[Task]) -> Iterator[str]:
    if not isinstance(labels, list):
        return
    if not task.takes_labels:
        found = json.dumps(labels, ensure_ascii=False)
        yield f"labels: found {found}; expected none, {task.name} has no labels to name"
    repeated = sorted({str(label) for label in labels if labels.count(label) > 1})
    if repeated:
        yield f"labels: found {', '.join(repeated)} more than once; expected each label once"


def _of_columns(named: dict[str, str], task: type[Task]) -> Iterator[str]:
    kinds = [(*form.required, *form.optional) for form in task.fields]
    fields = list(dict.fromkeys(field for kind in kinds for field in kind))
    unknown = [field for field in named if field not in fields]
    for field in unknown:
        yield f"data.columns.{field}: unknown field (found {named[field]!r}); expected one of {', '.join(fields)}"
    columns = Columns(task.fields, named)
    if not unknown and not columns.possible:
        expected = "; or ".join(", ".join(kind) for kind in kinds)
        yield f"data.columns: found {', '.join(named)}; expected fields of one kind of row: {expected}"
    if shared := columns.clash():
        yield f"data.columns: found the column {shared!r} for two fields; expected a column of its own for each"


def _section(raw: dict[str, Any], name: str) -> dict[str, Any]:
    section = raw.get(name)
    return section if isinstance(section, dict) else {}
