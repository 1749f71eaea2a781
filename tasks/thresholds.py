"""From which logit on a label is given."""

from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.classification import Scores

__all__ = ["best_cuts", "cautious_cuts", "f1"]

_PRIOR_ROWS = 20
"""Positive rows at which a label's own best cut and the usual one weigh the same."""


def cautious_cuts(logits: Scores, gold: npt.NDArray[np.bool_]) -> Scores:
    """The best cut of each label, drawn towards the median of all labels' the fewer positive rows it has.

    The best cut of few rows fits their noise: `n` positive rows weigh `n / (n + 20)`, and a label without any takes the
    median. Not 0.5: where scores are probabilities, the best cut lies at half of the F1 that it reaches (Lipton et al.
    2014, arXiv:1402.1892), so far below for a label that is hard to tell.

    Args:
        logits: float64, shape `[rows, labels]`.
        gold: whether the row carries the label, shape `[rows, labels]`.

    Returns:
        Float64, shape `[labels]`.
    """
    best = best_cuts(logits, gold)
    positives = gold.sum(axis=0)
    if not positives.any():
        return best
    weights = positives / (positives + _PRIOR_ROWS)
    return np.asarray(weights * best + (1 - weights) * np.median(best[positives > 0]))


def best_cuts(logits: Scores, gold: npt.NDArray[np.bool_]) -> Scores:
    """For each label the logit from which on giving it makes the best F1 on these rows.

    Tried are the midpoints between neighbouring logits; of equally good ones the nearest to 0, which is a score of 0.5,
    is taken. A label without positive rows gets 0.

    Args:
        logits: float64, shape `[rows, labels]`.
        gold: whether the row carries the label, shape `[rows, labels]`.

    Returns:
        Float64, shape `[labels]`.
    """
    order = np.argsort(-logits, axis=0)
    ranked = np.take_along_axis(logits, order, axis=0)
    cuts = (ranked + np.vstack([ranked[1:], ranked[-1:] - 1])) / 2
    hits = np.take_along_axis(gold, order, axis=0).cumsum(axis=0)
    quality = f1(hits, gold.sum(axis=0) + np.arange(1, len(gold) + 1)[:, None])
    # equal logits cannot be told apart
    quality[:-1][ranked[1:] == ranked[:-1]] = -1
    distance = np.where(quality == quality.max(axis=0), np.abs(cuts), np.inf)
    chosen = np.take_along_axis(cuts, distance.argmin(axis=0)[None], axis=0)[0]
    return np.where(gold.any(axis=0), chosen, 0.0)


def f1(hits: Any, marks: Any) -> Any:
    """F1 of the labels given rightly, and the labels given plus those wanted; 0 where there are neither.

    Args:
        hits: a number or an array.
        marks: the same.
    """
    return 2 * hits / np.maximum(marks, 1)
