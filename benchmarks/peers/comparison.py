"""The published variant of a bundle beside PyTorch, the usual recipe and OpenVINO, interleaved in one run."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from benchmarks.machine import machine_facts
from benchmarks.peers.environments import PEERS, environment, requirements_of, run_in
from bundle.manifest import SessionSettings, read_manifest
from export.calibration import choose_rows
from export.timing import Measurements, Spread, WorkerSpec, Workload, measure, ort_spec
from finetune.checkpoint import load_checkpoint
from finetune.data import load_data
from finetune.recipe import Recipe
from tasks import collate, load_task

__all__ = ["OURS", "PeerTiming", "PeersReport", "compare"]

OURS = "paritybit"
_PYTORCH, _USUAL, _OPENVINO = "PyTorch sdpa", "optimum-onnx O2 + dynamic int8", "OpenVINO NNCF int8"
_SHAPES = {(1, 16): 40, (1, 128): 10, (32, 13): 4, (8, 128): 3}
"""Batch and tokens, with the timed passes of a round."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PeerTiming(_Frozen):
    """One engine on one shape.

    Attributes:
        engine: who.
        threads: of one run.
        workload: `batch×tokens`.
        ms: milliseconds of a batch.
        ours_times_as_fast: the engine's time over ours in the same round; above 1 where ours is faster.
    """

    engine: str
    threads: int
    workload: str
    ms: Spread
    ours_times_as_fast: Spread


class PeersReport(_Frozen):
    """All of it.

    Attributes:
        name: of the bundle.
        variant: its published variant, which is timed.
        rounds: of interleaved measurement.
        machine: without anything that names it.
        peers: the pinned packages of each peer's environment.
        timings: by threads, shape and engine.
    """

    name: str
    variant: str
    rounds: int
    machine: dict[str, str]
    peers: dict[str, list[str]]
    timings: tuple[PeerTiming, ...]


def compare(
    bundle: Path,
    checkpoint: Path,
    *,
    recipe: Recipe,
    environments: Path,
    threads: Sequence[int],
    rounds: int,
    report: Callable[[str], None] = lambda _: None,
) -> PeersReport:
    """Makes the peers' graphs of the same checkpoint, and times all.

    NNCF is calibrated on the rows that the bundle was calibrated on. The usual recipe's graph is run by the same
    ONNX Runtime as ours, without the layers that optimum puts around it.

    Args:
        bundle: a certified bundle.
        checkpoint: of sequence classification; what the bundle was made of.
        recipe: where the training rows stand.
        environments: folder of the peers' environments; built there where they are missing.
        threads: of every engine; each number is an interleaved run.
        rounds: of each run.
        report: told of each step in a line.

    Raises:
        ParitybitError: if something named above cannot be read, a peer cannot be installed, or an engine fails.
    """
    manifest = read_manifest(bundle)
    variant, published = manifest.default_variant, manifest.variant
    pythons = {}
    for peer in PEERS:
        report(f"environment of {peer}")
        pythons[peer] = environment(peer, environments)
    with tempfile.TemporaryDirectory(prefix="paritybit-peers-") as place:
        graphs = Path(place)
        report(f"graphs of the peers for {manifest.name}")
        vocabulary = _write_calibration(checkpoint, recipe, graphs / "calibration.npz")
        run_in(pythons["optimum"], "optimum_recipe.py", checkpoint, graphs)
        run_in(
            pythons["openvino"],
            "openvino_recipe.py",
            graphs / "fp32.onnx",
            graphs / "calibration.npz",
            graphs / "openvino.xml",
        )
        timings: list[PeerTiming] = []
        for count in threads:
            report(f"timing at {count} threads")
            specs = {
                OURS: ort_spec(bundle / published.file, published.session, count),
                _USUAL: ort_spec(graphs / "int8.onnx", SessionSettings(), count),
                _OPENVINO: _openvino_spec(graphs / "openvino.xml", pythons["openvino"], count),
                _PYTORCH: _pytorch_spec(checkpoint, count),
            }
            timings += _timings(specs, _workloads(vocabulary), count, rounds)
    return PeersReport(
        name=manifest.name,
        variant=variant,
        rounds=rounds,
        machine=machine_facts(),
        peers={peer: _pins(peer) for peer in PEERS},
        timings=tuple(timings),
    )


def _write_calibration(checkpoint: Path, recipe: Recipe, path: Path) -> int:
    """The rows that export chooses, for NNCF; tells the size of the vocabulary."""
    loaded = load_checkpoint(checkpoint, recipe=recipe)
    data = load_data(recipe, spec=loaded.spec)
    windows = load_task(loaded.spec).encode(loaded.tokenizer, data.train.inputs).windows
    rows = choose_rows([len(window) for window in windows], recipe.export.calibration_rows, recipe.seed)
    arrays = {
        f"{row}/{name}": values for row in rows for name, values in collate([windows[row]], loaded.pad_token_id).items()
    }
    np.savez(path, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for its own options
    return int(loaded.model.config.vocab_size)


def _workloads(vocabulary: int) -> list[Workload]:
    return [
        Workload.random(batch, tokens, vocabulary, passes=passes, settle=2)
        for (batch, tokens), passes in _SHAPES.items()
    ]


def _openvino_spec(model: Path, python: Path, threads: int) -> WorkerSpec:
    arguments = {"model": str(model), "threads": threads}
    return WorkerSpec("benchmarks.peers.openvino_engine:openvino_engine", arguments, str(python))


def _pytorch_spec(checkpoint: Path, threads: int) -> WorkerSpec:
    arguments = {"checkpoint": str(checkpoint), "attention": "sdpa", "threads": threads}
    return WorkerSpec("benchmarks.engines:torch_engine", arguments)


def _timings(
    specs: Mapping[str, WorkerSpec], workloads: Sequence[Workload], threads: int, rounds: int
) -> list[PeerTiming]:
    seen: Measurements = measure(specs, workloads, rounds=rounds, min_rounds=rounds)
    timings = []
    for workload in workloads:
        for engine in specs:
            ms = 1e3 * seen.seconds[engine][workload.name]
            ratio = seen.speedup(OURS, workload.name, engine)
            timings.append(
                PeerTiming(
                    engine=engine,
                    threads=threads,
                    workload=workload.name,
                    ms=Spread.of(ms),
                    ours_times_as_fast=ratio,
                )
            )
    return timings


def _pins(peer: str) -> list[str]:
    lines: list[Any] = requirements_of(peer).read_text().splitlines()
    return [line for line in lines if "==" in line]
