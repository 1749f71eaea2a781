"""Pictures in a checkpoint: loss and validation metric over the epochs, and what was taken for what."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from finetune.errors import ErrorReport

__all__ = ["draw_confusion", "draw_curves"]

_LOSS, _METRIC = "#d55e00", "#0072b2"
_MOST_LABELS = 100
"""Of a confusion matrix: more could not be told apart."""


def draw_curves(history: Sequence[Mapping[str, float]], metric: str, path: Path) -> None:
    """Writes a PNG.

    Args:
        history: Trainer's log.
        metric: of the task, of the validation rows.
        path: where to write.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    losses = figure.subplots()
    metrics = losses.twinx()
    for axes, key, name, colour in (
        (losses, "loss", "loss of the training rows", _LOSS),
        (metrics, f"eval_{metric}", f"validation {metric}", _METRIC),
    ):
        points = [(entry["epoch"], entry[key]) for entry in history if key in entry]
        axes.plot([epoch for epoch, _ in points], [value for _, value in points], "o-", color=colour)
        axes.set_ylabel(name, color=colour)
        axes.tick_params(axis="y", labelcolor=colour)
    losses.set_xlabel("epoch")
    losses.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def draw_confusion(report: ErrorReport, labels: Sequence[str], path: Path) -> None:
    """Writes the confusion matrix as a PNG, each row of it in shares; nothing where it has none or too many labels.

    Args:
        report: of a split.
        labels: of the task.
        path: where to write.
    """
    if report.confusion is None or not 1 < len(labels) <= _MOST_LABELS:
        return
    size = max(4.0, 0.22 * len(labels) + 2.5)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    shares = report.confusion / np.maximum(report.confusion.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    small = 7 if len(labels) > 20 else 9
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=small)
    axes.set_yticks(range(len(labels)), labels, fontsize=small)
    axes.set_xlabel("said")
    axes.set_ylabel("expected")
    axes.set_title(f"{report.rows - report.wrong:,} of {report.rows:,} validation rows right")
    figure.savefig(path, dpi=110)
