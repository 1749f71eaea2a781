"""One table of what the certificate and the benchmark say of each variant."""

from collections.abc import Mapping
from typing import Any

from benchmarks.report import BenchReport

__all__ = ["summary_table"]


def summary_table(certificate: dict[str, Any], results: BenchReport) -> str:
    """Quality, parity, speed relative to PyTorch sdpa, and size, a row for PyTorch and for each variant."""
    sorted_real = results.real[-1]
    metrics = list(certificate["pytorch"])
    header = [
        "",
        *metrics,
        "same answers",
        "max |Δlogit|",
        "Δ by company",
        *(f"{shape} ×" for shape in results.shapes),
        "real texts ×",
        "MB",
        "gates",
    ]
    pytorch = results.baseline
    rows = [
        [
            "PyTorch",
            *(f"{certificate['pytorch'][name]:.4f}" for name in metrics),
            "",
            "",
            "",
            *("1.00" for _ in results.shapes),
            "1.00",
            f"{results.engines[pytorch].file_mib * 1.048576:.1f}",
            "",
        ]
    ]
    for variant in sorted(certificate["variants"], key=lambda one: -one["size"]):
        engine = f"ONNX {variant['name']}"
        published = variant["name"] == certificate["published"]
        rows.append(
            [
                f"{engine}{' *' if published else ''}",
                *(f"{variant['metrics'][name]:.4f}" for name in metrics),
                f"{variant['agreement']:.2%}",
                f"{variant['delta_quantiles']['p100']:.2g}",
                f"{variant['max_batch_delta']:.1g}",
                *(f"{results.timing(engine, shape).speedup.median:.2f}" for shape in results.shapes),
                f"{results.timing(engine, sorted_real).speedup.median:.2f}",
                f"{variant['size'] / 1e6:.1f}",
                _verdict(variant, certificate["evidence"]["test_rows"]),
            ]
        )
    evidence = certificate["evidence"]
    return "\n".join(
        [
            f"{certificate['name']}: {evidence['test_rows']:,} test rows; × = times the speed of {pytorch} at "
            f"{results.threads} threads, on real texts times that of batches of 32 padded to the longest",
            *_aligned([header, *rows]),
            f"* published: {certificate['reason']}",
        ]
    )


def _verdict(variant: Mapping[str, Any], test_rows: int) -> str:
    screened = variant["rows"] < test_rows
    return f"{variant['verdict']} ({variant['rows']} rows)" if screened else str(variant["verdict"])


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return [lines[0], "─" * len(lines[0]), *lines[1:]]
