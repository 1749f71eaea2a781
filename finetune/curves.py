"""Learning curves as a picture: loss and validation metric over the epochs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

__all__ = ["draw_curves"]

_LOSS, _METRIC = "#d55e00", "#0072b2"


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
