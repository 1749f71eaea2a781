from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from finetune.sampler import LengthGroupedSampler

BATCH = 8


def batches(lengths: list[int], *, seed: int = 1, epoch: int = 0) -> list[list[int]]:
    steps = -(-len(lengths) // BATCH)
    trainer: Any = SimpleNamespace(args=SimpleNamespace(seed=seed), state=SimpleNamespace(global_step=epoch * steps))
    rows = list(LengthGroupedSampler(trainer, lengths, BATCH))
    return [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]


@pytest.fixture(scope="module")
def lengths() -> list[int]:
    return np.random.default_rng(0).integers(3, 100, 1003).tolist()


def test_every_row_comes_once(lengths: list[int]) -> None:
    assert sorted(row for batch in batches(lengths) for row in batch) == list(range(len(lengths)))


def test_rows_of_a_batch_are_of_similar_length(lengths: list[int]) -> None:
    padded = sum(len(batch) * max(lengths[row] for row in batch) for batch in batches(lengths))
    assert padded < 1.1 * sum(lengths)


def test_batches_do_not_go_from_long_to_short(lengths: list[int]) -> None:
    means = [np.mean([lengths[row] for row in batch]) for batch in batches(lengths)]
    steps = np.diff(means)
    assert 0.3 < np.mean(steps > 0) < 0.7
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.3


def test_order_follows_from_seed_and_epoch(lengths: list[int]) -> None:
    assert batches(lengths) == batches(lengths)
    assert batches(lengths) != batches(lengths, epoch=1)
    assert batches(lengths) != batches(lengths, seed=2)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 16])
def test_few_rows_come_once_and_only_the_last_batch_is_smaller(count: int) -> None:
    found = batches(list(range(5, 5 + count)))
    assert sorted(row for batch in found for row in batch) == list(range(count))
    assert all(len(batch) == BATCH for batch in found[:-1])
