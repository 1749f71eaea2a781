"""Activation ranges for static quantization, from training rows.

Rows stream one by one, twice: the first pass finds each tensor's extremes, the second counts its values into bins
between them. Every way to choose a range works on these histograms alone, so that another one costs no further pass.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from bundle.session import Session
from tasks import Window, collate

__all__ = [
    "RANGE_METHODS",
    "ActivationRange",
    "Histogram",
    "Histograms",
    "Ranges",
    "calibrate",
    "choose_rows",
    "collect_histograms",
    "observe",
    "ranges_of",
    "rows_digest",
]

_BINS = 2048
"""Of a histogram: eight for each step of uint8 over the whole range."""

_EMPTY = 1e-4
"""What a bin without values counts for once it is the edge that outliers were moved to, or none could be."""

_STRIDE = 8
"""Bins between one clip that is tried and the next: one step of uint8 over the whole range."""


@dataclass(frozen=True, slots=True)
class ActivationRange:
    """Smallest and largest value that a tensor took, or between which it is to be kept."""

    low: float
    high: float

    def uint8(self) -> tuple[np.float32, np.uint8]:
        """Scale and zero point of asymmetric uint8; zero is always represented exactly."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        scale = np.float32(max(high - low, 1e-8) / 255)
        return scale, np.uint8(np.clip(round(-low / float(scale)), 0, 255))


Ranges = dict[str, ActivationRange]

Progress = Callable[[Iterable[Window]], Iterable[Window]]


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """How often a tensor's values fell into each of equal bins.

    Attributes:
        low: lower edge of the first bin, at most zero, since uint8 has to represent zero anyway.
        high: upper edge of the last bin, at least zero.
        counts: int64, shape `[2048]`.
    """

    low: float
    high: float
    counts: npt.NDArray[np.int64]

    @property
    def width(self) -> float:
        """Of a bin; a tensor that is always zero has bins too."""
        return max(self.high - self.low, 1e-30) / len(self.counts)

    @property
    def zero(self) -> float:
        """Where zero lies, counted in bins."""
        return -self.low / self.width

    def between(self, start: int, stop: int) -> ActivationRange:
        """The range that bins `start` to `stop` (exclusive) cover."""
        return ActivationRange(self.low + start * self.width, self.low + stop * self.width)


Histograms = dict[str, Histogram]


def choose_rows(lengths: Sequence[int], count: int, seed: int) -> list[int]:
    """Row numbers spread evenly over the lengths, chosen by seed within each stretch of similar length.

    Args:
        lengths: tokens of each row.
        count: how many rows to choose; all when there are fewer.
        seed: of the choice.

    Returns:
        Distinct row numbers, ascending.
    """
    order = np.argsort(lengths, kind="stable")
    generator = np.random.default_rng(seed)
    stretches = np.array_split(order, min(count, len(order)))
    return sorted(int(generator.choice(stretch)) for stretch in stretches)


def rows_digest(windows: Sequence[Window]) -> str:
    """Hex SHA-256 over the token ids of the calibration rows, for the certificate."""
    digest = hashlib.sha256()
    for window in windows:
        digest.update(window.input_ids.tobytes() + b"\n")
    return digest.hexdigest()


def observe(
    model: Path,
    tensors: Sequence[str],
    windows: Iterable[Window],
    pad_id: int,
    nodes: Iterable[onnx.NodeProto] = (),
) -> Iterator[list[npt.NDArray[np.float32]]]:
    """Runs a graph over rows, one by one, and yields tensors from inside it.

    Alone in its batch a row has no padding to be masked out, and memory does not grow with the number of rows.

    Args:
        model: the fp32 ONNX file.
        tensors: float tensors of the graph or of `nodes`.
        windows: the rows.
        pad_id: id of the padding token.
        nodes: to be added behind those of the graph.

    Yields:
        The values of each tensor for one row, float32, flat: shape `[values]`.
    """
    if not tensors:  # ONNX Runtime takes an empty list for all outputs
        return
    with tempfile.TemporaryDirectory(dir=model.parent) as directory:
        watched = Path(directory) / "watched.onnx"
        outputs = _write_watched(model, tensors, nodes, watched)
        session = Session(watched)
        for window in windows:
            yield session.run_all(collate([window], pad_id), outputs)


def _write_watched(model: Path, tensors: Sequence[str], nodes: Iterable[onnx.NodeProto], path: Path) -> list[str]:
    """A function of its own, so that its copy of the weights is gone before the session loads them."""
    proto = onnx.load(model)
    graph = proto.graph
    graph.node.extend(nodes)
    graph.initializer.append(numpy_helper.from_array(np.array([-1], dtype=np.int64), "flat__shape"))
    outputs = [f"{name}__flat" for name in tensors]
    for name, output in zip(tensors, outputs, strict=True):
        graph.node.append(helper.make_node("Reshape", [name, "flat__shape"], [output]))
        graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, [output]))
    onnx.save(proto, path)
    return outputs


def calibrate(
    model: Path, tensors: Iterable[str], windows: Sequence[Window], pad_id: int, progress: Progress = iter
) -> Ranges:
    """Runs the fp32 graph over the rows and keeps each tensor's smallest and largest value.

    The graph itself reduces each activation to two scalars.

    Args:
        model: the fp32 ONNX file.
        tensors: float tensors of the graph to watch.
        windows: calibration rows.
        pad_id: id of the padding token.
        progress: wraps the iteration, for a progress bar.
    """
    names = sorted(set(tensors))
    nodes = [
        helper.make_node(f"Reduce{kind}", [name], [f"{name}__{kind}"], keepdims=0)
        for name in names
        for kind in ("Min", "Max")
    ]
    lows, highs = np.full(len(names), np.inf), np.full(len(names), -np.inf)
    for extremes in observe(model, [node.output[0] for node in nodes], progress(windows), pad_id, nodes):
        values = np.concatenate(extremes).astype(np.float64)
        lows, highs = np.minimum(lows, values[0::2]), np.maximum(highs, values[1::2])
    return {name: ActivationRange(float(low), float(high)) for name, low, high in zip(names, lows, highs, strict=True)}


def collect_histograms(
    model: Path, ranges: Ranges, windows: Sequence[Window], pad_id: int, progress: Progress = iter
) -> Histograms:
    """Runs the fp32 graph over the rows again and counts the values of each tensor.

    At a time it holds one row's activations: 33 MB for 128 tokens of BERT-base.

    Args:
        model: the fp32 ONNX file.
        ranges: of the tensors to watch, as `calibrate` found them on the same rows.
        windows: calibration rows.
        pad_id: id of the padding token.
        progress: wraps the iteration, for a progress bar.
    """
    histograms = {
        name: Histogram(min(one.low, 0.0), max(one.high, 0.0), np.zeros(_BINS, dtype=np.int64))
        for name, one in ranges.items()
    }
    for activations in observe(model, list(histograms), progress(windows), pad_id):
        for histogram, values in zip(histograms.values(), activations, strict=True):
            _count(histogram, values)
    return histograms


def _count(histogram: Histogram, values: npt.NDArray[np.float32]) -> None:
    """By hand: `np.histogram` takes three times as long, as long as the model's own run."""
    positions = (values - np.float32(histogram.low)) * np.float32(1 / histogram.width)
    # the largest value lies on the upper edge of the last bin
    bins = np.clip(positions, 0, _BINS - 1, out=positions).astype(np.intp)
    histogram.counts[:] += np.bincount(bins, minlength=_BINS)


def ranges_of(histograms: Mapping[str, Histogram], method: str) -> Ranges:
    """A range for each tensor.

    Args:
        histograms: as `collect_histograms` gives them.
        method: one of `RANGE_METHODS`.
    """
    return {name: RANGE_METHODS[method](histogram) for name, histogram in histograms.items()}


def _min_max(histogram: Histogram) -> ActivationRange:
    return ActivationRange(histogram.low, histogram.high)


def _percentile(share: float, histogram: Histogram) -> ActivationRange:
    """Keeps `share` percent of the values; half of the others are cut off at each end."""
    cumulated = np.cumsum(histogram.counts)
    cut = (100 - share) / 200 * cumulated[-1]
    start, last = np.searchsorted(cumulated, [cut, cumulated[-1] - cut])
    return histogram.between(
        min(int(start), int(np.floor(histogram.zero))), max(int(last) + 1, int(np.ceil(histogram.zero)))
    )


def _entropy(histogram: Histogram) -> ActivationRange:
    """The clip that keeps most of the information, by Kullback-Leibler divergence.

    S. Migacz, "8-bit Inference with TensorRT", GPU Technology Conference 2017: values beyond the clip are counted at
    its edges, the bins within are merged to as many as there are quantized levels, and the two distributions are
    compared. Published for magnitudes and 128 levels; here a window of both signs and the 256 levels of uint8, which
    for a symmetric tensor is the same search.

    It counts how many values are cut off, not how far, and so cuts off the few large ones that norms of encoders give
    and the model lives by (benchmarks/LOG.md).
    """
    windows = [(start, stop) for start, stop in _windows(histogram) if stop - start >= 256]
    divergences = [_divergence(histogram.counts, start, stop) for start, stop in windows]
    return histogram.between(*windows[int(np.argmin(divergences))])


def _divergence(counts: npt.NDArray[np.int64], start: int, stop: int) -> float:
    """KL divergence of the clipped distribution from the quantized one."""
    within = counts[start:stop].astype(np.float64)
    clipped = within.copy()
    clipped[0] += counts[:start].sum()
    clipped[-1] += counts[stop:].sum()
    level = np.arange(len(within)) * 256 // len(within)
    occupied = within > 0
    mean = np.bincount(level, within) / np.maximum(np.bincount(level, occupied), 1)
    quantized = np.where(occupied, mean[level], _EMPTY)
    seen = clipped > 0
    expected, got = clipped[seen] / clipped.sum(), quantized[seen] / quantized.sum()
    return float(np.sum(expected * np.log(expected / got)))


def _mse(histogram: Histogram) -> ActivationRange:
    """The clip with the least mean squared error of rounding and clipping together."""
    # four points a bin: a narrow clip has steps as small as bins
    points = histogram.low + (np.arange(4 * _BINS) + 0.5) * histogram.width / 4
    weights = np.repeat(histogram.counts, 4)
    candidates = [histogram.between(start, stop) for start, stop in _windows(histogram)]
    return candidates[int(np.argmin([_squared_error(points, weights, one) for one in candidates]))]


def _squared_error(points: npt.NDArray[np.float64], weights: npt.NDArray[np.int64], limits: ActivationRange) -> float:
    scale, zero_point = limits.uint8()
    step, zero = float(scale), int(zero_point)
    rounded = (np.clip(np.rint(points / step) + zero, 0, 255) - zero) * step
    return float(np.dot(weights, (points - rounded) ** 2))


def _windows(histogram: Histogram) -> list[tuple[int, int]]:
    """Bins that clips by falling magnitude leave, the whole range first; each holds zero."""
    zero = histogram.zero
    largest = int(np.ceil(max(zero, _BINS - zero)))
    return [
        (max(0, int(np.floor(zero - magnitude))), min(_BINS, int(np.ceil(zero + magnitude))))
        for magnitude in range(largest, 0, -_STRIDE)
    ]


RANGE_METHODS: Mapping[str, Callable[[Histogram], ActivationRange]] = {
    "min-max": _min_max,
    "percentile-99.9": partial(_percentile, 99.9),
    "percentile-99.99": partial(_percentile, 99.99),
    "percentile-99.999": partial(_percentile, 99.999),
    "entropy": _entropy,
    "mse": _mse,
}
"""How a range is chosen from a histogram."""
