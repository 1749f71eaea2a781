"""What a trained model is worth: metrics of both splits, thresholds, calibration, and where it errs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from finetune import processes
from finetune.errors import ErrorReport, error_report
from finetune.trainer import EncodedSplit
from tasks.base import Task
from tasks.calibration import calibration_error

__all__ = ["Measured", "measure"]


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found.

    Attributes:
        task: with the thresholds that suit the validation rows.
        metrics: what `metrics.json` holds.
        findings: what else the record tells: on which splits there is one answer to everything, and calibration errors.
        errors: on the validation rows.
    """

    task: Task
    metrics: dict[str, Any]
    findings: dict[str, Any]
    errors: ErrorReport


def measure(
    task: Task,
    model: torch.nn.Module,
    *,
    validation: EncodedSplit,
    test: EncodedSplit,
    pad_id: int,
    report: Callable[[str], None],
) -> Measured:
    """Asks the model all rows of both splits; the test rows are used only here.

    Args:
        task: as it was trained.
        model: with the weights that are to be published.
        validation: rows that thresholds are chosen by.
        test: rows that nothing is chosen by.
        pad_id: of the padding token.
        report: takes lines for people.
    """
    tuned = task
    metrics: dict[str, Any] = {"primary_metric": task.primary_metric}
    findings: dict[str, Any] = {"collapsed": [], "calibration_error": {}}
    errors: ErrorReport | None = None
    for name, split in (("validation", validation), ("test", test)):
        encoded, golds = split.encoded, split.golds
        outputs = processes.predict_together(model, encoded.windows, pad_id)
        if errors is None:
            tuned = task.tuned(outputs, encoded, golds)
            errors = error_report(tuned, outputs, encoded, golds)
        metrics[name] = tuned.metrics(outputs, encoded, golds)
        values = ", ".join(f"{metric} {value:.4f}" for metric, value in metrics[name].items())
        report(f"{name}: {values}")
        for concern in tuned.concerns(outputs, encoded):
            report(f"warning: {name}: {concern}")
        before, after = (one.confidences(outputs, encoded, golds) for one in (task, tuned))
        if before is not None and after is not None:
            calibration = {"untuned": calibration_error(before), "tuned": calibration_error(after)}
            findings["calibration_error"][name] = calibration
            if calibration["tuned"] != calibration["untuned"]:
                report(f"{name}: calibration error {calibration['tuned']:.4f}, untuned {calibration['untuned']:.4f}")
        answers = tuned.decode(outputs, encoded, tuned.parameters())
        if len(answers) > 1 and len({tuned.summary(answer) for answer in answers}) == 1:
            findings["collapsed"].append(name)
    assert errors is not None
    return Measured(tuned, metrics, findings, errors)
