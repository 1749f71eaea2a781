"""The same recipe with many seeds: how good it is, and how often it fails.

One run tells little of a recipe: on few rows the best and the worst seed lie ten points and more apart, and some end
with a model that gives one answer to everything (Mosbach et al. 2021, arXiv:2006.04884). A spread alone misleads too,
for a recipe that always fails has none; so that failures are counted.
"""

import json
import multiprocessing
import os
import statistics
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from finetune.interruption import FirstSignal
from finetune.recipe import Recipe
from finetune.record import hardware, versions, write_json
from tasks.catalogue import TASKS
from tasks.checkpoint import METRICS_FILE, RUN_FILE
from tasks.errors import DivergenceError, ParitybitError

__all__ = ["STUDY_FILE", "Run", "Study", "Variant", "run_study", "to_table"]

STUDY_FILE = "study.json"
_ERROR_FILE = "error.json"
_CHECKPOINT = "checkpoint"
_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Run:
    """One seed.

    Attributes:
        seed: of the recipe.
        failure: why it counts as failed; None for a good one.
        validation: the task's primary metric on validation rows, from 0 to 1 or as the task has it; None if diverged.
        test: the same on test rows.
        seconds: of training.
        curve: epoch and validation metric of each evaluation.
    """

    seed: int
    failure: str | None
    validation: float | None
    test: float | None
    seconds: float | None
    curve: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Variant:
    """All seeds of a recipe, or of what it is with some keys changed.

    Attributes:
        name: the changes; `recipe` for the recipe as it is.
        runs: by seed.
    """

    name: str
    runs: tuple[Run, ...]

    def summary(self) -> dict[str, float | int | None]:
        """Of the test metric: `mean`, `std` (of a sample), `median`, `min`, `max`; how many `failed`; mean `seconds`.

        Runs that collapsed or fell short are in the figures, only diverged ones have none.
        """
        values = [one.test for one in self.runs if one.test is not None]
        seconds = [one.seconds for one in self.runs if one.seconds is not None]
        return {
            "runs": len(self.runs),
            "failed": sum(one.failure is not None for one in self.runs),
            "mean": statistics.fmean(values) if values else None,
            "std": statistics.stdev(values) if len(values) > 1 else None,
            "median": statistics.median(values) if values else None,
            "min": min(values, default=None),
            "max": max(values, default=None),
            "seconds": statistics.fmean(seconds) if seconds else None,
        }

    def best(self) -> Run | None:
        """The run that is best on validation rows."""
        finished = [one for one in self.runs if one.validation is not None]
        return max(finished, key=lambda one: one.validation or 0.0, default=None)


@dataclass(frozen=True, slots=True)
class Study:
    """What a study found.

    Attributes:
        recipe: its name.
        metric: the task's primary metric.
        least: the test metric under which a run counts as failed; None if any counts.
        variants: the recipe as it is first.
        directory: where the checkpoints lie, by variant and seed.
    """

    recipe: str
    metric: str
    least: float | None
    variants: tuple[Variant, ...]
    directory: Path

    def to_json(self) -> dict[str, Any]:
        """For `study.json`."""
        return {
            "recipe": self.recipe,
            "metric": self.metric,
            "least": self.least,
            "variants": [
                {"name": one.name, "summary": one.summary(), "runs": [asdict(run) for run in one.runs]}
                for one in self.variants
            ],
            "hardware": hardware(),
            "versions": versions(),
        }

    def checkpoints(self) -> Iterator[Path]:
        """Of every run that did not diverge, in the order of the variants and their seeds."""
        for number, variant in enumerate(self.variants):
            for run in variant.runs:
                if run.test is not None:
                    yield _place(self.directory, number, run.seed) / _CHECKPOINT

    def best_checkpoint(self) -> Path | None:
        """The checkpoint of the recipe as it is that is best on validation rows."""
        best = self.variants[0].best()
        return None if best is None else _place(self.directory, 0, best.seed) / _CHECKPOINT


def run_study(
    recipes: Mapping[str, Recipe],
    seeds: Sequence[int],
    output: Path,
    *,
    workers: int = 1,
    least: float | None = None,
    report: Callable[[str], None],
) -> Study:
    """Trains every recipe with every seed, each in a process of its own, and writes `study.json`.

    What was trained before, of the same inputs, is taken as it is, so that an interrupted study goes on.

    Args:
        recipes: by the names of the variants.
        seeds: for each.
        output: directory of the study.
        workers: trainings side by side, which share the threads.
        least: test metric under which a run counts as failed.
        report: takes a line for people after each run.

    Raises:
        InterruptionError: after Ctrl-C or SIGTERM; every training keeps its progress.
        ParitybitError: what a training raises, but for divergence, which counts as a failed run.
    """
    output.mkdir(parents=True, exist_ok=True)
    jobs = [
        _Job(name, recipe.model_copy(update={"seed": seed}), _place(output, number, seed))
        for number, (name, recipe) in enumerate(recipes.items())
        for seed in seeds
    ]
    _train_all(jobs, workers, lambda job: report(_line(job, _read(job, least))))
    variants = tuple(Variant(name, tuple(_read(job, least) for job in jobs if job.variant == name)) for name in recipes)
    first = next(iter(recipes.values()))
    study = Study(first.name, TASKS[first.task].primary_metric, least, variants, output)
    write_json(output / STUDY_FILE, study.to_json())
    return study


def to_table(study: Study) -> str:
    """A row for each variant, as Markdown."""
    floor = "" if study.least is None else f", or under {study.least:g}"
    header = ["", "runs", f"failed{floor}", f"mean {study.metric}", "std", "median", "min", "max", "seconds"]
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    for variant in study.variants:
        found = variant.summary()
        figures = [found[key] for key in ("mean", "std", "median", "min", "max")]
        cells = ["" if one is None else f"{one:.4f}" for one in figures]
        seconds = "" if found["seconds"] is None else f"{found['seconds']:.0f}"
        lines.append(f"| {variant.name} | {found['runs']} | {found['failed']} | {' | '.join(cells)} | {seconds} |")
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class _Job:
    variant: str
    recipe: Recipe
    place: Path


def _place(output: Path, number: int, seed: int) -> Path:
    return output / f"variant-{number}" / f"seed-{seed}"


def _read(job: _Job, least: float | None) -> Run:
    """What a training left in its place."""
    seed, checkpoint = job.recipe.seed, job.place / _CHECKPOINT
    error = job.place / _ERROR_FILE
    if error.is_file():
        return Run(seed, json.loads(error.read_bytes())["message"], None, None, None, ())
    metrics = json.loads((checkpoint / METRICS_FILE).read_bytes())
    record = json.loads((checkpoint / RUN_FILE).read_bytes())
    name = metrics["primary_metric"]
    test = metrics["test"][name]
    failure = None
    if "test" in record["collapsed"]:
        failure = "one answer to everything"
    elif least is not None and test < least:
        failure = f"{name} under {least:g}"
    history = record["training"]["history"]
    curve = tuple((entry["epoch"], entry[f"eval_{name}"]) for entry in history if f"eval_{name}" in entry)
    seconds = record["timings"]["training_seconds"]
    return Run(seed, failure, metrics["validation"][name], test, seconds, curve)


def _line(job: _Job, run: Run) -> str:
    found = "" if run.test is None else f": validation {run.validation:.4f}, test {run.test:.4f}"
    failed = f": failed: {run.failure}" if run.failure else ""
    return f"{job.variant}: seed {run.seed}{found}{failed}"


def _train_all(jobs: Sequence[_Job], workers: int, done: Callable[[_Job], None]) -> None:
    context = multiprocessing.get_context("spawn")
    waiting, running = deque(jobs), dict[int, tuple[BaseProcess, _Job]]()
    told = False
    with FirstSignal() as signals:
        try:
            while running or (waiting and signals.received is None):
                while waiting and len(running) < workers and signals.received is None:
                    job = waiting.popleft()
                    process = context.Process(target=_train_one, args=(job.recipe, job.place, workers))
                    process.start()
                    running[process.sentinel] = process, job
                if signals.received is not None and not told:
                    # once: it keeps its progress on the first signal, and a second one ends it at once
                    told = True
                    for each, _ in running.values():
                        each.terminate()
                for sentinel in wait(list(running), timeout=_POLL_S):
                    ended, job = running.pop(sentinel)  # type: ignore[arg-type]
                    ended.join()
                    if signals.received is None:
                        _raise_what_stopped(ended, job)
                        done(job)
        finally:
            for each, _ in running.values():
                each.terminate()
                each.join()
    signals.raise_if_received()


def _train_one(recipe: Recipe, place: Path, workers: int) -> None:
    """In a process of its own, which hears of Ctrl-C from the study alone."""
    os.setsid()
    import torch

    from finetune.training import finetune

    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    error = place / _ERROR_FILE
    error.unlink(missing_ok=True)
    try:
        finetune(recipe, place / _CHECKPOINT, report=lambda line: None)
    except ParitybitError as problem:
        place.mkdir(parents=True, exist_ok=True)
        write_json(error, {"message": str(problem)})
        sys.exit(problem.exit_code)


def _raise_what_stopped(process: BaseProcess, job: _Job) -> None:
    """A training that diverged is a result; anything else is the end of the study."""
    if process.exitcode in (0, DivergenceError.exit_code):
        return
    where = f"{job.variant}: seed {job.recipe.seed}"
    if (job.place / _ERROR_FILE).is_file():
        error = ParitybitError(f"{where}: {json.loads((job.place / _ERROR_FILE).read_bytes())['message']}")
        error.exit_code = process.exitcode or 1
        raise error
    raise ParitybitError(f"{where}: its process ended with {process.exitcode}, see above or the system's log")
