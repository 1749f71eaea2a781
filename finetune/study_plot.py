"""A study as a picture: every seed's outcome, and how it got there."""

from pathlib import Path

from matplotlib.figure import Figure

from finetune.study import Study

__all__ = ["draw"]

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's palette, which colour-blind readers can tell apart."""


def draw(study: Study, path: Path) -> None:
    """Writes a PNG: to the left the test metric of each run, crosses for failed ones; to the right their curves."""
    figure = Figure(figsize=(12, 1.5 + max(3.5, 0.6 * len(study.variants))), layout="constrained")
    outcomes, curves = figure.subplots(1, 2)
    for row, variant in enumerate(study.variants):
        colour = _COLOURS[row % len(_COLOURS)]
        for marker, failed in (("o", False), ("x", True)):
            values = [one.test for one in variant.runs if one.test is not None and bool(one.failure) == failed]
            outcomes.plot(values, [row] * len(values), marker, color=colour, alpha=0.6)
        for run in variant.runs:
            epochs, values = [epoch for epoch, _ in run.curve], [value for _, value in run.curve]
            curves.plot(epochs, values, color=colour, alpha=0.5)
    names = [f"{one.name}\n{one.summary()['failed']} of {len(one.runs)} failed" for one in study.variants]
    outcomes.set_yticks(range(len(names)), names)
    outcomes.set_ylim(len(names) - 0.5, -0.5)
    outcomes.set_xlabel(f"test {study.metric}; a cross for a failed run")
    outcomes.grid(axis="x", alpha=0.3)
    curves.set_xlabel("epoch")
    curves.set_ylabel(f"validation {study.metric}")
    curves.grid(alpha=0.3)
    figure.suptitle(f"{study.recipe}: {len(study.variants[0].runs)} seeds", fontsize=10)
    figure.savefig(path, dpi=120)
