"""The load generator of the benchmarks, against a real server."""

import asyncio

import pytest

from benchmarks.load import Round, run_rounds, summarize
from tests.serve.conftest import Server


def turn(service: str, ms: float, answers: int, clients: int = 2, errors: int = 0) -> Round:
    return Round(service=service, clients=clients, seconds=2.0, ms=(ms,) * answers, errors=errors)


def test_ratios_are_those_of_the_same_round_to_the_first_service() -> None:
    # the machine is twice as slow in the second round
    seen = [turn("a", 10, 40), turn("b", 5, 80), turn("b", 10, 40, errors=3), turn("a", 20, 20)]
    first, second = summarize(seen)
    assert (first.service, first.throughput_ratio.median, first.p50_ratio.median) == ("a", 1.0, 1.0)
    assert (second.service, second.answers, second.errors) == ("b", 120, 3)
    for spread, expected in [(second.throughput_ratio, 2.0), (second.p50_ratio, 0.5), (second.p99_ratio, 0.5)]:
        assert (spread.q1, spread.median, spread.q3) == pytest.approx((expected,) * 3)
    assert second.texts_per_s.median == 30
    assert second.p50_ms.median == 7.5


def test_each_number_of_clients_is_compared_with_the_same_number() -> None:
    seen = [turn("a", 1, 10, 1), turn("b", 2, 10, 1), turn("a", 8, 10, 4), turn("b", 4, 10, 4)]
    assert [(one.service, one.clients, one.p50_ratio.median) for one in summarize(seen)] == [
        ("a", 1, 1.0),
        ("b", 1, 2.0),
        ("a", 4, 1.0),
        ("b", 4, 0.5),
    ]


def test_clients_ask_a_real_server_at_once_and_errors_are_counted_apart(server: Server) -> None:
    texts = ["where is my card", "lost", ""]
    seen = asyncio.run(run_rounds([server.url], texts, [1, 4], seconds=0.3, rounds=2))
    assert [one.clients for one in seen] == [1, 4, 1, 4]
    assert all(one.errors > 0 and len(one.ms) > one.errors for one in seen)
    assert all(0.3 <= one.seconds < 5 and min(one.ms) > 0 for one in seen)
