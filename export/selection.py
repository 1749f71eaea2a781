"""Which session settings, and then which variant, are fastest on this machine."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from bundle.batching import plan_batches
from bundle.cpu import available_cpus
from bundle.manifest import SessionSettings
from export.judge import Reference
from export.progress import steps
from export.timing import Workload, measure, ort_spec
from finetune.checkpoint import Checkpoint

__all__ = ["Candidate", "Speeds", "choose_settings"]

_TIMING_BUDGET_S = 30.0
_ROUNDS, _LEAST_ROUNDS = 5, 3
_WARM_UP_S = 0.2
_REAL = "real lengths"
_TIMED_WINDOWS = 64

Speeds = dict[str, dict[str, float]]
"""Median milliseconds by graph and settings, then by workload."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A graph with the session settings that were fastest for it.

    Attributes:
        relative_time: its time relative to the fastest candidate's; None where it was not timed.
    """

    name: str
    model: Path
    settings: SessionSettings
    relative_time: float | None


def choose_settings(
    graphs: Mapping[str, Path], reference: Reference, checkpoint: Checkpoint, objective: str
) -> tuple[list[Candidate], Speeds]:
    """Times every graph with every settings worth trying, interleaved: a short text, a long one, and real lengths.

    Args:
        graphs: by the names of their variants.
        reference: the test rows.
        checkpoint: whose shapes the timed batches have.
        objective: `latency` ranks by texts alone, `throughput` by real lengths in batches, anything else by both.

    Returns:
        Each graph once, with its fastest settings, the fastest graph first; and what was measured.
    """
    tried = {
        _label(name, settings): (name, path, settings)
        for name, path in graphs.items()
        for settings in _settings_worth_trying(path)
    }
    specs = {label: ort_spec(path, settings, available_cpus()) for label, (_, path, settings) in tried.items()}
    workloads = _workloads(reference, checkpoint)
    with steps("timing") as advance:
        measured = measure(
            specs,
            workloads,
            rounds=_ROUNDS,
            min_rounds=_LEAST_ROUNDS,
            warmup_s=_WARM_UP_S,
            budget_s=_TIMING_BUDGET_S,
            seed=reference.seed,
            progress=advance,
        )
    best: dict[str, Candidate] = {}
    counted = {"latency": set(measured.texts) - {_REAL}, "throughput": {_REAL}}.get(objective)
    for label, relative_time in measured.ranking(counted):
        name, path, settings = tried[label]
        best.setdefault(name, Candidate(name, path, settings, relative_time))
    speeds = {label: {load: measured.spread(label, load).median * 1000 for load in measured.texts} for label in specs}
    return list(best.values()), speeds


def _settings_worth_trying(model: Path) -> list[SessionSettings]:
    """ONNX Runtime's fusions that can cost more than they save: with them, and without those that the graph invites.

    Its SkipLayerNormalization and BiasGelu kernels were slower on CPU than the operators that they replace
    (benchmarks/LOG.md); the processor decides.
    """
    disabled = [(), ("SkipLayerNormFusion",)]
    graph = onnx.load(model, load_external_data=False).graph
    sums = {node.output[0] for node in graph.node if node.op_type == "Add"}
    if any(node.op_type == "Gelu" and node.input[0] in sums for node in graph.node):
        disabled.append(("BiasGeluFusion", "SkipLayerNormFusion"))
    return [SessionSettings(disabled_optimizers=names) for names in disabled]


def _workloads(reference: Reference, checkpoint: Checkpoint) -> list[Workload]:
    vocab_size, longest = checkpoint.model.config.vocab_size, checkpoint.spec.max_length
    step = max(1, len(reference.encoded.windows) // _TIMED_WINDOWS)
    windows = reference.encoded.windows[::step][:_TIMED_WINDOWS]
    plan = plan_batches([len(window) for window in windows])
    return [
        *(
            Workload.random(1, tokens, vocab_size, passes=passes)
            for tokens, passes in {min(16, longest): 10, min(128, longest): 4}.items()
        ),
        Workload.of_windows(_REAL, windows, plan, reference.pad_id),
    ]


def _label(name: str, settings: SessionSettings) -> str:
    without = " and ".join(settings.disabled_optimizers)
    return f"{name} without {without}" if without else name
