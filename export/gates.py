"""Gates: each a measured value held against its limit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]

__all__ = ["Gate", "Interval", "at_least", "at_most", "bootstrap_interval", "failed"]


@dataclass(frozen=True, slots=True)
class Gate:
    """One limit and what was measured."""

    name: str
    relation: Literal["<=", ">="]
    limit: float
    value: float
    passed: bool

    def __str__(self) -> str:
        return f"{self.name} {self.value:.6g}, limit {self.relation} {self.limit:.6g}"


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with the bounds of its bootstrap interval."""

    value: float
    low: float
    high: float


def at_most(name: str, value: float, limit: float) -> Gate:
    """A gate that passes when value ≤ limit; NaN never passes."""
    return Gate(name, "<=", limit, value, bool(value <= limit))


def at_least(name: str, value: float, limit: float) -> Gate:
    """A gate that passes when value ≥ limit; NaN never passes."""
    return Gate(name, ">=", limit, value, bool(value >= limit))


def failed(gates: Sequence[Gate]) -> list[Gate]:
    """Those that did not pass."""
    return [gate for gate in gates if not gate.passed]


def bootstrap_interval(
    score: Callable[[Rows], float], rows: int, seed: int, level: float = 0.95, resamples: int = 1000
) -> Interval:
    """Percentile bootstrap interval of a figure over rows (Efron & Tibshirani 1993).

    Args:
        score: the figure of some rows, given by their numbers; for a paired comparison, a difference of two figures.
        rows: how many there are.
        seed: of the resampling.
        level: share of resampled figures within the bounds.
        resamples: how many times the rows are drawn again.
    """
    generator = np.random.default_rng(seed)
    values = [score(generator.integers(0, rows, rows)) for _ in range(resamples)]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(score(np.arange(rows)), float(low), float(high))
