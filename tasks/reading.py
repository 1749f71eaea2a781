"""Cells of a data row as the values that a task wants."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from tasks.errors import DataError

__all__ = ["label_cell", "labels_cell", "number_cell", "sorted_labels", "text_cell"]


def text_cell(values: Mapping[str, Any], field: str) -> str:
    """A text that is not empty.

    Raises:
        DataError: saying what stands there instead.
    """
    text = values[field]
    what = field.replace("_", " ")
    if text is None:
        raise DataError(f"no {what}")
    if not isinstance(text, str):
        raise DataError(f"the {what} is {type(text).__name__} ({str(text)[:40]}), expected a string")
    if not text.strip():
        raise DataError(f"empty {what}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"the {what} holds a lone surrogate, expected Unicode text") from None
    return text


def label_cell(label: Any) -> str:
    """A label, given as a string or a number, as text.

    Raises:
        DataError: if there is none.
    """
    if isinstance(label, str) and label.strip():
        return label
    # a truth value is an int to Python, but names nothing
    is_number = isinstance(label, int | float) and not isinstance(label, bool)
    if is_number and not math.isnan(label):
        return str(label)
    raise DataError(f"no label (found {label!r})")


def labels_cell(labels: Any, separator: str) -> tuple[str, ...]:
    """A set of labels, sorted; nothing and an empty list are the empty set.

    Args:
        labels: a list of strings or numbers, one number, or a string that holds them all.
        separator: what stands between the labels of a string.

    Raises:
        DataError: if one is no label or stands twice.
    """
    if labels is None or (isinstance(labels, str) and not labels.strip()):
        return ()
    if isinstance(labels, str):
        labels = [part.strip() for part in labels.split(separator)]
    several = labels if isinstance(labels, list | tuple) else [labels]
    names = [label_cell(label) for label in several]
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"the label {twice!r} stands twice")
    return sorted_labels(names)


def number_cell(number: Any) -> float:
    """A finite number, or a string that spells one.

    Raises:
        DataError: saying what stands there instead.
    """
    if isinstance(number, int | float | str) and not isinstance(number, bool):
        try:
            value = float(number)
        except (ValueError, OverflowError):
            value = math.nan
        if math.isfinite(value):
            return value
    raise DataError(f"no number (found {repr(number)[:40]})")


def sorted_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """By number where all are whole numbers, else by name."""
    distinct = set(labels)
    if all(re.fullmatch(r"-?\d+", label) for label in distinct):
        return tuple(sorted(distinct, key=int))
    return tuple(sorted(distinct))
