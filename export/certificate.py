"""The certificate: what was checked, on what, with what result."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from export.gates import Gate, Interval, failed
from export.quantization import ANYWHERE_EXACT

__all__ = [
    "Attempt",
    "CalibrationError",
    "Certificate",
    "Change",
    "ChangedRow",
    "Evidence",
    "ParetoRow",
    "Points",
    "VariantReport",
    "pareto_table",
]

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class ChangedRow:
    """A test row on which a variant is furthest from PyTorch."""

    row: int
    text: str
    expected: str
    pytorch: str
    variant: str
    delta: float


@dataclass(frozen=True, slots=True)
class Change:
    """What PyTorch says and what a variant says in its place, and on how many test rows."""

    pytorch: str
    variant: str
    rows: int


@dataclass(frozen=True, slots=True)
class CalibrationError:
    """How far confidence is from being right as often, of PyTorch and of a variant.

    Attributes:
        pytorch, variant: expected calibration error, 0 to 1; see `export.judge.calibration_error`.
        confidences: how many it was measured on.
    """

    pytorch: float
    variant: float
    confidences: int


@dataclass(frozen=True, slots=True)
class Points:
    """What the page plots: a sample that `certificate.json` does not carry.

    Attributes:
        logits: PyTorch's and the variant's.
        deltas: tokens of a test row and its largest |Δlogit|.
    """

    logits: tuple[tuple[float, float], ...] = ()
    deltas: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class VariantReport:
    """Everything that was measured of one variant.

    Attributes:
        rows: test rows that it was judged on: all, or a screening part where it failed on that beyond doubt.
        sha256: of the graph's file.
        metrics: of the task, on the test rows.
        metric: the primary metric with its 95 % bootstrap interval.
        loss: PyTorch's primary metric minus the variant's, paired by row, with its 95 % bootstrap interval.
        delta_quantiles: of the rows' largest |Δlogit|.
        relative_time: time relative to the fastest candidate, over short, long and real inputs alike; None where it
            was not timed.
        disabled_optimizers: ONNX Runtime fusions that did not pay.
        changed_rows: test rows whose answer is not PyTorch's.
        changes: the most frequent of their changes, most frequent first.
        calibration_error: None where the task's answers carry no probability.
        largest_weight: magnitude of an int8 weight; 0 where none is int8.
    """

    name: str
    file: str
    size: int
    sha256: str
    rows: int
    gates: tuple[Gate, ...]
    metrics: dict[str, float]
    metric: Interval
    loss: Interval
    agreement: float
    delta_quantiles: dict[str, float]
    mean_delta: float
    max_batch_delta: float
    relative_time: float | None
    disabled_optimizers: tuple[str, ...]
    worst_rows: tuple[ChangedRow, ...] = ()
    changed_rows: int = 0
    changes: tuple[Change, ...] = ()
    calibration_error: CalibrationError | None = None
    points: Points = Points()
    largest_weight: int = 0

    @property
    def passed(self) -> bool:
        """Whether every gate passed."""
        return not failed(self.gates)

    @property
    def needs_exact_int8(self) -> bool:
        """Whether its integer sums are right only on some processors: `bundle.cpu.sums_int8_exactly`."""
        return self.largest_weight > ANYWHERE_EXACT

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the verdict and without the points."""
        plain = asdict(replace(self, points=Points()))
        del plain["points"]
        return {**plain, "verdict": "pass" if self.passed else "fail"}


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the checks ran on."""

    test_rows: int
    data_fingerprint: str
    edge_case_rows: int
    batch_invariance_rows: int
    calibration_rows: int
    calibration_digest: str
    seed: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """A way to a static int8 graph, tried on validation rows.

    Attributes:
        how: what was done, in words.
        agreement: share of rows answered as the float graph does.
        loss: of the task's primary metric.
        mean_delta: mean |Δlogit|.
        good_enough: whether agreement and loss are within the limits.
        chosen: whether it was taken.
        refused: whether it was taken before, and failed on the test rows.
    """

    how: str
    agreement: float
    loss: float
    mean_delta: float
    good_enough: bool
    chosen: bool = False
    refused: bool = False


@dataclass(frozen=True, slots=True)
class ParetoRow:
    """A variant among the others.

    Attributes:
        relative_time: time relative to the fastest candidate's; None where it was not timed.
        size: of its file, in bytes.
        metric: the primary one.
        agreement: share of test rows answered as PyTorch does.
        passed: whether every gate passed.
        on_front: whether it passed and no other that passed is as good at everything and better at something.
    """

    name: str
    relative_time: float | None
    size: int
    metric: float
    agreement: float
    passed: bool
    on_front: bool


def pareto_table(variants: Sequence[VariantReport]) -> list[ParetoRow]:
    """Time, size, metric and agreement of every variant, fastest first, those that were not timed last."""

    def time(one: VariantReport) -> float:
        return math.inf if one.relative_time is None else one.relative_time

    def cost(one: VariantReport) -> tuple[float, ...]:
        return time(one), one.size, -one.metric.value, -one.agreement

    def beaten(one: VariantReport) -> bool:
        rivals = [cost(other) for other in variants if other.passed]
        return any(
            rival != cost(one) and all(a <= b for a, b in zip(rival, cost(one), strict=True)) for rival in rivals
        )

    return [
        ParetoRow(
            name=one.name,
            relative_time=one.relative_time,
            size=one.size,
            metric=one.metric.value,
            agreement=one.agreement,
            passed=one.passed,
            on_front=one.passed and not beaten(one),
        )
        for one in sorted(variants, key=time)
    ]


@dataclass(frozen=True, slots=True)
class Certificate:
    """The whole of it.

    Attributes:
        obstacle_to_fusion: why no attention is fused, for people; None where all are.
    """

    name: str
    created: str
    checkpoint_digest: str
    evidence: Evidence
    primary_metric: str
    pytorch: dict[str, float]
    pytorch_metric: Interval
    opset: int
    fused_attentions: int
    layers: int | None
    variants: tuple[VariantReport, ...]
    published: str
    reason: str
    speeds: dict[str, dict[str, float]]
    machine: dict[str, Any]
    versions: dict[str, str]
    limits: dict[str, Any] = field(default_factory=dict)
    attempts: tuple[Attempt, ...] = ()
    obstacle_to_fusion: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values; the verdict is `pass`, for what does not pass is not published."""
        plain = asdict(replace(self, variants=()))
        plain["variants"] = [variant.to_json() for variant in self.variants]
        plain["pareto"] = [asdict(row) for row in pareto_table(self.variants)]
        return {"schema_version": SCHEMA_VERSION, "verdict": "pass", **plain}
