"""`bench`: PyTorch against every ONNX variant of a bundle, at equal threads, interleaved in one run."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from benchmarks.machine import machine_facts
from benchmarks.report import SCHEMA_VERSION, BenchReport, BenchSettings, EngineFacts, Timing, tables
from benchmarks.rows import sample_windows, test_inputs
from benchmarks.variants import OnnxVariant, read_variants
from bundle.batching import plan_batches
from bundle.cpu import available_cpus
from bundle.manifest import MANIFEST_FILE, Manifest, read_manifest
from export.progress import steps
from export.timing import Measurements, Spread, WorkerSpec, Workload, measure, ort_spec
from tasks import Input
from tasks.directory import digest_of, sha256_of
from tasks.errors import CheckpointError, DataError, MissingExtraError
from tasks.inputs import input_to_json

__all__ = ["BASELINE", "JSON_FILE", "MARKDOWN_FILE", "PADDED", "PLOT_FILE", "SORTED", "bench", "make_workloads"]

JSON_FILE = "bench.json"
PLOT_FILE = "bench.png"
MARKDOWN_FILE = "bench.md"

BASELINE = "PyTorch sdpa"
PADDED = "padded 32"
"""Batches of 32 in the given order, each padded to its longest: the usual way."""
SORTED = "sorted"
"""The micro-batches of `bundle.batching`."""

_PADDED_BATCH = 32
_SHAPES = {(1, 16): 40, (1, 128): 10, (8, 128): 3}
"""Batch and tokens, with the timed passes of a round: enough for a p95, the round still a few seconds."""
_WEIGHTS = "*.safetensors"


@dataclass(frozen=True, slots=True)
class _Subject:
    manifest: Manifest
    bundle: Path
    checkpoint: Path
    variants: Mapping[str, OnnxVariant]


def bench(
    bundle: Path,
    checkpoint: Path,
    *,
    output: Path,
    variants: Mapping[str, OnnxVariant] | None = None,
    inputs: Sequence[Input] | None = None,
    threads: int | None = None,
    settings: BenchSettings | None = None,
    force: bool = False,
    report: Callable[[str], None] | None = None,
) -> BenchReport:
    """Times PyTorch (eager and sdpa) and ONNX Runtime; writes `bench.json`, `bench.md` and `bench.png` into `output`.

    A report that stands there and was taken from the same bundle, variants, checkpoint and settings on the same kind of
    machine is reused.

    Args:
        bundle: a certified bundle.
        checkpoint: what it was made of.
        output: directory of the report.
        variants: graphs by name; what export left beside the bundle, else the bundle's own, when None.
        inputs: real texts; the test split of the checkpoint's recipe when None.
        threads: of every engine; all that affinity and cgroup quota give when None.
        settings: how much is measured.
        force: measure again even if nothing changed.
        report: gets the tables, then one line of JSON.

    Raises:
        ParitybitError: if something named above cannot be read, or an engine fails.
    """
    draw = _plotter()
    settings = settings or BenchSettings()
    threads = threads or available_cpus()
    manifest = read_manifest(bundle)
    if not (checkpoint / "config.json").is_file():
        raise CheckpointError(f"{checkpoint}: not a checkpoint (config.json is missing)")
    variants = read_variants(bundle) if variants is None else variants
    subject = _Subject(manifest, bundle, checkpoint, variants)
    digest = _inputs_digest(subject, inputs, threads, settings)
    found = None if force else _earlier(output, digest)
    if found is None:
        texts = test_inputs(checkpoint) if inputs is None else inputs
        workloads = make_workloads(manifest, bundle, texts, settings)
        found = _measured(subject, workloads, threads, settings, digest)
        _write(found, output, draw)
    if report:
        report(tables(found))
        report(found.model_dump_json())
    return found


def make_workloads(
    manifest: Manifest, bundle: Path, inputs: Sequence[Input], settings: BenchSettings
) -> list[Workload]:
    """The fixed shapes that fit the model's positions, then the real texts, padded and sorted.

    Raises:
        DataError: if there are no texts.
    """
    if not inputs:
        raise DataError("bench: no texts to time on; expected a test split with rows")
    config = json.loads((bundle / "config.json").read_bytes())
    # some families keep two positions for themselves
    longest = config.get("max_position_embeddings", 512) - 2
    shapes = [
        Workload.random(batch, tokens, config["vocab_size"], passes=passes, seed=settings.seed)
        for (batch, tokens), passes in _SHAPES.items()
        if tokens <= longest
    ]
    windows = sample_windows(manifest, bundle, inputs, settings.sample, settings.seed)
    rows = range(len(windows))
    padded = [rows[start : start + _PADDED_BATCH] for start in range(0, len(rows), _PADDED_BATCH)]
    pad_id = manifest.pad_token_id
    return [
        *shapes,
        Workload.of_windows(PADDED, windows, padded, pad_id),
        Workload.of_windows(SORTED, windows, plan_batches([len(window) for window in windows]), pad_id),
    ]


def _measured(
    subject: _Subject, workloads: Sequence[Workload], threads: int, settings: BenchSettings, digest: str
) -> BenchReport:
    specs = _specs(subject, threads)
    with steps("bench") as advance:
        seen = measure(
            specs,
            workloads,
            rounds=settings.rounds,
            min_rounds=min(settings.min_rounds, settings.rounds),
            warmup_s=settings.warmup_s,
            budget_s=settings.budget_s,
            seed=settings.seed,
            progress=advance,
        )
    names = tuple(workload.name for workload in workloads)
    return BenchReport(
        name=subject.manifest.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        inputs_digest=digest,
        machine=machine_facts(),
        settings=settings,
        threads=threads,
        rounds=seen.rounds,
        baseline=BASELINE,
        shapes=tuple(name for name in names if name not in (PADDED, SORTED)),
        real=(PADDED, SORTED),
        engines={name: _facts(name, seen, subject) for name in specs},
        timings=tuple(_timing(seen, engine, name) for engine in specs for name in names),
    )


def _specs(subject: _Subject, threads: int) -> dict[str, WorkerSpec]:
    specs = {
        f"PyTorch {attention}": WorkerSpec(
            # by name: importing it would load torch into this process
            "benchmarks.engines:torch_engine",
            {"checkpoint": str(subject.checkpoint), "attention": attention, "threads": threads},
        )
        for attention in ("eager", "sdpa")
    }
    for name, variant in subject.variants.items():
        specs[_onnx_name(name)] = ort_spec(variant.path, variant.session, threads)
    return specs


def _onnx_name(variant: str) -> str:
    return f"ONNX {variant}"


def _facts(engine: str, seen: Measurements, subject: _Subject) -> EngineFacts:
    onnx = {_onnx_name(name): variant for name, variant in subject.variants.items()}.get(engine)
    files = [onnx.path] if onnx else list(subject.checkpoint.glob(_WEIGHTS))
    return EngineFacts(
        load_s=seen.load_s[engine],
        peak_mib=seen.peak_mib[engine],
        file_mib=sum(path.stat().st_size for path in files) / 2**20,
        verdict=onnx.verdict if onnx else None,
    )


def _timing(seen: Measurements, engine: str, workload: str) -> Timing:
    seconds = seen.spread(engine, workload)
    return Timing(
        engine=engine,
        workload=workload,
        texts=seen.texts[workload],
        passes=seen.seconds[engine][workload].size,
        ms=Spread(1e3 * seconds.median, 1e3 * seconds.q1, 1e3 * seconds.q3),
        p95_ms=1e3 * seen.p95(engine, workload),
        texts_per_s=seen.texts_per_s(engine, workload),
        speedup=seen.speedup(engine, workload, BASELINE, PADDED if workload == SORTED else workload),
    )


def _inputs_digest(subject: _Subject, inputs: Sequence[Input] | None, threads: int, settings: BenchSettings) -> str:
    """Of all that the figures depend on."""
    weights = [path.name for path in subject.checkpoint.glob(_WEIGHTS)]
    known: dict[str, Any] = {
        "schema": SCHEMA_VERSION,
        "bundle": sha256_of(subject.bundle / MANIFEST_FILE),
        "checkpoint": digest_of(subject.checkpoint, ["config.json", "run.json", *weights]),
        "variants": {
            name: [sha256_of(one.path), one.verdict, one.session.model_dump(mode="json")]
            for name, one in subject.variants.items()
        },
        "inputs": None if inputs is None else [input_to_json(one) for one in inputs],
        "threads": threads,
        "settings": settings.model_dump(),
        "machine": machine_facts(),
    }
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def _earlier(output: Path, digest: str) -> BenchReport | None:
    """The report that stands in the output, if it is whole and its inputs are the same."""
    if not all((output / name).is_file() for name in (JSON_FILE, PLOT_FILE, MARKDOWN_FILE)):
        return None
    try:
        earlier = BenchReport.model_validate_json((output / JSON_FILE).read_bytes())
    except ValidationError:  # of another version, or half written: measured anew
        return None
    return earlier if earlier.inputs_digest == digest else None


def _write(found: BenchReport, output: Path, draw: Callable[[BenchReport, Path], None]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    draw(found, output / PLOT_FILE)
    text = f"# Benchmark of {found.name}\n\n{tables(found)}\n\n![speed and throughput]({PLOT_FILE})\n"
    (output / MARKDOWN_FILE).write_text(text, encoding="utf-8")
    # last: a report is reused only if it stands
    (output / JSON_FILE).write_text(found.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _plotter() -> Callable[[BenchReport, Path], None]:
    """Asked for before measuring, so that a missing library is told at once."""
    try:
        from benchmarks.plot import draw
    except ModuleNotFoundError as error:
        raise MissingExtraError("bench", error.name or "matplotlib") from None
    return draw
