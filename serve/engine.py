"""The engine behind the endpoints: a certified `Predictor` that answers many requests in shared micro-batches."""

import asyncio
import contextlib
import gc
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from pydantic import BaseModel

from bundle import GoldenReport, Predictor
from serve.http import TooLargeError
from serve.lookup import find_bundle
from serve.queue import Job, OverloadedError, Place, Usage, WindowQueue
from serve.settings import ServeSettings
from serve.telemetry import Metrics
from tasks import Answer, Encoded, Input
from tasks.errors import BundleError, ParitybitError

__all__ = ["DeadlineError", "Engine", "EngineError", "StoppingError", "calm_garbage_collector", "open_engine"]

_LOG = logging.getLogger("bentoml.paritybit")  # below BentoML's logger, so that its handlers and format apply

_MOST_ENCODING = 64
"""Requests that are tokenized or wait for it at most; the queue cannot bound what has no tokens yet."""

_NICENESS = 15
"""Of ONNX Runtime's own threads, which spin while they wait: the event loop has its processor before them.

Not of the engine's thread, which they help: now and then it holds the interpreter's lock, for which the loop waits.
"""

_P = ParamSpec("_P")
_T = TypeVar("_T")


class DeadlineError(ParitybitError):
    """The time that a request had is over; what of it has not run yet will not."""


class EngineError(ParitybitError):
    """The engine failed at a micro-batch; the log has the traceback."""


class StoppingError(ParitybitError):
    """The server ends and takes nothing new."""


class Engine:
    """One predictor, the queue before it, and the one thread that runs it.

    A run uses all its processors, so a second one would only wait. Tokenizing and decoding have threads of their own.
    """

    def __init__(self, predictor: Predictor, settings: ServeSettings) -> None:
        """Joins the parts; `open_engine` is the usual way in."""
        self.predictor = predictor
        self.settings = settings
        self.metrics = Metrics(predictor.manifest.task)
        self._queue = WindowQueue(settings.max_queue_tokens, settings.max_queue_ms / 1000)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._text_threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="text")
        self._encoding = 0
        self._stopping = False

    async def answer(
        self,
        inputs: Sequence[Input],
        parameters: BaseModel,
        *,
        timeout_s: float | None = None,
        usage: Usage | None = None,
    ) -> list[Answer]:
        """One answer per input, in order. What of a cancelled request has not reached the engine yet will not.

        Args:
            inputs: of one request.
            parameters: of the task.
            timeout_s: the request's time, the queue included; the setting when None.
            usage: is filled with what the request used.

        Raises:
            InputError: if an input cannot be used.
            TooLargeError: if the inputs have more tokens than a request may.
            OverloadedError: if more waits than may.
            DeadlineError: if the time is over.
            StoppingError: after `stop_taking`.
            EngineError: if the engine failed.
        """
        if self._stopping:
            raise StoppingError("the server is stopping; ask another one")
        seconds = timeout_s or self.settings.timeout_ms / 1000
        try:
            async with asyncio.timeout(seconds):
                return await self._answer(inputs, parameters, usage or Usage())
        except TimeoutError:
            raise DeadlineError(f"not answered within {seconds * 1000:.0f} ms, the request's time") from None

    @property
    def stopping(self) -> bool:
        """Whether `stop_taking` was called."""
        return self._stopping

    def stop_taking(self) -> None:
        """From now on new requests are refused; those that were taken are answered."""
        self._stopping = True

    def check_room(self) -> None:
        """Raises OverloadedError if a request, whatever it asks, would be refused now."""
        self._queue.check()
        if self._encoding >= _MOST_ENCODING:
            raise OverloadedError(f"overloaded: {self._encoding} requests wait to be tokenized", 1)

    async def _answer(self, inputs: Sequence[Input], parameters: BaseModel, usage: Usage) -> list[Answer]:
        encoded = await self._encode(inputs)
        usage.tokens = sum(map(len, encoded.windows))
        if usage.tokens > self.settings.max_request_tokens:
            raise TooLargeError(
                f"inputs: {usage.tokens} tokens, at most {self.settings.max_request_tokens} are taken "
                "(PARITYBIT_MAX_REQUEST_TOKENS)"
            )
        job = Job(encoded.windows, usage)
        self._queue.put(job)
        self._thread.submit(self._run_all)
        outputs = await asyncio.wrap_future(job.done)
        answers = await self._on_text_thread(self.predictor.task.decode, outputs, encoded, parameters)
        self.metrics.answered(answers)
        return answers

    async def _encode(self, inputs: Sequence[Input]) -> Encoded:
        self.check_room()
        self._encoding += 1
        try:
            return await self._on_text_thread(self.predictor.task.encode, self.predictor.tokenizer, inputs)
        finally:
            self._encoding -= 1

    async def _on_text_thread(self, function: Callable[_P, _T], *values: _P.args, **names: _P.kwargs) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._text_threads, lambda: function(*values, **names))

    def _run_all(self) -> None:
        # of the runs submitted, one a request, most find that an earlier one has done their work
        begin = time.perf_counter()
        while places := self._queue.take():
            self._run(places)
            end = time.perf_counter()
            self._queue.note_speed(sum(len(place.window) for place in places), end - begin)
            begin = end

    def _run(self, places: Sequence[Place]) -> None:
        windows = [place.window for place in places]
        jobs = list(dict.fromkeys(place.job for place in places))
        begin = time.perf_counter()
        waits = [job.usage.wait_s for job in jobs if job.start(begin)]
        try:
            outputs = self.predictor.run_batch(windows)
            seconds = time.perf_counter() - begin
            self.metrics.ran([len(window) for window in windows], seconds, waits)
        except Exception:  # whatever it is, it belongs to these requests alone, and nobody is left waiting
            _LOG.exception("the engine failed at a micro-batch of %d windows", len(windows))
            for job in jobs:
                job.fail(EngineError("the engine failed; the server's log has it"))
            return
        for job in jobs:
            job.usage.engine_s += seconds
        for place, output in zip(places, outputs, strict=True):
            place.job.give(place.number, output)


def open_engine(settings: ServeSettings) -> Engine:
    """Finds the bundle, verifies its files, warms up and replays the golden rows.

    Raises:
        BundleError: if there is no bundle, or it is damaged, not certified, or answers otherwise than certified here.
    """
    directory = find_bundle(settings.bundle)
    with ThreadPoolExecutor(max_workers=1, initializer=_be_nice) as thread:
        predictor = thread.submit(Predictor.load, directory, threads=settings.threads).result()
    predictor.warm_up()
    report = predictor.replay_golden()
    if not report.passed:
        raise BundleError(f"{directory}: not served, {_complaint(report)}")
    manifest = predictor.manifest
    _LOG.info(
        "serving %s (%s, %s) of checkpoint %s from %s with %d threads; %d golden rows replayed, max |delta| %.1e",
        manifest.name,
        manifest.task.task,
        manifest.default_variant,
        manifest.checkpoint_digest[:12],
        directory,
        predictor.session.threads,
        report.rows,
        report.max_delta,
    )
    return Engine(predictor, settings)


def calm_garbage_collector() -> None:
    """Takes all that lives now out of garbage collection, whose full passes make the slowest requests slow."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 1_000)


def _be_nice() -> None:
    """Makes this thread, and those that it starts, run after the others."""
    if sys.platform == "linux":  # elsewhere niceness belongs to the whole process
        with contextlib.suppress(OSError):  # it answers no worse without
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


def _complaint(report: GoldenReport) -> str:
    if report.changed_answers:
        return f"{report.changed_answers} of {report.rows} golden rows have another answer here than certified"
    return f"the golden rows differ by {report.max_delta:.2e} here, certified is {report.tolerance:.2e} at most"
