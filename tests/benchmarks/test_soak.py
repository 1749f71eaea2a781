from itertools import islice

import pytest

from benchmarks.soak import Soak, random_lengths, table


def seen(*memory: float) -> Soak:
    seconds = tuple(20.0 * number for number in range(1, len(memory) + 1))
    answers = tuple(range(10, 10 * len(memory) + 1, 10))
    return Soak(
        bundle="b", clients=2, seconds=seconds, memory_mb=memory, answers=answers, errors=1, machine={"cpu": "c"}
    )


def test_lengths_are_of_every_magnitude_and_the_same_each_time() -> None:
    texts = ["one two three"] * 400
    lengths = [len(text.split()) for text in islice(random_lengths(texts), 3000)]
    assert lengths == [len(text.split()) for text in islice(random_lengths(texts), 3000)]
    assert min(lengths) == 1
    assert 250 < max(lengths) <= 300
    assert 0.3 < sum(length < 17 for length in lengths) / len(lengths) < 0.7


def test_the_first_minute_does_not_count() -> None:
    found = seen(50, 80, 100, 100, 104, 98)
    assert found.settled() == [100, 100, 104, 98]
    assert found.deviation() == pytest.approx(0.04)
    assert "98.0 to 104.0 MB, at most 4.0% from the median; 1 errors in 60 requests" in table(found)
