"""Bars for what takes long: so many of so many done, on a terminal only.

How many ways to int8 the ladder tries is not known before, so there is no bar over the whole export; every step has
its own, and what it counts costs about the same each: batches of equal tokens, calibration rows, timed passes.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

__all__ = ["bar", "steps"]


def bar(description: str) -> Callable[[Iterable[Any]], Any]:
    """Wraps an iteration."""
    return lambda items: tqdm(items, desc=description, leave=False, disable=None)


@contextmanager
def steps(description: str) -> Iterator[Callable[[int, int], None]]:
    """Yields what is to be told how many of how many are done."""
    with tqdm(total=1, desc=description, unit="step", leave=False, disable=None) as shown:

        def advance(done: int, total: int) -> None:
            shown.total = total
            shown.update(done - shown.n)

        yield advance
