import random

import pytest

from bundle.batching import BATCH_COST, plan_batches


@pytest.mark.parametrize("seed", range(20))
def test_every_row_once_and_no_batch_over_the_budget(seed: int) -> None:
    generator = random.Random(seed)
    lengths = [generator.randint(1, 600) for _ in range(generator.randint(0, 300))]
    batches = plan_batches(lengths, budget=512)
    assert sorted(row for rows in batches for row in rows) == list(range(len(lengths)))
    for rows in batches:
        longest = max(lengths[row] for row in rows)
        assert len(rows) == 1 or len(rows) * longest <= 512


def test_equal_lengths_fill_the_budget() -> None:
    assert [len(rows) for rows in plan_batches([16] * 100, budget=512)] == [32, 32, 32, 4]


def test_padding_never_costs_more_than_another_batch() -> None:
    lengths = [8] * 10 + [8 + BATCH_COST]
    assert len(plan_batches(lengths, budget=4096)) == 2
    assert len(plan_batches([8, 8 + BATCH_COST], budget=4096)) == 1


def test_no_rows_no_batches() -> None:
    assert plan_batches([]) == []
