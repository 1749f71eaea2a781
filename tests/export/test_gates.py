import numpy as np
import pytest

from export.gates import at_least, at_most, bootstrap_interval, failed


def test_limits_are_inclusive() -> None:
    assert at_most("delta", 1e-4, 1e-4).passed
    assert not at_most("delta", 1.0001e-4, 1e-4).passed
    assert at_least("agreement", 0.985, 0.985).passed
    assert not at_least("agreement", 0.9849, 0.985).passed


def test_nan_never_passes() -> None:
    gates = [at_most("delta", float("nan"), 1.0), at_least("agreement", float("nan"), 0.0)]
    assert failed(gates) == gates


def test_interval_covers_the_mean_of_a_known_distribution() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(100):
        values = generator.binomial(1, 0.9, 400)
        interval = bootstrap_interval(lambda rows, v=values: float(v[rows].mean()), 400, seed=trial, resamples=300)
        covered += interval.low <= 0.9 <= interval.high
    assert 88 <= covered <= 100


def test_interval_of_a_constant_is_a_point() -> None:
    interval = bootstrap_interval(lambda rows: 0.0 * rows.sum(), 50, seed=0)
    assert (interval.value, interval.low, interval.high) == pytest.approx((0, 0, 0))
