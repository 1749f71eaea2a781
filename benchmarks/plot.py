"""The report as a picture: speedups of single batches, throughput on real texts."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.report import BenchReport
from export.timing import Spread

__all__ = ["draw"]

_COLOURS = ("#8c8c8c", "#4d4d4d", "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
"""Okabe and Ito's palette, which colour-blind readers can tell apart; greys for the first two."""


def draw(report: BenchReport, path: Path) -> None:
    """Writes a PNG."""
    figure = Figure(figsize=(13, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    _bars(
        left,
        report,
        report.shapes,
        {engine: [report.timing(engine, shape).speedup for shape in report.shapes] for engine in report.engines},
    )
    left.set_title(f"Speed of one batch, times {report.baseline}")
    left.set_xlabel("texts × tokens")
    left.axhline(1, color="black", linewidth=0.8, linestyle=":")
    _bars(
        right,
        report,
        report.real,
        {engine: [report.timing(engine, load).texts_per_s for load in report.real] for engine in report.engines},
    )
    right.set_title(f"Texts per second on {report.real_texts} real texts")
    handles, names = left.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 6), frameon=False)
    figure.suptitle(
        f"{report.name}: {report.threads} threads, {report.machine['cpu']}; median, bars show quartiles", fontsize=10
    )
    figure.savefig(path, dpi=120)


def _bars(axes: Axes, report: BenchReport, groups: tuple[str, ...], values: dict[str, list[Spread]]) -> None:
    width = 0.8 / len(values)
    for index, (engine, spreads) in enumerate(values.items()):
        medians = np.array([spread.median for spread in spreads])
        below = medians - [spread.q1 for spread in spreads]
        above = np.array([spread.q3 for spread in spreads]) - medians
        bars = axes.bar(
            np.arange(len(groups)) + (index - (len(values) - 1) / 2) * width,
            medians,
            width * 0.92,
            label=_label(report, engine),
            color=_COLOURS[index % len(_COLOURS)],
            yerr=np.array([below, above]),
            error_kw={"elinewidth": 1, "capsize": 2},
        )
        labels = [f"{value:.0f}" if value >= 100 else f"{value:.1f}" for value in medians]
        axes.bar_label(bars, labels, padding=2, fontsize=8)
    axes.set_xticks(np.arange(len(groups)), groups)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.12)


def _label(report: BenchReport, engine: str) -> str:
    verdict = report.engines[engine].verdict
    return engine if verdict in (None, "pass") else f"{engine} (gates: {verdict})"
