"""Holds a variant against PyTorch: every gate, with the rows that speak against it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bundle.manifest import SessionSettings
from bundle.session import Session
from export.certificate import ChangedRow, VariantReport
from export.gates import Gate, at_least, at_most, bootstrap_interval
from export.parity import Batch, Engine, Parity, batch_deltas, compare, logits_of
from finetune.recipe import ExportSection
from tasks import Task, TextInput, Window
from tasks.base import FloatArray

__all__ = ["Reference", "judge"]

_WORST_ROWS = 10
_INVARIANCE_ROWS = 256


@dataclass(frozen=True)
class Reference:
    """PyTorch's word on the test rows and on the edge cases, which every variant is held against.

    Attributes:
        inputs: the test rows, with `windows`, `targets`, gold `labels` and PyTorch's `outputs` in the same order.
        edge_batches: generated batches, with PyTorch's outputs in `edge_outputs`.
    """

    task: Task
    inputs: Sequence[TextInput]
    labels: Sequence[str]
    targets: Sequence[Any]
    windows: Sequence[Window]
    outputs: Sequence[FloatArray]
    edge_batches: Sequence[Batch]
    edge_outputs: Sequence[FloatArray]
    pad_id: int
    seed: int

    def invariance_windows(self) -> list[Window]:
        """Test rows spread over the lengths, for the batch-invariance gate."""
        order = sorted(range(len(self.windows)), key=lambda row: len(self.windows[row]))
        chosen = np.unique(np.linspace(0, len(order) - 1, _INVARIANCE_ROWS).round().astype(int))
        return [self.windows[order[position]] for position in chosen]


def judge(
    name: str,
    model: Path,
    settings: SessionSettings,
    reference: Reference,
    limits: ExportSection,
    relative_time: float,
) -> VariantReport:
    """Runs a variant over everything that the reference saw.

    The fp32 graph is judged by its numbers: the same answers, and logits within `max_logit_delta` on test rows and edge
    cases. An int8 graph is judged by what it decides: agreement and the loss of the task's metric. Both must answer a
    text alike in any company.
    """
    engine = Session(model, settings).run
    task = reference.task
    outputs = logits_of(engine, reference.windows, reference.pad_id)
    parity = compare(task, reference.outputs, outputs)
    scores = task.row_scores(outputs, reference.targets)
    losses = task.row_scores(reference.outputs, reference.targets) - scores
    batch_delta = float(batch_deltas(engine, reference.invariance_windows(), reference.pad_id).max())
    gates = (
        _numeric_gates(engine, reference, parity, limits)
        if name == "fp32"
        else _decision_gates(task, parity, float(losses.mean()), limits)
    )
    return VariantReport(
        name=name,
        file=model.name,
        size=model.stat().st_size,
        gates=(*gates, at_most("max_batch_delta", batch_delta, limits.max_batch_delta)),
        metrics=task.metrics(outputs, reference.targets),
        metric=bootstrap_interval(scores, reference.seed),
        loss=bootstrap_interval(losses, reference.seed),
        agreement=parity.agreement,
        delta_quantiles={f"p{level:g}": float(np.percentile(parity.deltas, level)) for level in (50, 90, 99, 100)},
        mean_delta=parity.mean_delta,
        max_batch_delta=batch_delta,
        relative_time=relative_time,
        disabled_optimizers=settings.disabled_optimizers,
        worst_rows=tuple(_changed_row(row, reference, outputs, parity) for row in parity.worst_rows(_WORST_ROWS)),
    )


def _numeric_gates(engine: Engine, reference: Reference, parity: Parity, limits: ExportSection) -> list[Gate]:
    edges = [
        float(np.abs(engine(batch) - expected).max())
        for batch, expected in zip(reference.edge_batches, reference.edge_outputs, strict=True)
    ]
    return [
        at_most("max_logit_delta on the test rows", parity.max_delta, limits.max_logit_delta),
        at_most("max_logit_delta on the edge cases", max(edges), limits.max_logit_delta),
        at_least("agreement", parity.agreement, 1.0),
    ]


def _decision_gates(task: Task, parity: Parity, loss: float, limits: ExportSection) -> list[Gate]:
    return [
        at_least("min_agreement", parity.agreement, limits.min_agreement),
        at_most(f"max_metric_loss ({task.primary_metric})", loss, limits.max_metric_loss),
    ]


def _changed_row(row: int, reference: Reference, outputs: Sequence[FloatArray], parity: Parity) -> ChangedRow:
    text = reference.inputs[row].text
    return ChangedRow(
        row=row,
        text=text if len(text) <= 200 else text[:199] + "…",
        expected=reference.labels[row],
        pytorch=reference.task.summary(reference.outputs[row]),
        variant=reference.task.summary(outputs[row]),
        delta=float(parity.deltas[row]),
    )
