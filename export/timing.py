"""Timing of several engines side by side: one process each, rounds interleaved, compared as paired ratios.

Threads of ONNX Runtime and PyTorch spin for up to 50 ms after a run, so engines that share a process, or follow each
other too closely, slow each other down by 2 to 5 times. Here every engine has a process of its own that sleeps on its
standard input between rounds and answers only once its threads are quiet. A machine's speed drifts more than engines
differ, so what is compared is always taken within the same round.
"""

import functools
import importlib
import itertools
import json
import os
import random
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from tasks import ParitybitError, Window, collate
from tasks.encoding import IntArray

if TYPE_CHECKING:  # a worker without ONNX Runtime must not load it: its memory would be counted
    from bundle.manifest import SessionSettings

__all__ = [
    "Batch",
    "Engine",
    "Measurements",
    "Spread",
    "Worker",
    "WorkerSpec",
    "Workload",
    "measure",
    "ort_engine",
    "ort_spec",
    "serve_worker",
]

Batch = Mapping[str, IntArray]
Engine = Callable[[Batch], object]
"""Runs one collated batch to its end; what it returns is not looked at."""
Seconds = npt.NDArray[np.float64]

ANSWER_LIMIT_S = 900.0
"""A worker that is silent for longer is taken for hung."""

_ROOMS = Path(__file__).resolve().parents[1]
"""Where the project's packages lie, this one among them."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Batches that every engine runs in order; once through all of them is a pass.

    Attributes:
        name: as reported.
        batches: collated arrays of each batch, int64, shape `[batch, tokens]`.
        passes: timed passes of one round; many for short ones, whose single passes scatter.
        settle: untimed passes before them, for an engine whose process just slept.
    """

    name: str
    batches: tuple[Batch, ...]
    passes: int = 1
    settle: int = 0

    @classmethod
    def random(
        cls, batch: int, tokens: int, vocab_size: int, *, passes: int = 10, settle: int = 1, seed: int = 0
    ) -> Self:
        """One batch of random token ids without padding, named like `8×128`."""
        shape = (batch, tokens)
        arrays = {
            "input_ids": np.random.default_rng(seed).integers(0, vocab_size, shape, dtype=np.int64),
            "attention_mask": np.ones(shape, dtype=np.int64),
            "token_type_ids": np.zeros(shape, dtype=np.int64),
        }
        return cls(f"{batch}×{tokens}", (arrays,), passes, settle)

    @classmethod
    def of_windows(cls, name: str, windows: Sequence[Window], plan: Sequence[Sequence[int]], pad_id: int) -> Self:
        """Real rows, cut into the batches of `plan` (row numbers) and each padded to its longest."""
        return cls(name, tuple(collate([windows[row] for row in rows], pad_id) for rows in plan))

    @property
    def texts(self) -> int:
        """Rows of one pass."""
        return sum(len(batch["input_ids"]) for batch in self.batches)


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """An engine to be loaded in a process of its own.

    Attributes:
        entry: `module:function`; called with `arguments`, returns an `Engine`. Named, not imported, so that this
            module knows none of the engines that others bring.
        arguments: keyword arguments that JSON can carry.
        python: the interpreter; another environment's sees of this one the project's rooms only, and needs what
            `tasks` does: numpy, pydantic, tokenizers.
    """

    entry: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    python: str = sys.executable

    @property
    def import_path(self) -> str:
        """`PYTHONPATH` of the process."""
        if self.python != sys.executable:
            return str(_ROOMS)
        return os.pathsep.join(path or str(Path.cwd()) for path in sys.path)


def ort_spec(model: Path, settings: "SessionSettings", threads: int) -> WorkerSpec:
    """ONNX Runtime on a graph."""
    arguments = {"model": str(model), "settings": settings.model_dump(mode="json"), "threads": threads}
    return WorkerSpec("export.timing:ort_engine", arguments)


def ort_engine(*, model: str, settings: Mapping[str, Any], threads: int) -> Engine:
    """A session as a bundle would open it.

    Raises:
        BundleError: if ONNX Runtime cannot load the graph.
    """
    from bundle.manifest import SessionSettings
    from bundle.session import Session

    return Session(Path(model), SessionSettings.model_validate(settings), threads).run


class Worker:
    """A process that holds one engine. Use it as a context manager: leaving ends the process, whatever happened."""

    def __init__(self, name: str, spec: WorkerSpec, directory: Path) -> None:
        """Starts the process and waits until its engine is loaded.

        Args:
            name: for messages.
            spec: the engine.
            directory: where the process's stderr goes; lives longer than the worker.

        Raises:
            ParitybitError: if the engine cannot be loaded, with its last line.
        """
        self.name = name
        self.peak_mib = 0.0
        started = time.perf_counter()
        with tempfile.NamedTemporaryFile(dir=directory, suffix=".stderr", delete=False) as stderr:
            self._stderr_path = Path(stderr.name)
            self._process = subprocess.Popen(
                [spec.python, "-c", "from export.timing import serve_worker; serve_worker()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, "PYTHONPATH": spec.import_path},
                # Ctrl-C reaches the parent only, which then ends its workers in order
                start_new_session=True,
            )
        try:
            self._ask({"entry": spec.entry, "arguments": dict(spec.arguments)})
        except BaseException:
            self.close()
            raise
        self.load_s = time.perf_counter() - started

    def run(self, batches: Path, passes: int, settle: int) -> list[float]:
        """Seconds of each timed pass over the batches of an `.npz` file; see `Workload`.

        Raises:
            ParitybitError: if the worker died, with the last line it left.
        """
        answer = self._ask({"batches": str(batches), "passes": passes, "settle": settle})
        self.peak_mib = answer["peak_mib"]
        seconds: list[float] = answer["seconds"]
        return seconds

    def warm_up(self, batches: Path, seconds: float) -> None:
        """Runs batches of an `.npz` file, from the first on and around, until the time is spent; one at least.

        Raises:
            ParitybitError: if the worker died, with the last line it left.
        """
        self._ask({"batches": str(batches), "warm_up_s": seconds})

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        for pipe in self._pipes():
            try:
                pipe.close()
            except BrokenPipeError:  # a request that nobody will read
                continue

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _pipes(self) -> tuple[BinaryIO, BinaryIO]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout  # type: ignore[return-value]  # typeshed says IO[bytes]

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        requests, answers = self._pipes()
        try:
            requests.write(json.dumps(request).encode() + b"\n")
            requests.flush()
        except BrokenPipeError:
            raise ParitybitError(self._obituary()) from None
        if not select.select([answers], [], [], ANSWER_LIMIT_S)[0]:
            raise ParitybitError(f"timing of {self.name}: no answer within {ANSWER_LIMIT_S:.0f} s")
        line = answers.readline()
        if not line.endswith(b"\n"):
            raise ParitybitError(self._obituary())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _obituary(self) -> str:
        code = self._process.wait()
        lines = [line for line in self._stderr_path.read_text(errors="replace").splitlines() if line.strip()]
        return f"timing of {self.name}: its process ended (exit code {code}): {lines[-1] if lines else 'no message'}"


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles."""

    median: float
    q1: float
    q3: float

    @classmethod
    def of(cls, values: npt.ArrayLike) -> Self:
        """Of all values, whatever their shape; quartiles interpolate linearly."""
        q1, median, q3 = np.percentile(np.asarray(values, dtype=np.float64), [25, 50, 75])
        return cls(float(median), float(q1), float(q3))


@dataclass(frozen=True, slots=True)
class Measurements:
    """What `measure` saw.

    Attributes:
        seconds: by worker, then workload: float64 seconds of each pass, shape `[rounds, passes]`.
        texts: rows of one pass, by workload.
        load_s: from starting a worker's process to its engine being ready, libraries included.
        peak_mib: most memory that a worker's process held (VmHWM).
    """

    seconds: Mapping[str, Mapping[str, Seconds]]
    texts: Mapping[str, int]
    load_s: Mapping[str, float]
    peak_mib: Mapping[str, float]

    @property
    def rounds(self) -> int:
        """Complete rounds; every worker and workload has as many."""
        return len(next(iter(next(iter(self.seconds.values())).values())))

    def spread(self, worker: str, workload: str) -> Spread:
        """Seconds of a pass, over all passes of all rounds."""
        return Spread.of(self.seconds[worker][workload])

    def p95(self, worker: str, workload: str) -> float:
        """The pass, in seconds, that 95 % of passes are not slower than."""
        return float(np.percentile(self.seconds[worker][workload], 95))

    def texts_per_s(self, worker: str, workload: str) -> Spread:
        """Throughput of each pass."""
        return Spread.of(self.texts[workload] / self.seconds[worker][workload])

    def speedup(self, worker: str, workload: str, over: str, over_workload: str | None = None) -> Spread:
        """How many times the texts per second `worker` gives of `over`, paired by round.

        Args:
            worker: the one judged.
            workload: what it ran.
            over: the one it is compared with.
            over_workload: what that one ran, when it ran the same texts in other batches.
        """
        other = over_workload or workload
        own_rate = self.texts[workload] / np.median(self.seconds[worker][workload], axis=1)
        other_rate = self.texts[other] / np.median(self.seconds[over][other], axis=1)
        return Spread.of(own_rate / other_rate)

    def ranking(self, workloads: Collection[str] | None = None) -> list[tuple[str, float]]:
        """Workers, fastest first, with their time relative to the fastest; every workload weighs the same.

        The geometric mean over the workloads, each the median over the rounds of the time relative to that round's
        mean over the workers.

        Args:
            workloads: those that count; all when None.
        """
        logs = np.array(
            [
                [
                    np.log(np.median(seconds, axis=1))
                    for name, seconds in by_workload.items()
                    if workloads is None or name in workloads
                ]
                for by_workload in self.seconds.values()
            ]
        )  # [worker, workload, round]
        relative = np.median(logs - logs.mean(axis=0), axis=2).mean(axis=1)
        order = np.argsort(relative, kind="stable")
        names = list(self.seconds)
        return [(names[index], float(np.exp(relative[index] - relative.min()))) for index in order]


def measure(
    workers: Mapping[str, WorkerSpec],
    workloads: Sequence[Workload],
    *,
    rounds: int = 9,
    min_rounds: int = 3,
    warmup_s: float = 0.5,
    budget_s: float | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Measurements:
    """Times every worker on every workload, interleaved.

    Each round takes the workloads in a shuffled order and, for each, the workers in a shuffled order, so that neither
    a drift of the machine nor the one that ran before favours anybody. The fastest of several is
    `measure(…).ranking()[0][0]`.

    Args:
        workers: engines by name.
        workloads: what each of them runs; names must differ.
        rounds: at most.
        min_rounds: at least, whatever the budget says.
        warmup_s: what each worker runs each workload for before the first round; long ones are not run to their end.
        budget_s: once it is spent, loading and warm-up included, the round in progress is the last.
        seed: of the orders.
        progress: told after each step how many of how many are done.

    Raises:
        ParitybitError: if a worker cannot load its engine or dies; none is left running.
    """
    if not workers or not workloads or not 1 <= min_rounds <= rounds:
        raise ValueError("measure needs a worker, a workload, and 1 <= min_rounds <= rounds")
    texts = {workload.name: workload.texts for workload in workloads}
    if len(texts) != len(workloads):
        raise ValueError("two workloads have the same name")
    deadline = None if budget_s is None else time.monotonic() + budget_s
    shuffle = random.Random(seed).shuffle
    tick = _Progress(len(workers) * len(workloads) * (rounds + 1), progress)
    seconds: dict[str, dict[str, list[list[float]]]] = {name: {load: [] for load in texts} for name in workers}
    with tempfile.TemporaryDirectory(prefix="paritybit-timing-") as name, ExitStack() as stack:
        directory = Path(name)
        files = [_save(workload, directory / f"{index}.npz") for index, workload in enumerate(workloads)]
        jobs = list(zip(workloads, files, strict=True))
        # one after the other: loading side by side would spoil each other's load time
        running = [stack.enter_context(Worker(name, spec, directory)) for name, spec in workers.items()]
        for _, file in jobs:
            for worker in running:
                worker.warm_up(file, warmup_s)
                tick()
        for done in range(rounds):
            if done >= min_rounds and deadline is not None and time.monotonic() > deadline:
                break
            shuffle(jobs)
            for workload, file in jobs:
                shuffle(running)
                for worker in running:
                    passes = worker.run(file, workload.passes, workload.settle)
                    seconds[worker.name][workload.name].append(passes)
                    tick()
        by_name = {worker.name: worker for worker in running}
    return Measurements(
        seconds={name: {load: np.array(rows) for load, rows in loads.items()} for name, loads in seconds.items()},
        texts=texts,
        load_s={name: by_name[name].load_s for name in workers},
        peak_mib={name: by_name[name].peak_mib for name in workers},
    )


class _Progress:
    def __init__(self, total: int, report: Callable[[int, int], None] | None) -> None:
        self._done, self._total, self._report = 0, total, report

    def __call__(self) -> None:
        self._done += 1
        if self._report:
            self._report(self._done, self._total)


def _save(workload: Workload, path: Path) -> Path:
    arrays = {f"{index}.{name}": array for index, batch in enumerate(workload.batches) for name, array in batch.items()}
    np.savez(path, **arrays)  # type: ignore[arg-type]  # numpy's stub takes **kwds for allow_pickle
    return path


@functools.cache
def _load(path: str) -> list[dict[str, IntArray]]:
    batches: dict[int, dict[str, IntArray]] = {}
    with np.load(path) as arrays:
        for key in arrays.files:
            index, name = key.split(".", 1)
            batches.setdefault(int(index), {})[name] = arrays[key]
    return [batches[index] for index in sorted(batches)]


def serve_worker() -> None:
    """What a worker's process runs: one JSON request a line on stdin, one JSON answer a line on stdout."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what an engine's library prints must not stand between the answers
    spec = json.loads(sys.stdin.readline())
    module, function = spec["entry"].split(":")
    engine: Engine = getattr(importlib.import_module(module), function)(**spec["arguments"])
    answers.write(json.dumps({"ready": True}) + "\n")
    for line in sys.stdin:
        request = json.loads(line)
        batches = _load(request["batches"])
        if "warm_up_s" in request:
            _warm_up(engine, batches, request["warm_up_s"])
            answers.write(json.dumps({"warm": True}) + "\n")
            continue
        for _ in range(request["settle"]):
            _pass(engine, batches)
        seconds = [_pass(engine, batches) for _ in range(request["passes"])]
        _wait_until_quiet()
        answers.write(json.dumps({"seconds": seconds, "peak_mib": _peak_mib()}) + "\n")


def _pass(engine: Engine, batches: Sequence[Batch]) -> float:
    started = time.perf_counter()
    for batch in batches:
        engine(batch)
    return time.perf_counter() - started


def _warm_up(engine: Engine, batches: Sequence[Batch], seconds: float) -> None:
    deadline = time.perf_counter() + seconds
    for batch in itertools.cycle(batches):
        engine(batch)
        if time.perf_counter() > deadline:
            return


def _wait_until_quiet(step_s: float = 0.01, limit_s: float = 0.5) -> None:
    """Sleeps until this process's threads have stopped spinning."""
    for _ in range(int(limit_s / step_s)):
        before = time.process_time()
        time.sleep(step_s)
        if time.process_time() - before < 0.1 * step_s:
            return


def _peak_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:", 1)[1].split(maxsplit=1)[0]) / 1024
