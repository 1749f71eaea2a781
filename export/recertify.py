"""A bundle held against new labelled rows, or against the old ones on another machine."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bundle import Predictor
from bundle.manifest import CERTIFICATE_FILE
from export.certificate import VariantReport
from export.gates import Gate, Interval, at_most, bootstrap_interval, failed
from export.judge import Reference, invariance_windows, judge, make_reference
from export.parity import batch_deltas
from finetune.checkpoint import load_checkpoint
from finetune.reading import format_of, read_file
from finetune.recipe import ExportSection, Format
from finetune.rows import Columns, Problem
from tasks import Encoded, Task
from tasks.base import Example, Gold
from tasks.calibration import calibration_error
from tasks.errors import BundleError, CheckpointError, DataError

__all__ = ["Recertification", "recertify", "to_table"]

_SEED = 0


@dataclass(frozen=True)
class Recertification:
    """What a bundle did on labelled rows.

    Attributes:
        metrics: of the task.
        metric: the primary metric with its 95 % bootstrap interval.
        calibration_error: expected calibration error; None where the task's answers carry no probability.
        gates: the certificate's own limits: independence of the company and, with a checkpoint, parity.
        pytorch: the checkpoint's metrics; None without one.
        parity: everything else that was measured against the checkpoint; None without one.
    """

    variant: str
    rows: int
    primary_metric: str
    metrics: dict[str, float]
    metric: Interval
    calibration_error: float | None
    gates: tuple[Gate, ...]
    pytorch: dict[str, float] | None = None
    parity: VariantReport | None = None

    @property
    def failed(self) -> list[Gate]:
        """The gates that did not pass."""
        return failed(self.gates)

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the verdict."""
        parity = self.parity and _parity_to_json(self.parity)
        return {**asdict(replace(self, parity=None)), "parity": parity, "verdict": "fail" if self.failed else "pass"}


def recertify(
    predictor: Predictor,
    data: Path,
    *,
    file_format: Format | None = None,
    columns: Mapping[str, str] | None = None,
    checkpoint: Path | None = None,
) -> Recertification:
    """Runs the published graph over labelled rows and holds it to the limits that it was certified with.

    Args:
        predictor: the bundle.
        data: file of rows with the fields of the bundle's task.
        file_format: told from the suffix when None.
        columns: the column of a field that does not bear its name; optional fields are read only when named.
        checkpoint: the one that the bundle was made from, for agreement and |Δlogit|.

    Raises:
        DataError: if the rows cannot be read, or have labels that the bundle does not know.
        CheckpointError: if the checkpoint cannot be used, or is not the bundle's.
        InputError: if a row is too long for the task to cut.
    """
    examples = _read_rows(predictor.task, data, file_format, columns or {})
    encoded = predictor.task.encode(predictor.tokenizer, [one.input for one in examples])
    golds = [one.gold for one in examples]
    limits = _certified_limits(predictor)
    if checkpoint is None:
        return _alone(predictor, encoded, golds, limits)
    return _against(_reference(predictor, checkpoint, encoded, golds), predictor, limits)


def to_table(result: Recertification) -> str:
    """Metrics, then gates, a line each."""
    interval = f"95 % interval {result.metric.low:.4f} to {result.metric.high:.4f}"
    rows = [["", "bundle", "PyTorch" if result.pytorch else "", ""]]
    for name, value in result.metrics.items():
        pytorch = f"{result.pytorch[name]:.4f}" if result.pytorch else ""
        rows.append([name, f"{value:.4f}", pytorch, interval if name == result.primary_metric else ""])
    if result.calibration_error is not None:
        before = result.parity and result.parity.calibration_error
        pytorch = f"{before.pytorch:.4f}" if before else ""
        rows.append(["calibration error", f"{result.calibration_error:.4f}", pytorch, ""])
    for gate in result.gates:
        verdict = f"limit {gate.relation} {gate.limit:.6g}: {'pass' if gate.passed else 'FAIL'}"
        rows.append([gate.name, f"{gate.value:.6g}", "", verdict])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([name.ljust(widths[0]), value.rjust(widths[1]), pytorch.rjust(widths[2]), remark]).rstrip()
        for name, value, pytorch, remark in rows
    )


def _parity_to_json(report: VariantReport) -> dict[str, Any]:
    """Without what stands a level higher already, and without the time, which nobody measured."""
    known = {"name", "file", "size", "gates", "metrics", "metric", "max_batch_delta", "relative_time", "verdict"}
    return {key: value for key, value in report.to_json().items() if key not in known}


def _read_rows(task: Task, data: Path, file_format: Format | None, columns: Mapping[str, str]) -> list[Example]:
    wanted = Columns(task.fields, columns)
    if not wanted.possible or wanted.clash():
        fields = dict.fromkeys(field for form in task.fields for field in (*form.required, *form.optional))
        given = ", ".join(f"{field}={column}" for field, column in columns.items())
        raise DataError(f"columns {given}: expected one of its own for each of {', '.join(fields)}")
    table = read_file(data, file_format or format_of(data), wanted)
    examples, problems = [], list(table.problems)
    options = task.options.model_validate(task.spec.options)
    for row in table.rows:
        try:
            example = task.read_row(row.values, options)
            task.check(example.gold)
            examples.append(example)
        except DataError as error:
            problems.append(Problem(row.place, str(error)))
    if problems:
        more = f" (and {len(problems) - 1} more bad rows)" if len(problems) > 1 else ""
        raise DataError(f"{problems[0]}{more}")
    return examples


def _certified_limits(predictor: Predictor) -> ExportSection:
    path = predictor.directory / CERTIFICATE_FILE
    try:
        return ExportSection.model_validate(json.loads(path.read_bytes()).get("limits", {}))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, ("limits", *first["loc"])))
        raise BundleError(f"{path}: {place}: {first['msg']}; expected what this version certifies") from None


def _alone(predictor: Predictor, encoded: Encoded, golds: Sequence[Gold], limits: ExportSection) -> Recertification:
    task, outputs = predictor.task, predictor.outputs(encoded.windows)
    statistics, confidences = task.statistics(outputs, encoded, golds), task.confidences(outputs, encoded, golds)
    deltas = batch_deltas(predictor.session.run, invariance_windows(encoded.windows), predictor.tokenizer.pad_id)
    return Recertification(
        variant=predictor.manifest.default_variant,
        rows=len(encoded),
        primary_metric=task.primary_metric,
        metrics=task.metrics(outputs, encoded, golds),
        metric=bootstrap_interval(lambda rows: task.score(statistics[rows]), len(encoded), _SEED),
        calibration_error=None if confidences is None else calibration_error(confidences),
        gates=(at_most("max_batch_delta", float(deltas.max()), limits.max_batch_delta),),
    )


def _reference(predictor: Predictor, location: Path, encoded: Encoded, golds: Sequence[Gold]) -> Reference:
    checkpoint = load_checkpoint(location)
    if checkpoint.digest != predictor.manifest.checkpoint_digest:
        raise CheckpointError(f"{location}: not the checkpoint that {predictor.directory} was made from")
    return make_reference(checkpoint, predictor.task, encoded, golds, _SEED)


def _against(reference: Reference, predictor: Predictor, limits: ExportSection) -> Recertification:
    manifest, task = predictor.manifest, predictor.task
    model = predictor.directory / manifest.variant.file
    report = judge(manifest.default_variant, model, manifest.variant.session, reference, limits, relative_time=1.0)
    calibration = report.calibration_error
    return Recertification(
        variant=report.name,
        rows=len(reference.encoded),
        primary_metric=task.primary_metric,
        metrics=report.metrics,
        metric=report.metric,
        calibration_error=None if calibration is None else calibration.variant,
        gates=report.gates,
        pytorch=task.metrics(reference.outputs, reference.encoded, reference.golds),
        parity=report,
    )
