"""What waits for the engine: windows of many requests, taken together where their lengths are similar."""

import math
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Lock

from bundle.batching import TOKEN_BUDGET, plan_batches
from tasks import Window
from tasks.base import FloatArray
from tasks.errors import ParitybitError

__all__ = ["Job", "OverloadedError", "Place", "Usage", "WindowQueue"]

_SPEED_MEMORY = 0.9
"""Weight of what was measured before in the engine's speed: it follows within some ten micro-batches."""

_TELLING_TOKENS = TOKEN_BUDGET // 4
"""That wait when a micro-batch is taken whose speed says how fast a queue drains; those of a short queue are small."""


class OverloadedError(ParitybitError):
    """More waits than the operator allows; `retry_after_s` says when there should be room."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(slots=True)
class Usage:
    """What a request used.

    Attributes:
        tokens: of all its windows, without padding.
        wait_s: seconds until its first window reached the engine.
        engine_s: seconds of the micro-batches that it had a part in.
    """

    tokens: int = 0
    wait_s: float = 0.0
    engine_s: float = 0.0


@dataclass(eq=False, slots=True)
class Job:
    """One request's windows on their way through the engine.

    Attributes:
        windows: in the request's order.
        usage: filled on the way.
        done: gets the raw outputs, one a window, or the error. Cancelling it takes back what has not run yet.
    """

    windows: Sequence[Window]
    usage: Usage
    done: Future[list[FloatArray]] = field(default_factory=Future)
    since: float = field(default_factory=time.perf_counter)
    _outputs: dict[int, FloatArray] = field(default_factory=dict)

    def start(self, now: float) -> bool:
        """Whether these are its first windows that run; then `wait_s` is known."""
        if self._outputs:
            return False
        self.usage.wait_s = now - self.since
        return True

    def give(self, number: int, output: FloatArray) -> None:
        """Takes one window's output; the last one completes the job, unless nobody waits for it any more."""
        self._outputs[number] = output
        if len(self._outputs) == len(self.windows) and self.done.set_running_or_notify_cancel():
            self.done.set_result([self._outputs[one] for one in range(len(self.windows))])

    def fail(self, error: Exception) -> None:
        """Ends the job; its other windows will not run."""
        if self.done.set_running_or_notify_cancel():
            self.done.set_exception(error)


@dataclass(frozen=True, slots=True)
class Place:
    """A window that waits: the number-th of its job."""

    job: Job
    number: int

    @property
    def window(self) -> Window:
        """The window itself."""
        return self.job.windows[self.number]


class WindowQueue:
    """Windows in order of arrival, bounded in tokens and in time. One thread takes, any thread puts."""

    def __init__(self, max_tokens: int, max_seconds: float = math.inf) -> None:
        """Empty; `max_tokens` may wait, and nothing joins behind what takes the engine longer than `max_seconds`."""
        self._max_tokens = max_tokens
        self._max_seconds = max_seconds
        self._lock = Lock()
        self._waiting: list[Place] = []
        self._tokens = 0
        self._telling = False
        self._abandoned = False
        self._drained_tokens = 0.0
        self._drained_seconds = 0.0

    def check(self) -> None:
        """Raises OverloadedError if nothing more can be put, so that nobody reads or tokenizes for it."""
        with self._lock:
            self._make_room(1)

    def put(self, job: Job) -> None:
        """Lets a job wait for its turn. One that is larger than the bound is taken when nothing else waits.

        Raises:
            OverloadedError: if its tokens pass the bound, or what waits takes longer than it may.
        """
        with self._lock:
            self._make_room(job.usage.tokens)
            self._waiting += [Place(job, number) for number in range(len(job.windows))]
            self._tokens += job.usage.tokens
        job.done.add_done_callback(self._note_end)

    def take(self) -> list[Place]:
        """The next micro-batch, as `plan_batches` would cut all that waits: the batch in which the oldest window is.

        So nobody starves behind lengths that fill batches better. Windows of a job that was cancelled or has failed
        are dropped. Empty when nothing waits.
        """
        with self._lock:
            self._drop_abandoned()
            self._telling = self._tokens >= _TELLING_TOKENS
            if not self._waiting:
                return []
            lengths = [len(place.window) for place in self._waiting]
            oldest = next(set(batch) for batch in plan_batches(lengths) if 0 in batch)
            taken = [place for number, place in enumerate(self._waiting) if number in oldest]
            self._keep([place for number, place in enumerate(self._waiting) if number not in oldest])
            return taken

    def note_speed(self, tokens: int, seconds: float) -> None:
        """Remembers how long the micro-batch that was taken last kept the engine, if much waited with it."""
        with self._lock:
            if self._telling:
                self._drained_tokens = _SPEED_MEMORY * self._drained_tokens + tokens
                self._drained_seconds = _SPEED_MEMORY * self._drained_seconds + seconds

    def _make_room(self, tokens: int) -> None:
        if self._has_room(tokens):
            return
        self._drop_abandoned()
        if self._has_room(tokens):
            return
        if self._seconds > self._max_seconds:
            what = f"{self._seconds * 1000:.0f} ms of work wait, at most {self._max_seconds * 1000:.0f} may"
            variable = "PARITYBIT_MAX_QUEUE_MS"
        else:
            what = f"{self._tokens} tokens wait, at most {self._max_tokens} may"
            variable = "PARITYBIT_MAX_QUEUE_TOKENS"
        raise OverloadedError(f"overloaded: {what} ({variable})", max(1, math.ceil(self._seconds)))

    @property
    def _seconds(self) -> float:
        """That the engine needs for what waits; 0 until it has run a batch that tells."""
        return self._tokens * self._drained_seconds / self._drained_tokens if self._drained_tokens else 0.0

    def _has_room(self, tokens: int) -> bool:
        fits = self._tokens + tokens <= self._max_tokens and self._seconds <= self._max_seconds
        return not self._waiting or fits

    def _note_end(self, done: Future[list[FloatArray]]) -> None:
        # needs no lock: what is set between a look and its sweep is swept next time
        if done.cancelled() or done.exception() is not None:
            self._abandoned = True

    def _drop_abandoned(self) -> None:
        if not self._abandoned:  # of each refusal beyond saturation it would be the dearest part
            return
        self._abandoned = False
        self._keep([place for place in self._waiting if not place.job.done.done()])

    def _keep(self, waiting: list[Place]) -> None:
        self._waiting = waiting
        self._tokens = sum(len(place.window) for place in waiting)
