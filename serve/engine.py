"""The engine behind the endpoints: a certified `Predictor` that answers without blocking the event loop."""

import asyncio
import gc
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from pydantic import BaseModel

from bundle import GoldenReport, Predictor
from serve.lookup import find_bundle
from serve.settings import ServeSettings
from tasks import Answer, Input
from tasks.errors import BundleError

__all__ = ["Engine", "calm_garbage_collector", "open_engine"]

_LOG = logging.getLogger("bentoml.paritybit")  # below BentoML's logger, so that its handlers and format apply


class Engine:
    """One predictor and the one thread that runs it: a run uses all its processors, so a second one would only wait."""

    def __init__(self, predictor: Predictor, settings: ServeSettings) -> None:
        """Joins the parts; `open_engine` is the usual way in."""
        self.predictor = predictor
        self.settings = settings
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")

    async def answer(self, inputs: Sequence[Input], parameters: BaseModel) -> list[Answer]:
        """One answer per input, in order. A request that is cancelled while it waits for its turn is not run.

        Raises:
            InputError: if an input cannot be used.
        """
        run = partial(self.predictor.predict, inputs, parameters)
        return await asyncio.get_running_loop().run_in_executor(self._thread, run)


def open_engine(settings: ServeSettings) -> Engine:
    """Finds the bundle, verifies its files, warms up and replays the golden rows.

    Raises:
        BundleError: if there is no bundle, or it is damaged, not certified, or answers otherwise than certified here.
    """
    directory = find_bundle(settings.bundle)
    predictor = Predictor.load(directory, threads=settings.threads)
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


def _complaint(report: GoldenReport) -> str:
    if report.changed_answers:
        return f"{report.changed_answers} of {report.rows} golden rows have another answer here than certified"
    return f"the golden rows differ by {report.max_delta:.2e} here, certified is {report.tolerance:.2e} at most"
