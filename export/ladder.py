"""The ladder to a static int8 graph: what is expected to be fastest first, until one is good enough.

All that differs on a rung is tried on validation rows, never on test rows, whose word in the certificate would be worth
less for it:

1. every way to choose activation ranges from the same histograms; all of these graphs take the same time;
2. the same on a smoothed graph (SmoothQuant), which takes one more elementwise operator a norm;
3. the products that lose most, measured one by one, stay in float: 1, 2, 4 … of them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bundle.session import Session
from export.calibration import Ranges, calibrate, collect_histograms, ranges_of
from export.certificate import Attempt
from export.parity import compare, logits_of
from export.quantization import quantizable_inputs, quantize
from export.sensitivity import measure_sensitivity
from export.smoothing import channel_maxima, smooth
from tasks import Encoded, Task, Window
from tasks.base import FloatArray, Gold

__all__ = ["Attempt", "Rehearsal", "climb"]

_METHODS = ("min-max", "percentile-99.99", "percentile-99.999", "entropy", "mse")
_SENSITIVITY_WINDOWS = 32


@dataclass(frozen=True)
class Rehearsal:
    """Validation rows that attempts are tried on, and what they must reach there."""

    task: Task
    encoded: Encoded
    golds: Sequence[Gold]
    pad_id: int
    min_agreement: float
    max_loss: float


@dataclass(frozen=True, slots=True)
class _Tried:
    attempt: Attempt
    path: Path
    source: Path
    ranges: Ranges


@dataclass(frozen=True, slots=True)
class _Climb:
    """What every rung works on: the float graph with its answers, the rows, and where graphs are written."""

    fp32: Path
    output: Path
    calibration: Sequence[Window]
    rehearsal: Rehearsal
    reference: Sequence[FloatArray]


def climb(
    fp32: Path, output: Path, calibration: Sequence[Window], rehearsal: Rehearsal, report: Callable[[str], None]
) -> list[Attempt]:
    """Writes the first static int8 graph that is good enough, else the one that is nearest to the float graph.

    Args:
        fp32: the float graph.
        output: where to write; the graphs that are tried stand beside it meanwhile.
        calibration: training rows.
        rehearsal: validation rows.
        report: told of each attempt in a line.

    Returns:
        Every attempt, the chosen one marked.
    """
    reference = logits_of(Session(fp32).run, rehearsal.encoded.windows, rehearsal.pad_id)
    way = _Climb(fp32, output, calibration, rehearsal, reference)
    tried: list[_Tried] = []
    for rung in (_ranges, _smoothed, _mixed):
        for one in rung(way, tried):
            report(_line(one.attempt))
            tried.append(one)
            for other in tried:
                if other is not _best(tried):
                    other.path.unlink(missing_ok=True)
        if _best(tried).attempt.good_enough:
            break
    _best(tried).path.replace(output)
    return [replace(one.attempt, chosen=one is _best(tried)) for one in tried]


def _best(tried: Sequence[_Tried]) -> _Tried:
    return min(tried, key=lambda one: (not one.attempt.good_enough, one.attempt.mean_delta))


def _ranges(way: _Climb, tried: Sequence[_Tried]) -> Iterator[_Tried]:
    yield from _every_method(way, way.fp32, "")


def _smoothed(way: _Climb, tried: Sequence[_Tried]) -> Iterator[_Tried]:
    path = way.output.with_name(f"{way.output.stem}-smoothed-fp32.onnx")
    if smooth(way.fp32, path, channel_maxima(way.fp32, way.calibration, way.rehearsal.pad_id)):
        yield from _every_method(way, path, "smoothed, ")


def _mixed(way: _Climb, tried: Sequence[_Tried]) -> Iterator[_Tried]:
    """From the best so far; the first that is good enough is the fastest of them."""
    best = _best(tried)
    windows = way.calibration[:: max(1, len(way.calibration) // _SENSITIVITY_WINDOWS)]
    worst = list(measure_sensitivity(best.source, best.path, windows, way.rehearsal.pad_id))
    count = 1
    while count < len(worst):
        path = way.output.with_name(f"{way.output.stem}-{count}-float.onnx")
        quantize(best.source, path, best.ranges, keep_float=worst[:count])
        how = f"{best.attempt.how}, {count} of {len(worst)} products in float"
        one = _Tried(_attempt(way, how, path), path, best.source, best.ranges)
        yield one
        if one.attempt.good_enough:
            return
        count *= 2


def _every_method(way: _Climb, source: Path, prefix: str) -> Iterator[_Tried]:
    pad_id = way.rehearsal.pad_id
    extremes = calibrate(source, quantizable_inputs(source), way.calibration, pad_id)
    histograms = collect_histograms(source, extremes, way.calibration, pad_id)
    for method in _METHODS:
        ranges = ranges_of(histograms, method)
        path = way.output.with_name(f"{source.stem}-{method}.onnx")
        quantize(source, path, ranges)
        yield _Tried(_attempt(way, f"{prefix}{method}", path), path, source, ranges)


def _attempt(way: _Climb, how: str, path: Path) -> Attempt:
    rehearsal = way.rehearsal
    task, encoded, golds = rehearsal.task, rehearsal.encoded, rehearsal.golds
    outputs = logits_of(Session(path).run, encoded.windows, rehearsal.pad_id)
    parity = compare(task, way.reference, outputs, encoded)
    scores = [task.score(task.statistics(one, encoded, golds)) for one in (way.reference, outputs)]
    loss = scores[0] - scores[1]
    # a row more than the limit allows is no evidence among so few
    good = parity.agreement >= rehearsal.min_agreement and loss <= rehearsal.max_loss + 1 / len(encoded)
    return Attempt(how, parity.agreement, loss, parity.mean_delta, good)


def _line(attempt: Attempt) -> str:
    verdict = "good enough" if attempt.good_enough else "not good enough"
    return (
        f"  int8 static, {attempt.how}: agreement {attempt.agreement:.4f}, metric lost {attempt.loss:+.4f}, "
        f"mean |Δlogit| {attempt.mean_delta:.4f}: {verdict}"
    )
