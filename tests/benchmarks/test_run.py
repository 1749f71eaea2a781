import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.report import BenchReport, BenchSettings
from benchmarks.run import BASELINE, PADDED, SORTED, bench
from benchmarks.variants import read_variants
from bundle import read_manifest
from tasks.errors import ParitybitError

QUICK = BenchSettings(sample=24, rounds=2, min_rounds=2, warmup_s=0.02, budget_s=60)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench") / "bench"


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return []


@pytest.fixture(scope="module")
def found(tiny_export: Path, tiny_checkpoint: Path, output: Path, lines: list[str]) -> BenchReport:
    return bench(tiny_export, tiny_checkpoint, output=output, threads=1, settings=QUICK, report=lines.append)


def test_pytorch_and_every_variant_are_timed_on_every_workload(found: BenchReport) -> None:
    assert set(found.engines) == {"PyTorch eager", "PyTorch sdpa"} | {
        f"ONNX {name}" for name in ("fp32", "int8-dynamic", "int8-static")
    }
    assert found.real == (PADDED, SORTED)
    assert "1×16" in found.shapes
    for engine in found.engines:
        for workload in (*found.shapes, *found.real):
            timing = found.timing(engine, workload)
            assert 0 < timing.ms.q1 <= timing.ms.median <= timing.ms.q3
            assert timing.p95_ms >= timing.ms.median
    assert found.threads == 1
    assert found.rounds == 2


def test_speedup_is_relative_to_the_usual_way(found: BenchReport) -> None:
    assert found.timing(BASELINE, PADDED).speedup.median == pytest.approx(1.0)
    one = found.timing("ONNX int8-static", SORTED)
    rates = one.texts_per_s.median / found.timing(BASELINE, PADDED).texts_per_s.median
    assert one.speedup.median == pytest.approx(rates, rel=0.5), "paired by round, so near the ratio of the medians"
    assert one.texts == found.real_texts == 24


def test_costs_are_those_of_the_files_and_processes(found: BenchReport, tiny_export: Path) -> None:
    size = (tiny_export.parent / "variants" / "int8-static.onnx").stat().st_size
    assert found.engines["ONNX int8-static"].file_mib == pytest.approx(size / 2**20)
    assert found.engines["PyTorch sdpa"].peak_mib > found.engines["ONNX fp32"].peak_mib > 20
    assert found.engines["PyTorch sdpa"].load_s > 0


def test_table_first_and_one_json_line_last(found: BenchReport, lines: list[str]) -> None:
    assert BenchReport.model_validate_json(lines[-1]) == found
    assert all(engine in lines[0] for engine in found.engines)


def test_report_picture_and_page_are_written_without_this_machines_paths(found: BenchReport, output: Path) -> None:
    assert (output / "bench.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert "| ONNX int8-static" in (output / "bench.md").read_text()
    stored = (output / "bench.json").read_text()
    assert BenchReport.model_validate_json(stored) == found
    assert str(Path.home()) not in stored
    assert "/tmp" not in stored


def test_same_inputs_are_not_measured_again(
    found: BenchReport, tiny_export: Path, tiny_checkpoint: Path, output: Path
) -> None:
    before = (output / "bench.json").stat().st_mtime_ns
    assert bench(tiny_export, tiny_checkpoint, output=output, threads=1, settings=QUICK) == found
    assert (output / "bench.json").stat().st_mtime_ns == before


def test_variants_come_from_beside_the_bundle_or_from_it(tiny_export: Path, tiny_bundle: Path) -> None:
    beside = read_variants(tiny_export)
    assert {name: one.verdict for name, one in beside.items()}["fp32"] == "pass"
    assert beside["fp32"].path == tiny_export.parent / "variants" / "fp32.onnx"
    own = read_variants(tiny_bundle)
    assert own[read_manifest(tiny_bundle).default_variant].path == tiny_bundle / "model.onnx"


def test_a_missing_graph_is_named(tiny_export: Path, tmp_path: Path) -> None:
    (tmp_path / "variants").mkdir()
    entries = {"fp32": {"file": "gone.onnx", "verdict": "pass"}}
    (tmp_path / "variants" / "variants.json").write_text(json.dumps(entries))
    with pytest.raises(ParitybitError, match=r"gone\.onnx: fp32 is missing; run export again"):
        read_variants(tmp_path / "bundle")


def test_plans_of_the_batching_study_cover_every_row() -> None:
    from benchmarks.batching import make_plans

    lengths = np.random.default_rng(0).integers(3, 90, 200).tolist()
    for plan in make_plans(lengths).values():
        assert sorted(row for batch in plan for row in batch) == list(range(200))
