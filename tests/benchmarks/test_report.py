import itertools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks.machine import machine_facts
from benchmarks.plot import draw
from benchmarks.report import BenchReport, BenchSettings, EngineFacts, Timing, markdown_table, tables
from export.timing import Spread


def timing(engine: str, workload: str, ms: float, texts: int = 1) -> Timing:
    return Timing(
        engine=engine,
        workload=workload,
        texts=texts,
        passes=9,
        ms=Spread(ms, 0.9 * ms, 1.1 * ms),
        p95_ms=2 * ms,
        texts_per_s=Spread(1000 * texts / ms, 900 * texts / ms, 1100 * texts / ms),
        speedup=Spread(80 / ms, 70 / ms, 90 / ms),
    )


@pytest.fixture
def report() -> BenchReport:
    return BenchReport(
        name="birds",
        created="2026-11-22T10:00:00+00:00",
        inputs_digest="0" * 64,
        machine={"cpu": "Abacus 3000", "instruction_set": "beads", "cpus": "2", "torch": "2.13.0"},
        settings=BenchSettings(),
        threads=2,
        rounds=7,
        baseline="PyTorch sdpa",
        shapes=("1×16", "1×128"),
        real=("padded 32", "sorted"),
        engines={
            "PyTorch sdpa": EngineFacts(load_s=4.5, peak_mib=600.4, file_mib=86.77),
            "ONNX int8": EngineFacts(load_s=0.51, peak_mib=180, file_mib=22.4, verdict="fail"),
        },
        timings=tuple(
            timing(engine, workload, ms, texts=60 if workload in ("padded 32", "sorted") else 1)
            for engine, ms in (("PyTorch sdpa", 80.0), ("ONNX int8", 4.0))
            for workload in ("1×16", "1×128", "padded 32", "sorted")
        ),
    )


def test_tables_say_who_where_and_how_much(report: BenchReport) -> None:
    text = tables(report)
    assert "birds: Abacus 3000 (beads), 2 threads, 7 interleaved rounds, 2026-11-22" in text
    assert "torch 2.13.0" in text
    (latency, throughput, cost) = [line for line in text.splitlines() if line.startswith("| ONNX int8")]
    assert [cell.strip() for cell in latency.split("|")[2:5]] == ["4.00 (3.60–4.40)", "8.00", "20.0 (17.5–22.5)"]
    assert "15000 (13500–16500)" in throughput
    assert "on 60 real texts" in text
    assert [cell.strip() for cell in cost.split("|")[1:-1]] == ["ONNX int8", "0.51", "180", "22.4", "fail"]


def test_columns_line_up_and_keep_their_cells() -> None:
    lines = markdown_table(["engine", "×"], [["a", "1.00"], ["a longer one", "12"]])
    assert len({len(line) for line in lines}) == 1
    assert lines[1] == "| ------------ | ---: |"
    assert lines[3] == "| a longer one |   12 |"


def test_a_report_comes_back_from_json_and_an_unknown_key_does_not(report: BenchReport) -> None:
    assert BenchReport.model_validate_json(report.model_dump_json()) == report
    with pytest.raises(ValueError, match="surprise"):
        BenchReport.model_validate({**report.model_dump(), "surprise": 1})


def test_a_timing_that_was_not_taken_is_a_key_error(report: BenchReport) -> None:
    with pytest.raises(KeyError, match="8×128"):
        report.timing("ONNX int8", "8×128")


def test_the_picture_is_a_png_with_a_bar_of_each_engine(report: BenchReport, tmp_path: Path) -> None:
    from matplotlib.image import imread

    draw(report, tmp_path / "bench.png")

    pixels = imread(tmp_path / "bench.png")
    assert pixels.shape[0] > 400
    assert pixels.shape[1] > 1000
    assert all(_area(pixels, shade) > 1000 for shade in (0x8C, 0x4D)), "a bar of each engine"


def _area(pixels: npt.NDArray[np.float32], shade: int) -> int:
    return int((np.abs(pixels[..., :3] - shade / 255).max(axis=2) < 0.02).sum())


def test_a_picture_of_many_engines_is_drawn(report: BenchReport, tmp_path: Path) -> None:
    names = [f"engine {index}" for index in range(10)]
    facts = report.engines["ONNX int8"]
    workloads = (*report.shapes, *report.real)
    many = report.model_copy(
        update={
            "baseline": names[0],
            "engines": dict.fromkeys(names, facts),
            "timings": tuple(timing(name, load, 3.0) for name, load in itertools.product(names, workloads)),
        }
    )
    draw(many, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").stat().st_size > 10_000


def test_machine_facts_are_read_and_name_no_machine(tmp_path: Path) -> None:
    import platform

    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Abacus: 3000\nflags\t\t: fpu avx2 avx512_vnni\n")
    facts = machine_facts(cpuinfo)
    assert facts["cpu"] == "Abacus: 3000"
    assert facts["instruction_set"] == "avx2 avx512_vnni"
    assert {"cpus", "python", "torch", "onnxruntime"} < set(facts)
    assert platform.node() not in facts.values()
    assert machine_facts(tmp_path / "missing")["cpu"] == platform.machine()
