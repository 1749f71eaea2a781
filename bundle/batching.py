"""Which rows share a micro-batch: similar lengths, bounded in tokens."""

from collections.abc import Sequence

__all__ = ["TOKEN_BUDGET", "plan_batches"]

TOKEN_BUDGET = 1024
"""Padded tokens in a micro-batch at most; past it a batch gains nothing on CPU (benchmarks/LOG.md)."""

BATCH_COST = 12
"""What one more run of the engine costs, in tokens; padding beyond it is dearer than another batch (LOG.md)."""


def plan_batches(lengths: Sequence[int], budget: int = TOKEN_BUDGET, cost: int = BATCH_COST) -> list[list[int]]:
    """Cuts rows into micro-batches, shortest rows first.

    A row joins the batch before it unless its batch would pass the budget, or padding the others up to it would cost
    more than a run of its own. A row longer than the budget is a batch of one.

    Args:
        lengths: tokens of each row.
        budget: padded tokens of a batch, rows × longest, at most.
        cost: what one more run costs, in tokens.

    Returns:
        Row numbers of each batch; every row stands in exactly one.
    """
    batches: list[list[int]] = []
    longest = 0
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        length = lengths[row]
        current = batches[-1] if batches else []
        fits = (len(current) + 1) * length <= budget
        if current and fits and len(current) * (length - longest) <= cost:
            current.append(row)
        else:
            batches.append([row])
        longest = length
    return batches
