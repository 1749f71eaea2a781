import tracemalloc
from collections.abc import Callable
from math import log
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bundle.session import Session
from export.calibration import (
    RANGE_METHODS,
    ActivationRange,
    Histogram,
    calibrate,
    choose_rows,
    collect_histograms,
    ranges_of,
    rows_digest,
)
from export.quantization import quantizable_inputs
from finetune.checkpoint import Checkpoint
from tasks import Window, collate
from tests.export.graphs import embedding_graph, windows_of


def histogram_of(values: np.ndarray) -> Histogram:
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    counts, _ = np.histogram(values, bins=2048, range=(low, high if high > low else low + 1e-30))
    return Histogram(low, high, counts)


def chosen(values: np.ndarray, method: str) -> ActivationRange:
    return ranges_of({"x": histogram_of(values)}, method)["x"]


def with_outliers(bulk: np.ndarray) -> np.ndarray:
    """Two values in ten thousand are far away, on both sides."""
    return np.concatenate([bulk, np.linspace(-40, -30, len(bulk) // 10_000), np.linspace(30, 40, len(bulk) // 10_000)])


def test_ranges_are_the_extremes_over_all_rows(
    graph: Path, checkpoint: Checkpoint, windows: list[Window], tmp_path: Path
) -> None:
    name = quantizable_inputs(graph)[0]
    proto = onnx.load(graph)
    proto.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    onnx.save(proto, tmp_path / "open.onnx")
    session = Session(tmp_path / "open.onnx")
    seen = [session.run_all(collate([window], checkpoint.pad_token_id), [name])[0] for window in windows]
    expected = ActivationRange(float(min(x.min() for x in seen)), float(max(x.max() for x in seen)))
    assert calibrate(graph, [name], windows, checkpoint.pad_token_id) == {name: expected}


def test_calibration_leaves_no_file_behind(graph: Path, checkpoint: Checkpoint, windows: list[Window]) -> None:
    before = sorted(graph.parent.iterdir())
    calibrate(graph, quantizable_inputs(graph), windows[:2], checkpoint.pad_token_id)
    assert sorted(graph.parent.iterdir()) == before


def test_a_histogram_counts_every_value_of_every_row(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    table = generator.normal(2.0, 1.0, size=(50, 64)).astype(np.float32)
    rows = [generator.integers(0, 50, size) for size in (1, 7, 30)]
    graph, windows = embedding_graph(tmp_path / "fp32.onnx", table), windows_of(rows)
    ranges = calibrate(graph, ["x"], windows, pad_id=0)
    histogram = collect_histograms(graph, ranges, windows, pad_id=0)["x"]
    values = table[np.concatenate(rows)]
    expected = histogram_of(values)
    assert (histogram.low, histogram.high) == (expected.low, expected.high)
    assert histogram.counts.sum() == values.size
    # a value on an edge may fall on either side in float32
    assert np.abs(np.cumsum(histogram.counts) - np.cumsum(expected.counts)).max() <= 2


@pytest.mark.parametrize("collect", [calibrate, collect_histograms])
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, collect: Callable[..., object]) -> None:
    table = np.random.default_rng(0).normal(size=(50, 128)).astype(np.float32)
    graph = embedding_graph(tmp_path / "fp32.onnx", table)
    ranges = {"x": ActivationRange(float(table.min()), float(table.max()))}

    def peak(rows: int) -> int:
        windows = windows_of([range(50)] * rows)
        tracemalloc.start()
        collect(graph, ranges, windows, pad_id=0)
        _, largest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return largest

    peak(1)  # what is imported and cached once
    assert peak(60) < 1.5 * peak(6)
    assert peak(60) < 60 * 50 * table.shape[1] * 4, "less than the activations of all rows"


def test_min_max_of_a_histogram_is_what_was_seen(graph: Path, checkpoint: Checkpoint, windows: list[Window]) -> None:
    pad_id = checkpoint.pad_token_id
    ranges = calibrate(graph, quantizable_inputs(graph), windows, pad_id)
    again = ranges_of(collect_histograms(graph, ranges, windows, pad_id), "min-max")
    assert {name: one.uint8() for name, one in again.items()} == {name: one.uint8() for name, one in ranges.items()}


@pytest.mark.parametrize("share", [99.9, 99.99, 99.999])
def test_percentile_is_that_of_the_values_within_a_bin(share: float) -> None:
    values = np.random.default_rng(1).standard_t(3, size=400_000)
    width = histogram_of(values).width
    limits = chosen(values, f"percentile-{share}")
    low, high = np.percentile(values, [(100 - share) / 2, 100 - (100 - share) / 2], method="inverted_cdf")
    assert limits.low == pytest.approx(low, abs=2 * width)
    assert limits.high == pytest.approx(high, abs=2 * width)
    assert np.mean((values >= limits.low) & (values <= limits.high)) >= share / 100 - 1e-5


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_mse_finds_the_clip_with_the_least_error(shift: float) -> None:
    values = with_outliers(np.random.default_rng(2).normal(shift, 1.0, size=50_000))

    def error(limits: ActivationRange) -> float:
        scale, zero_point = (float(one) for one in limits.uint8())
        rounded = (np.clip(np.round(values / scale) + zero_point, 0, 255) - zero_point) * scale
        return float(np.mean((values - rounded) ** 2))

    low, high = values.min(), values.max()
    clips = [ActivationRange(max(low, -one), min(high, one)) for one in np.linspace(1, 40, 200)]
    found = chosen(values, "mse")
    assert found.high < 40
    assert error(found) <= 1.02 * min(error(clip) for clip in clips)
    assert error(found) < 0.9 * error(ActivationRange(low, high))


def test_entropy_finds_the_clip_of_the_published_search() -> None:
    """Migacz 2017, written down step by step: both signs at once, 128 levels each."""
    bulk = np.random.default_rng(3).normal(0, 3, size=30_000)
    values = with_outliers(np.concatenate([bulk, -bulk]))
    histogram = histogram_of(values)
    counts = [int(one) for one in histogram.counts]

    def divergence(start: int, stop: int) -> float:
        reference = [float(one) for one in counts[start:stop]]
        reference[0] += sum(counts[:start])
        reference[-1] += sum(counts[stop:])
        candidate = [0.0] * len(reference)
        for level in range(256):
            bins = [one for one in range(len(reference)) if one * 256 // len(reference) == level]
            filled = [one for one in bins if counts[start + one] > 0]
            for one in filled:
                candidate[one] = sum(counts[start + other] for other in bins) / len(filled)
        candidate = [one or 1e-4 for one in candidate]
        totals = sum(reference), sum(candidate)
        pairs = [(p / totals[0], q / totals[1]) for p, q in zip(reference, candidate, strict=True)]
        return sum(p * log(p / q) for p, q in pairs if p > 0)

    found = chosen(values, "entropy")
    magnitude = round((found.high - found.low) / histogram.width / 2)
    assert 128 <= magnitude < 1024
    best = divergence(1024 - magnitude, 1024 + magnitude)
    assert best < divergence(0, 2048)
    for other in (magnitude - 24, magnitude - 8, magnitude + 8, magnitude + 24, magnitude + 200):
        if 128 <= other <= 1024:
            assert best <= divergence(1024 - other, 1024 + other)


@pytest.mark.parametrize("method", ["percentile-99.9", "entropy"])
def test_rare_outliers_are_cut_off(method: str) -> None:
    limits = chosen(with_outliers(np.random.default_rng(4).normal(size=50_000)), method)
    assert -25 < limits.low < -2
    assert 2 < limits.high < 25


@pytest.mark.parametrize("method", sorted(RANGE_METHODS))
def test_values_without_outliers_are_kept(method: str) -> None:
    limits = chosen(np.linspace(-1, 3, 100_000), method)
    assert limits.low == pytest.approx(-1, abs=0.02)
    assert limits.high == pytest.approx(3, abs=0.02)


@pytest.mark.parametrize("method", sorted(RANGE_METHODS))
@pytest.mark.parametrize("values", [np.linspace(5, 6, 999), np.linspace(-6, -5, 999), np.zeros(99)])
def test_zero_is_in_every_range(method: str, values: np.ndarray) -> None:
    limits = chosen(values, method)
    assert limits.low <= 0 <= limits.high
    assert limits.high - limits.low <= 6.01


def test_rows_are_spread_over_the_lengths_and_follow_the_seed() -> None:
    lengths = list(np.random.default_rng(0).integers(3, 99, 1000))
    rows = choose_rows(lengths, 100, seed=1)
    assert len(set(rows)) == 100
    chosen = sorted(lengths[row] for row in rows)
    assert abs(np.median(chosen) - np.median(lengths)) <= 3
    assert chosen[0] < 8
    assert chosen[-1] > 94
    assert rows == choose_rows(lengths, 100, seed=1) != choose_rows(lengths, 100, seed=2)


def test_fewer_rows_than_asked_for_gives_all() -> None:
    assert choose_rows([5, 3, 4], 10, seed=0) == [0, 1, 2]


def test_digest_follows_the_rows(windows: list[Window]) -> None:
    assert rows_digest(windows) == rows_digest(list(windows)) != rows_digest(windows[:-1])
