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
    tried: list[_Tried] = []
    for rung in (_ranges, _smoothed, _mixed):
        for one in rung(fp32, output, calibration, rehearsal, reference, tried):
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


def _ranges(
    fp32: Path,
    output: Path,
    calibration: Sequence[Window],
    rehearsal: Rehearsal,
    reference: Sequence[FloatArray],
    tried: Sequence[_Tried],
) -> Iterator[_Tried]:
    yield from _every_method(fp32, "", output, calibration, rehearsal, reference)


def _smoothed(
    fp32: Path,
    output: Path,
    calibration: Sequence[Window],
    rehearsal: Rehearsal,
    reference: Sequence[FloatArray],
    tried: Sequence[_Tried],
) -> Iterator[_Tried]:
    path = output.with_name(f"{output.stem}-smoothed-fp32.onnx")
    if smooth(fp32, path, channel_maxima(fp32, calibration, rehearsal.pad_id)):
        yield from _every_method(path, "smoothed, ", output, calibration, rehearsal, reference)


def _mixed(
    fp32: Path,
    output: Path,
    calibration: Sequence[Window],
    rehearsal: Rehearsal,
    reference: Sequence[FloatArray],
    tried: Sequence[_Tried],
) -> Iterator[_Tried]:
    """From the best so far; the first that is good enough is the fastest of them."""
    best = _best(tried)
    windows = calibration[:: max(1, len(calibration) // _SENSITIVITY_WINDOWS)]
    worst = list(measure_sensitivity(best.source, best.path, windows, rehearsal.pad_id))
    count = 1
    while count < len(worst):
        path = output.with_name(f"{output.stem}-{count}-float.onnx")
        quantize(best.source, path, best.ranges, keep_float=worst[:count])
        how = f"{best.attempt.how}, {count} of {len(worst)} products in float"
        one = _Tried(_attempt(how, path, rehearsal, reference), path, best.source, best.ranges)
        yield one
        if one.attempt.good_enough:
            return
        count *= 2


def _every_method(
    source: Path,
    prefix: str,
    output: Path,
    calibration: Sequence[Window],
    rehearsal: Rehearsal,
    reference: Sequence[FloatArray],
) -> Iterator[_Tried]:
    extremes = calibrate(source, quantizable_inputs(source), calibration, rehearsal.pad_id)
    histograms = collect_histograms(source, extremes, calibration, rehearsal.pad_id)
    for method in _METHODS:
        ranges = ranges_of(histograms, method)
        path = output.with_name(f"{source.stem}-{method}.onnx")
        quantize(source, path, ranges)
        yield _Tried(_attempt(f"{prefix}{method}", path, rehearsal, reference), path, source, ranges)


def _attempt(how: str, path: Path, rehearsal: Rehearsal, reference: Sequence[FloatArray]) -> Attempt:
    task, encoded, golds = rehearsal.task, rehearsal.encoded, rehearsal.golds
    outputs = logits_of(Session(path).run, encoded.windows, rehearsal.pad_id)
    parity = compare(task, reference, outputs, encoded)
    scores = [task.score(task.statistics(one, encoded, golds)) for one in (reference, outputs)]
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
