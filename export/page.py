"""The certificate as a page for people."""

from collections.abc import Iterator
from html import escape
from typing import Any

from export import plots
from export.certificate import Certificate, VariantReport, pareto_table
from export.gates import Gate
from finetune.html import page, table

__all__ = ["certificate_page"]

_STYLE = """
.pass { color: #187a3c; color: light-dark(#187a3c, #5fd08a); font-weight: 600; }
.fail { color: #c02020; color: light-dark(#c02020, #ff8a80); font-weight: 600; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1rem; }
figure { margin: 0; break-inside: avoid; }
figcaption { font-size: .85em; }
code { word-break: break-all; }
@media print {
  .figures { grid-template-columns: 1fr 1fr; }
}
"""


def certificate_page(certificate: Certificate) -> str:
    """The whole page, HTML."""
    evidence = certificate.evidence
    facts = [
        ("Published variant", f"{certificate.published} ({certificate.reason})"),
        ("Created", certificate.created),
        ("Checkpoint", certificate.checkpoint_digest),
        ("Test rows", f"{evidence.test_rows:,} and {evidence.edge_case_rows:,} generated ones"),
        ("Calibration", f"{evidence.calibration_rows} training rows, SHA-256 {evidence.calibration_digest}"),
        ("Data", evidence.data_fingerprint),
        ("Attention", _attention(certificate)),
        ("Machine", ", ".join(f"{key}: {_plain(value)}" for key, value in certificate.machine.items())),
        ("Versions", ", ".join(f"{name} {version}" for name, version in certificate.versions.items())),
    ]
    name, interval = certificate.primary_metric, certificate.pytorch_metric
    reference = [
        *((escape(metric), f"{value:.4f}") for metric, value in certificate.pytorch.items()),
        (f"{escape(name)}, 95 % interval", f"{interval.low:.4f} to {interval.high:.4f}"),
    ]
    body = f"""<h1>Certificate of {escape(certificate.name)}: <span class="pass">pass</span></h1>
{table(["", ""], [[escape(key), f"<code>{escape(value)}</code>"] for key, value in facts])}
<h2>PyTorch, the reference</h2>
{table(["metric", "value"], reference)}
{_choice(certificate)}
{"".join(_section(variant, certificate) for variant in certificate.variants)}"""
    return page(f"Certificate of {certificate.name}", body, _STYLE + plots.STYLE)


def _attention(certificate: Certificate) -> str:
    fused = f"{certificate.fused_attentions} fused of {certificate.layers or 'unknown'} layers"
    return f"{fused}: {certificate.obstacle_to_fusion}" if certificate.obstacle_to_fusion else fused


def _choice(certificate: Certificate) -> str:
    points = [
        plots.ParetoPoint(
            one.name, one.relative_time, one.metric.value, one.metric.low, one.metric.high, passed=one.passed
        )
        for one in certificate.variants
        if one.relative_time is not None
    ]
    workloads = list(dict.fromkeys(load for speeds in certificate.speeds.values() for load in speeds))
    speeds = [
        [escape(graph), *(f"{by_load[load]:.3g}" if load in by_load else "" for load in workloads)]
        for graph, by_load in certificate.speeds.items()
    ]
    metric = certificate.primary_metric
    figure = _figure(
        plots.pareto(points, metric, certificate.pytorch_metric.value),
        "Faster is to the left, better is up; ● passed every gate, × did not. Bars are 95 % bootstrap intervals, the "
        "dashed line is PyTorch.",
    )
    variants = [
        [
            escape(row.name),
            _time(row.relative_time),
            f"{row.size / 1e6:.1f}",
            f"{row.metric:.4f}",
            f"{row.agreement:.4f}",
            _verdict(row.passed),
            "yes" if row.on_front else "no",
        ]
        for row in pareto_table(certificate.variants)
    ]
    attempts = [
        [
            escape(one.how) + (" (chosen)" if one.chosen else " (failed on the test rows)" if one.refused else ""),
            f"{one.agreement:.4f}",
            f"{one.loss:+.4f}",
            f"{one.mean_delta:.4f}",
            _verdict(one.good_enough),
        ]
        for one in certificate.attempts
    ]
    return (
        f'<h2>Time against {escape(metric)}</h2><div class="figures">{figure}</div>'
        + table(["variant", "relative time", "MB", escape(metric), "same answers", "gates", "unbeaten"], variants)
        + "<h3>Median milliseconds</h3>"
        + table(["graph and settings", *map(escape, workloads)], speeds)
        + "<h3>Ways to int8, on validation rows</h3>"
        + table(["way", "same answers", f"{escape(metric)} lost", "mean |Δlogit|", "good enough"], attempts)
    )


def _section(variant: VariantReport, certificate: Certificate) -> str:
    rows = [
        [str(row.row), *map(escape, (row.text, row.expected, row.pytorch, row.variant)), f"{row.delta:.3g}"]
        for row in variant.worst_rows
    ]
    name = escape(variant.name)
    return (
        f"<h2>{name}: {_verdict(variant.passed)}</h2>"
        + _screened(variant, certificate)
        + table(["gate", "value", "limit", "verdict"], [_gate(gate) for gate in variant.gates])
        + table(["measured", "value"], [[escape(key), escape(value)] for key, value in _numbers(variant, certificate)])
        + _figures(variant)
        + _changes(variant)
        + "<h3>Rows furthest from PyTorch</h3>"
        + table(["row", "text", "label", "PyTorch", name, "|Δlogit|"], rows)
    )


def _screened(variant: VariantReport, certificate: Certificate) -> str:
    if variant.rows == certificate.evidence.test_rows:
        return ""
    return f"<p>It failed on {variant.rows:,} of the test rows beyond doubt, and was not measured further.</p>"


def _time(relative: float | None) -> str:
    return "not timed" if relative is None else f"{relative:.2f}"


def _gate(gate: Gate) -> list[str]:
    limit = f"{'≤' if gate.relation == '<=' else '≥'} {gate.limit:.6g}"
    return [escape(gate.name), f"{gate.value:.6g}", limit, _verdict(gate.passed)]


def _numbers(variant: VariantReport, certificate: Certificate) -> Iterator[tuple[str, str]]:
    metric, calibration = certificate.primary_metric, variant.calibration_error
    yield from ((name, f"{value:.4f}") for name, value in variant.metrics.items())
    yield f"{metric}, 95 % interval", f"{variant.metric.low:.4f} to {variant.metric.high:.4f}"
    lost = variant.loss
    yield f"{metric} lost, 95 % interval", f"{lost.value:+.4f} ({lost.low:+.4f} to {lost.high:+.4f})"
    yield "same answers as PyTorch", f"{variant.agreement:.4%}"
    if calibration is None:
        yield "expected calibration error", "not measured: the answers of this task carry no probability"
    else:
        measured = f"{calibration.variant:.4f}, PyTorch {calibration.pytorch:.4f}"
        yield "expected calibration error (15 bins)", f"{measured}, over {calibration.confidences:,} confidences"
    yield "mean |Δlogit|", f"{variant.mean_delta:.3g}"
    yield from ((f"|Δlogit| {name}", f"{value:.3g}") for name, value in variant.delta_quantiles.items())
    yield "size", f"{variant.size / 1e6:.1f} MB"
    yield "SHA-256", variant.sha256
    if variant.largest_weight:
        where = "processors with VNNI or the like only" if variant.needs_exact_int8 else "every processor"
        yield "largest int8 weight", f"{variant.largest_weight}: the same integer sums on {where}"
    yield "time relative to the fastest candidate", _time(variant.relative_time)
    yield "fusions switched off", ", ".join(variant.disabled_optimizers) or "none"


def _figures(variant: VariantReport) -> str:
    logits, deltas = variant.points.logits, variant.points.deltas
    shown = [
        _figure(
            plots.logit_scatter(logits, variant.name),
            f"{len(logits):,} logits drawn evenly; on the line they are equal.",
        ),
        _figure(
            plots.delta_by_length(deltas, variant.name),
            f"{len(deltas):,} test rows, the one that is furthest off among them; the line joins the medians of ten "
            "stretches of length.",
        ),
    ]
    return f'<div class="figures">{"".join(shown)}</div>'


def _changes(variant: VariantReport) -> str:
    rows = [[escape(change.pytorch), escape(change.variant), str(change.rows)] for change in variant.changes]
    shown = sum(change.rows for change in variant.changes)
    more = f"; the {len(rows)} most frequent changes cover {shown:,} of them" if shown < variant.changed_rows else ""
    return f"<h3>Rows whose answer changed</h3><p>{variant.changed_rows:,} of {variant.rows:,} test rows{more}.</p>" + (
        table(["PyTorch", escape(variant.name), "rows"], rows) if rows else ""
    )


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _verdict(passed: bool) -> str:
    word = "pass" if passed else "fail"
    return f'<span class="{word}">{word}</span>'


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
