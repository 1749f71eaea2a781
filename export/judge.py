"""Holds a variant against PyTorch: every gate, with the rows that speak against it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bundle.manifest import SessionSettings
from bundle.session import Session
from export.certificate import ChangedRow, VariantReport
from export.gates import Gate, at_least, at_most, bootstrap_interval
from export.parity import Batch, Engine, Parity, batch_deltas, compare, logits_of
from finetune.recipe import ExportSection
from tasks import Encoded, Input, Task, Window
from tasks.base import FloatArray, Gold

__all__ = ["Reference", "judge"]

_WORST_ROWS = 10
_INVARIANCE_WINDOWS = 256


@dataclass(frozen=True)
class Reference:
    """PyTorch's word on the test rows and on the edge cases, which every variant is held against.

    Attributes:
        encoded: the test rows with their windows, their `golds`, and PyTorch's `outputs` for each window.
        edge_batches: generated batches, with PyTorch's outputs in `edge_outputs`.
    """

    task: Task
    encoded: Encoded
    golds: Sequence[Gold]
    outputs: Sequence[FloatArray]
    edge_batches: Sequence[Batch]
    edge_outputs: Sequence[FloatArray]
    pad_id: int
    seed: int

    def invariance_windows(self) -> list[Window]:
        """Windows of test rows spread over the lengths, for the batch-invariance gate."""
        by_length = sorted(self.encoded.windows, key=len)
        chosen = np.unique(np.linspace(0, len(by_length) - 1, _INVARIANCE_WINDOWS).round().astype(int))
        return [by_length[position] for position in chosen]


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
    encoded, golds = reference.encoded, reference.golds
    outputs = logits_of(engine, encoded.windows, reference.pad_id)
    parity = compare(task, reference.outputs, outputs, encoded)
    before, after = (task.statistics(one, encoded, golds) for one in (reference.outputs, outputs))
    loss = task.score(before) - task.score(after)
    batch_delta = float(batch_deltas(engine, reference.invariance_windows(), reference.pad_id).max())
    gates = (
        _numeric_gates(engine, reference, parity, limits)
        if name == "fp32"
        else _decision_gates(task, parity, loss, limits)
    )
    return VariantReport(
        name=name,
        file=model.name,
        size=model.stat().st_size,
        gates=(*gates, at_most("max_batch_delta", batch_delta, limits.max_batch_delta)),
        metrics=task.metrics(outputs, encoded, golds),
        metric=bootstrap_interval(lambda rows: task.score(after[rows]), len(encoded), reference.seed),
        loss=bootstrap_interval(
            lambda rows: task.score(before[rows]) - task.score(after[rows]), len(encoded), reference.seed
        ),
        agreement=parity.agreement,
        delta_quantiles={f"p{level:g}": float(np.percentile(parity.deltas, level)) for level in (50, 90, 99, 100)},
        mean_delta=parity.mean_delta,
        max_batch_delta=batch_delta,
        relative_time=relative_time,
        disabled_optimizers=settings.disabled_optimizers,
        worst_rows=tuple(_worst_rows(reference, outputs, parity)),
    )


def _numeric_gates(engine: Engine, reference: Reference, parity: Parity, limits: ExportSection) -> list[Gate]:
    edges = [
        float(np.abs(_of_text(engine(batch) - expected, batch)).max())
        for batch, expected in zip(reference.edge_batches, reference.edge_outputs, strict=True)
    ]
    return [
        at_most("max_logit_delta on the test rows", parity.max_delta, limits.max_logit_delta),
        at_most("max_logit_delta on the edge cases", max(edges), limits.max_logit_delta),
        at_least("agreement", parity.agreement, 1.0),
    ]


def _decision_gates(task: Task, parity: Parity, loss: float, limits: ExportSection) -> list[Gate]:
    return [
        at_least(
            "min_agreement",
            parity.agreement,
            task.min_agreement if limits.min_agreement is None else limits.min_agreement,
        ),
        at_most(f"max_metric_loss ({task.primary_metric})", loss, limits.max_metric_loss),
    ]


def _of_text(differences: FloatArray, batch: Batch) -> FloatArray:
    """What a model says of padding is nobody's concern."""
    return differences[batch["attention_mask"] == 1] if differences.ndim == 3 else differences


def _worst_rows(reference: Reference, outputs: Sequence[FloatArray], parity: Parity) -> Iterator[ChangedRow]:
    task, encoded = reference.task, reference.encoded
    rows, spans = parity.worst_rows(_WORST_ROWS), encoded.spans()
    for row in rows:
        span = spans[row]
        alone = Encoded([encoded.inputs[row]], [replace(window, row=0) for window in encoded.windows[span]])
        pytorch, variant = (
            task.summary(task.decode(one[span], alone, task.parameters())[0]) for one in (reference.outputs, outputs)
        )
        yield ChangedRow(
            row=row,
            text=_shortened(encoded.inputs[row], task),
            expected=task.gold_summary(reference.golds[row]),
            pytorch=pytorch,
            variant=variant,
            delta=float(parity.deltas[row]),
        )


def _shortened(one: Input, task: Task) -> str:
    text = " | ".join(part for part in task.texts(one) if part is not None)
    return text if len(text) <= 200 else text[:199] + "…"
