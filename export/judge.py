"""Holds a variant against PyTorch: every gate, with the rows that speak against it."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from bundle.manifest import SessionSettings
from bundle.session import Session
from export.calibration import choose_rows
from export.certificate import CalibrationError, Change, ChangedRow, Points, VariantReport
from export.gates import Gate, at_least, at_most, bootstrap_interval, failed
from export.parity import Batch, Engine, Parity, batch_deltas, compare, edge_cases, logits_of, torch_engine
from export.progress import bar
from export.quantization import largest_weight
from finetune.checkpoint import Checkpoint
from finetune.recipe import ExportSection
from tasks import Encoded, Task, Window
from tasks.base import FloatArray, Gold
from tasks.calibration import calibration_error
from tasks.directory import sha256_of

__all__ = ["Reference", "invariance_windows", "judge", "make_reference", "screen"]

_ON_ROWS, _ON_EDGES = "max_logit_delta on the test rows", "max_logit_delta on the edge cases"
_IN_COMPANY, _AGREEMENT = "max_batch_delta", "min_agreement"
_SCREENED_ROWS = 200
_DOUBT = 0.001
_WORST_ROWS = 10
_CHANGES = 20
_INVARIANCE_WINDOWS, _SCREENED_WINDOWS = 1000, 32
_PLOTTED = 2000
_LONGEST_TEXT, _LONGEST_SUMMARY = 200, 100


@dataclass(frozen=True)
class Reference:
    """PyTorch's word on the test rows and on the edge cases, which every variant is held against.

    Attributes:
        encoded: the test rows with their windows, their `golds`, and PyTorch's `outputs` for each window.
        edge_batches: generated batches, with PyTorch's outputs in `edge_outputs`.
        windows_in_company: how many windows the batch-invariance gate runs, at most.
    """

    task: Task
    encoded: Encoded
    golds: Sequence[Gold]
    outputs: Sequence[FloatArray]
    edge_batches: Sequence[Batch]
    edge_outputs: Sequence[FloatArray]
    pad_id: int
    seed: int
    windows_in_company: int = _INVARIANCE_WINDOWS

    def part(self, rows: Sequence[int]) -> "Reference":
        """Some of the test rows, with the edge cases."""
        encoded, places = self.encoded.part(rows)
        golds, outputs = [self.golds[row] for row in rows], [self.outputs[place] for place in places]
        return replace(self, encoded=encoded, golds=golds, outputs=outputs)

    def invariance_windows(self) -> list[Window]:
        """Windows of test rows for the batch-invariance gate."""
        return invariance_windows(self.encoded.windows, self.windows_in_company)


def make_reference(
    checkpoint: Checkpoint,
    task: Task,
    encoded: Encoded,
    golds: Sequence[Gold],
    seed: int,
    progress: Callable[[Any], Any] = list,
) -> Reference:
    """Asks PyTorch.

    Args:
        checkpoint: the model.
        task: of the rows.
        encoded: labelled rows, with their `golds`.
        golds: what is right.
        seed: of the edge cases, and of whatever is drawn from the reference.
        progress: wraps the iteration over batches, for a progress bar.
    """
    engine, config = torch_engine(checkpoint.model), checkpoint.model.config
    edges = edge_cases(config.vocab_size, checkpoint.spec.max_length, getattr(config, "type_vocab_size", 0) > 1, seed)
    return Reference(
        task=task,
        encoded=encoded,
        golds=golds,
        outputs=logits_of(engine, encoded.windows, checkpoint.pad_token_id, progress),
        edge_batches=edges,
        edge_outputs=[engine(batch) for batch in edges],
        pad_id=checkpoint.pad_token_id,
        seed=seed,
    )


def invariance_windows(windows: Sequence[Window], count: int = _INVARIANCE_WINDOWS) -> list[Window]:
    """At most `count` windows spread over the lengths."""
    by_length = sorted(windows, key=len)
    chosen = np.unique(np.linspace(0, len(by_length) - 1, count).round().astype(int))
    return [by_length[position] for position in chosen]


def judge(
    name: str,
    model: Path,
    settings: SessionSettings,
    reference: Reference,
    limits: ExportSection,
    relative_time: float | None,
) -> VariantReport:
    """Runs a variant over everything that the reference saw.

    The fp32 graph is judged by its numbers: the same answers, and logits within `max_logit_delta` on test rows and edge
    cases. An int8 or fp16 graph is judged by what it decides: agreement and the loss of the task's metric. All must
    answer a text alike in any company.

    Args:
        name: of the variant.
        model: its graph.
        settings: of the session.
        reference: what it is held against.
        limits: of the gates.
        relative_time: time relative to the fastest candidate; None where nobody timed it.
    """
    engine = Session(model, settings).run
    task = reference.task
    encoded, golds = reference.encoded, reference.golds
    outputs = logits_of(engine, encoded.windows, reference.pad_id, bar(name))
    parity = compare(task, reference.outputs, outputs, encoded)
    before, after = (task.statistics(one, encoded, golds) for one in (reference.outputs, outputs))
    loss = task.score(before) - task.score(after)
    company = bar(f"{name} in company")
    batch_delta = float(batch_deltas(engine, reference.invariance_windows(), reference.pad_id, progress=company).max())
    gates = (
        _numeric_gates(engine, reference, parity, limits)
        if name == "fp32"
        else _decision_gates(task, parity, loss, limits)
    )
    changed = np.flatnonzero(~parity.same)
    return VariantReport(
        name=name,
        file=model.name,
        size=model.stat().st_size,
        sha256=sha256_of(model),
        rows=len(encoded),
        gates=(*gates, at_most(_IN_COMPANY, batch_delta, limits.max_batch_delta)),
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
        changed_rows=len(changed),
        changes=tuple(_changes(reference, outputs, changed.tolist())),
        calibration_error=_calibration_errors(reference, outputs),
        points=Points(_logit_points(reference, outputs), _delta_points(reference, parity)),
        largest_weight=largest_weight(model),
    )


def screen(name: str, model: Path, reference: Reference, limits: ExportSection) -> VariantReport | None:
    """Runs a variant over 200 test rows first, spread over the lengths.

    Returns:
        The report on these rows where it fails beyond doubt: by a largest difference, which more rows cannot make
        smaller, or by so few same answers that a variant within the limit would give fewer once in a thousand times
        (a binomial test, one-sided). None where all rows are to be asked.
    """
    rows = choose_rows(reference.encoded.lengths(), _SCREENED_ROWS, reference.seed)
    part = replace(reference.part(rows), windows_in_company=_SCREENED_WINDOWS)
    report = judge(name, model, SessionSettings(), part, limits, relative_time=None)
    return report if any(_beyond_doubt(gate, report.rows) for gate in failed(report.gates)) else None


def _beyond_doubt(gate: Gate, rows: int) -> bool:
    if gate.name in (_ON_ROWS, _ON_EDGES, _IN_COMPANY):
        return True
    if gate.name != _AGREEMENT:
        return False
    return bool(binomtest(round(gate.value * rows), rows, gate.limit, alternative="less").pvalue < _DOUBT)


def _numeric_gates(engine: Engine, reference: Reference, parity: Parity, limits: ExportSection) -> list[Gate]:
    edges = [
        float(np.abs(_of_text(engine(batch) - expected, batch)).max())
        for batch, expected in zip(reference.edge_batches, reference.edge_outputs, strict=True)
    ]
    return [
        at_most(_ON_ROWS, parity.max_delta, limits.max_logit_delta),
        at_most(_ON_EDGES, max(edges), limits.max_logit_delta),
        at_least("agreement", parity.agreement, 1.0),
    ]


def _decision_gates(task: Task, parity: Parity, loss: float, limits: ExportSection) -> list[Gate]:
    return [
        at_least(
            _AGREEMENT,
            parity.agreement,
            task.min_agreement if limits.min_agreement is None else limits.min_agreement,
        ),
        at_most(f"max_metric_loss ({task.primary_metric})", loss, limits.max_metric_loss),
    ]


def _of_text(differences: FloatArray, batch: Batch) -> FloatArray:
    """What a model says of padding is nobody's concern."""
    return differences[batch["attention_mask"] == 1] if differences.ndim == 3 else differences


def _worst_rows(reference: Reference, outputs: Sequence[FloatArray], parity: Parity) -> list[ChangedRow]:
    task, rows = reference.task, parity.worst_rows(_WORST_ROWS)
    said = _summaries(reference, reference.outputs, rows), _summaries(reference, outputs, rows)
    return [
        ChangedRow(
            row=row,
            text=_shortened(" | ".join(part for part in task.texts(reference.encoded.inputs[row]) if part is not None)),
            expected=_shortened(task.gold_summary(reference.golds[row])),
            pytorch=_shortened(pytorch),
            variant=_shortened(variant),
            delta=float(parity.deltas[row]),
        )
        for row, pytorch, variant in zip(rows, *said, strict=True)
    ]


def _changes(reference: Reference, outputs: Sequence[FloatArray], changed: Sequence[int]) -> list[Change]:
    before, after = (_summaries(reference, one, changed) for one in (reference.outputs, outputs))
    pairs = Counter(
        (_shortened(said, _LONGEST_SUMMARY), _shortened(instead, _LONGEST_SUMMARY))
        for said, instead in zip(before, after, strict=True)
    )
    # by name among equals, so that two runs give the same list
    ranked = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
    return [Change(pytorch, variant, rows) for (pytorch, variant), rows in ranked[:_CHANGES]]


def _summaries(reference: Reference, outputs: Sequence[FloatArray], rows: Sequence[int]) -> list[str]:
    """What a model decides on some of the test rows."""
    task = reference.task
    some, places = reference.encoded.part(rows)
    answers = task.decode([outputs[place] for place in places], some, task.parameters())
    return [task.summary(answer) for answer in answers]


def _calibration_errors(reference: Reference, outputs: Sequence[FloatArray]) -> CalibrationError | None:
    task = reference.task
    before, after = (task.confidences(one, reference.encoded, reference.golds) for one in (reference.outputs, outputs))
    if before is None or after is None:
        return None
    return CalibrationError(calibration_error(before), calibration_error(after), len(after))


def _logit_points(reference: Reference, outputs: Sequence[FloatArray]) -> tuple[tuple[float, float], ...]:
    """Logits of both models at the same places, drawn evenly from all windows, tokens and labels."""
    ends = np.cumsum([output.size for output in outputs])
    generator = np.random.default_rng(reference.seed)
    chosen = generator.choice(ends[-1], min(_PLOTTED, ends[-1]), replace=False, shuffle=False)
    owners = np.searchsorted(ends, chosen, side="right")
    places = chosen - ends[owners]  # from the end of its window backwards
    return tuple(
        (float(reference.outputs[owner].flat[place]), float(outputs[owner].flat[place]))
        for owner, place in zip(owners, places, strict=True)
    )


def _delta_points(reference: Reference, parity: Parity) -> tuple[tuple[float, float], ...]:
    """Rows drawn evenly, and the one that is furthest off."""
    lengths = reference.encoded.lengths()
    generator = np.random.default_rng(reference.seed)
    drawn = generator.permutation(len(lengths))[: _PLOTTED - 1]
    return tuple((float(lengths[row]), float(parity.deltas[row])) for row in np.union1d(drawn, parity.deltas.argmax()))


def _shortened(text: str, longest: int = _LONGEST_TEXT) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
