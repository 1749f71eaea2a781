"""The variants as a picture for reports: time against metric, with size and agreement in words.

matplotlib belongs to the extra of the benchmarks, and export does without it: no PNG is drawn then. The certificate's
page has the same figure as SVG either way.
"""

from pathlib import Path

from export.certificate import Certificate, pareto_table

__all__ = ["draw_pareto"]


def draw_pareto(certificate: Certificate, path: Path) -> bool:
    """Writes a PNG and answers True; False where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return False
    rows = pareto_table(certificate.variants)
    intervals = {one.name: one.metric for one in certificate.variants}
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.axhline(certificate.pytorch_metric.value, color="black", linewidth=0.8, linestyle="--", label="PyTorch")
    for row in rows:
        if row.relative_time is None:
            continue
        interval = intervals[row.name]
        axes.errorbar(
            row.relative_time,
            row.metric,
            yerr=[[max(0.0, row.metric - interval.low)], [max(0.0, interval.high - row.metric)]],
            fmt="o" if row.passed else "x",
            capsize=2,
            elinewidth=0.8,
            label=f"{row.name}: {row.size / 1e6:.1f} MB, {row.agreement:.2%} same answers",
        )
    axes.set_xlim(left=0)
    axes.set_xlabel("time relative to the fastest")
    axes.set_ylabel(certificate.primary_metric)
    axes.set_title(f"{certificate.name}: ● passed every gate, × did not; bars are 95 % intervals", fontsize=10)
    figure.legend(loc="outside lower center", frameon=False, fontsize=9)
    figure.savefig(path, dpi=120)
    return True
