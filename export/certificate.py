"""The certificate: what was checked, on what, with what result; as JSON and as a page for people."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from bundle.manifest import CERTIFICATE_FILE
from export.gates import Gate, Interval, failed

__all__ = ["Certificate", "ChangedRow", "Evidence", "VariantReport", "write_certificate"]

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
class VariantReport:
    """Everything that was measured of one variant.

    Attributes:
        metrics: of the task, on the test rows.
        metric: the primary metric with its 95 % bootstrap interval.
        loss: PyTorch's primary metric minus the variant's, paired by row, with its 95 % bootstrap interval.
        delta_quantiles: of the rows' largest |Δlogit|.
        relative_time: time relative to the fastest candidate, over short, long and real inputs alike.
        disabled_optimizers: ONNX Runtime fusions that did not pay.
    """

    name: str
    file: str
    size: int
    gates: tuple[Gate, ...]
    metrics: dict[str, float]
    metric: Interval
    loss: Interval
    agreement: float
    delta_quantiles: dict[str, float]
    mean_delta: float
    max_batch_delta: float
    relative_time: float
    disabled_optimizers: tuple[str, ...]
    worst_rows: tuple[ChangedRow, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every gate passed."""
        return not failed(self.gates)

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the verdict."""
        return {**asdict(self), "verdict": "pass" if self.passed else "fail"}


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
class Certificate:
    """The whole of it."""

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

    def to_json(self) -> dict[str, Any]:
        """Plain values; the verdict is `pass`, for what does not pass is not published."""
        plain = asdict(self)
        plain["variants"] = [variant.to_json() for variant in self.variants]
        return {"schema_version": SCHEMA_VERSION, "verdict": "pass", **plain}


def write_certificate(directory: Path, certificate: Certificate) -> None:
    """Writes `certificate.json` and a self-contained `certificate.html`."""
    content = json.dumps(certificate.to_json(), indent=2, ensure_ascii=False) + "\n"
    (directory / CERTIFICATE_FILE).write_text(content, encoding="utf-8")
    (directory / "certificate.html").write_text(_page(certificate), encoding="utf-8")


_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1.5rem; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid #8885; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.pass { color: #187a3c; font-weight: 600; } .fail { color: #c02020; font-weight: 600; }
code { word-break: break-all; }
@media print { body { max-width: none; margin: 0; } table { break-inside: avoid; } }
"""


def _page(certificate: Certificate) -> str:
    evidence = certificate.evidence
    facts = [
        ("Published variant", f"{certificate.published} ({certificate.reason})"),
        ("Created", certificate.created),
        ("Checkpoint", certificate.checkpoint_digest),
        ("Test rows", f"{evidence.test_rows:,} and {evidence.edge_case_rows:,} generated ones"),
        ("Calibration", f"{evidence.calibration_rows} training rows, SHA-256 {evidence.calibration_digest}"),
        ("Data", evidence.data_fingerprint),
        ("Attention", f"{certificate.fused_attentions} fused of {certificate.layers or 'unknown'} layers"),
        ("Machine", ", ".join(f"{key}: {_plain(value)}" for key, value in certificate.machine.items())),
        ("Versions", ", ".join(f"{name} {version}" for name, version in certificate.versions.items())),
    ]
    sections = [_section(variant, certificate) for variant in certificate.variants]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Certificate of {escape(certificate.name)}</title><style>{_STYLE}</style></head><body>
<h1>Certificate of {escape(certificate.name)}: <span class="pass">pass</span></h1>
{_table(["", ""], [[escape(key), f"<code>{escape(value)}</code>"] for key, value in facts])}
<h2>PyTorch, the reference</h2>
{_table(["metric", "value"], [[escape(name), f"{value:.4f}"] for name, value in certificate.pytorch.items()])}
{"".join(sections)}
</body></html>
"""


def _section(variant: VariantReport, certificate: Certificate) -> str:
    verdict = "pass" if variant.passed else "fail"
    gates = [
        [
            escape(gate.name),
            f"{gate.value:.6g}",
            f"{'≤' if gate.relation == '<=' else '≥'} {gate.limit:.6g}",
            f'<span class="{"pass" if gate.passed else "fail"}">{"pass" if gate.passed else "fail"}</span>',
        ]
        for gate in variant.gates
    ]
    numbers = [
        *((name, f"{value:.4f}") for name, value in variant.metrics.items()),
        (f"{certificate.primary_metric}, 95 % interval", f"{variant.metric.low:.4f} to {variant.metric.high:.4f}"),
        (
            f"{certificate.primary_metric} lost, 95 % interval",
            f"{variant.loss.value:+.4f} ({variant.loss.low:+.4f} to {variant.loss.high:+.4f})",
        ),
        ("mean |Δlogit|", f"{variant.mean_delta:.3g}"),
        *((f"|Δlogit| {name}", f"{value:.3g}") for name, value in variant.delta_quantiles.items()),
        ("size", f"{variant.size / 1e6:.1f} MB"),
        ("time relative to the fastest candidate", f"{variant.relative_time:.2f}"),
        ("fusions switched off", ", ".join(variant.disabled_optimizers) or "none"),
    ]
    rows = [
        [
            str(row.row),
            escape(row.text),
            escape(row.expected),
            escape(row.pytorch),
            escape(row.variant),
            f"{row.delta:.3g}",
        ]
        for row in variant.worst_rows
    ]
    return (
        f'<h2>{escape(variant.name)}: <span class="{verdict}">{verdict}</span></h2>'
        + _table(["gate", "value", "limit", "verdict"], gates)
        + _table(["measured", "value"], [[escape(name), escape(value)] for name, value in numbers])
        + "<h3>Rows furthest from PyTorch</h3>"
        + _table(["row", "text", "label", "PyTorch", variant.name, "|Δlogit|"], rows)
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    header = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>"


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
