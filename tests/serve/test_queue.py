"""The queue alone: which windows run together, and what waits how long."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.batching import TOKEN_BUDGET
from serve.queue import Job, OverloadedError, Usage, WindowQueue
from tasks import Window


def job(*lengths: int) -> Job:
    windows = [Window(0, np.ones(length, np.int64), np.zeros(length, np.int64), False) for length in lengths]
    return Job(windows, Usage(tokens=sum(lengths)))


def filled(jobs: Sequence[Job], max_tokens: int = 10**6) -> WindowQueue:
    queue = WindowQueue(max_tokens)
    for one in jobs:
        queue.put(one)
    return queue


def drained(queue: WindowQueue) -> list[list[tuple[Job, int]]]:
    """All micro-batches, in the order in which they are taken."""
    batches = []
    while places := queue.take():
        batches.append([(place.job, place.number) for place in places])
    return batches


def test_windows_of_similar_length_run_together_whoever_asked() -> None:
    short, long, mixed = job(10), job(100), job(11, 101)
    batches = drained(filled([short, long, mixed]))
    assert batches == [[(short, 0), (mixed, 0)], [(long, 0), (mixed, 1)]]


def test_the_oldest_is_in_the_next_batch_however_odd_its_length() -> None:
    odd, crowd = job(300), [job(10) for _ in range(50)]
    queue = filled([odd, *crowd])
    assert [place.job for place in queue.take()] == [odd]
    assert [place.job for place in queue.take()] == crowd


@given(st.lists(st.lists(st.integers(1, 600), min_size=1, max_size=6), min_size=1, max_size=12))
def test_every_window_runs_once_the_oldest_first_within_the_budget(lengths: list[list[int]]) -> None:
    jobs = [job(*each) for each in lengths]
    waiting = [(one, number) for one in jobs for number in range(len(one.windows))]
    for batch in drained(filled(jobs)):
        assert waiting[0] in batch
        sizes = [len(one.windows[number]) for one, number in batch]
        assert len(batch) == 1 or len(batch) * max(sizes) <= TOKEN_BUDGET
        waiting = [place for place in waiting if place not in batch]
    assert waiting == []


def test_a_job_gets_its_outputs_in_its_own_order() -> None:
    one = job(100, 10, 99)
    queue = filled([one])
    while places := queue.take():
        assert not one.done.done()
        for place in places:
            place.job.give(place.number, np.float32([len(place.window)]))
    assert [output.tolist() for output in one.done.result(0)] == [[100], [10], [99]]


def test_nothing_joins_behind_more_work_than_may_wait() -> None:
    queue = WindowQueue(10**6, max_seconds=0.1)
    queue.put(job(16))
    queue.take()
    queue.note_speed(16, 10.0)  # a batch of a short queue: slow a token
    queue.put(job(1000))
    queue.put(job(1000))
    queue.put(job(5))
    assert len(queue.take()) > 0, "how fast the engine is is not known before its first batch that tells"
    queue.note_speed(10_000, 1.0)
    for refused in (lambda: queue.put(job(1)), queue.check):
        with pytest.raises(
            OverloadedError, match=r"^overloaded: 1\d\d ms of work wait, at most 100 may \(PARITYBIT_MAX_QUEUE_MS\)$"
        ) as caught:
            refused()
        assert caught.value.retry_after_s == 1
    queue.take()
    queue.put(job(1))


def test_past_the_bound_nothing_is_put_and_what_waits_stays() -> None:
    queue = filled([job(60), job(40)], max_tokens=100)
    with pytest.raises(OverloadedError, match=r"^overloaded: 100 tokens wait, at most 100 may \(PARITYBIT_MAX_QUEUE"):
        queue.put(job(1))
    with pytest.raises(OverloadedError):
        queue.check()
    queue.take()
    queue.check()
    queue.put(job(1))


def test_a_job_larger_than_the_bound_is_taken_when_nothing_else_waits() -> None:
    queue = WindowQueue(10)
    queue.put(job(50))
    with pytest.raises(OverloadedError):
        queue.put(job(1))


def test_retry_after_is_the_time_that_what_waits_will_take() -> None:
    queue = filled([job(500), job(500)], max_tokens=1000)
    with pytest.raises(OverloadedError) as unknown:
        queue.check()
    assert unknown.value.retry_after_s == 1
    taken = [place.job for place in queue.take()]
    for one in taken:
        queue.put(one)
    queue.note_speed(tokens=1000, seconds=2.5)
    with pytest.raises(OverloadedError) as known:
        queue.check()
    assert known.value.retry_after_s == 3  # 1,000 tokens at 400 a second
    for _ in range(100):
        queue.note_speed(tokens=1000, seconds=10.0)
    with pytest.raises(OverloadedError) as slower:
        queue.check()
    assert slower.value.retry_after_s == 10


def test_cancelled_and_failed_jobs_leave_room_and_do_not_run() -> None:
    cancelled, failed, good = job(400), job(10, 500), job(11)
    queue = filled([cancelled, failed, good], max_tokens=1000)
    cancelled.done.cancel()
    assert [place.job for place in queue.take()] == [failed, good]
    failed.fail(ValueError("broken"))
    late = job(989)
    queue.put(late)
    assert drained(queue) == [[(late, 0)]]
    assert isinstance(failed.done.exception(0), ValueError)


def test_what_becomes_of_a_job_that_was_cancelled_while_it_ran_is_nobodys_error() -> None:
    answered, failed = job(5), job(5)
    queue = filled([answered, failed])
    (first, second) = queue.take()
    answered.done.cancel()
    failed.done.cancel()
    first.job.give(first.number, np.float32([1]))
    second.job.fail(ValueError("broken"))
    assert answered.done.cancelled()
    assert failed.done.cancelled()
