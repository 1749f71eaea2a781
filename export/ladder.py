"""The ladder to a static int8 graph: what is expected to be fastest first, until one is good enough.

All that differs on a rung is tried on validation rows, never on test rows, whose word in the certificate would be worth
less for it. Of the test rows it learns one thing: that the graph which it chose failed there. It then climbs on from
that graph, and wants half the distance from the float one that it wanted before.

1. every way to choose activation ranges from the same histograms; all of these graphs take the same time;
2. weights of full range, where this processor sums their products right; no slower, but certified for fewer processors;
3. a scale for each token behind the activation functions, four passes over what they give;
4. a smoothed graph (SmoothQuant), which takes one more elementwise operator a norm: first how much is to move into the
   weights, then every way to choose ranges for the best of them;
5. the products that lose most, measured one by one, stay in float: 1, 2, 4 … of them, up to half, for with more the
   graph is hardly faster than the float one;
6. weights that were trained to say in int8 what they say in float (`finetune.quantization_aware`), all products int8.

Each rung starts from what came nearest before it; the last, which takes minutes, from what did before products stayed
in float.
"""

import math
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bundle.cpu import instruction_set, sums_int8_exactly
from bundle.session import Session
from export.calibration import Ranges, calibrate, collect_histograms, ranges_of
from export.certificate import Attempt
from export.parity import compare, logits_of
from export.progress import bar
from export.quantization import (
    ANYWHERE_EXACT,
    FULL_RANGE,
    behind_activation_functions,
    quantizable_inputs,
    quantize,
)
from export.sensitivity import measure_sensitivity
from export.smoothing import channel_maxima, smooth
from tasks import Encoded, Task, Window
from tasks.base import FloatArray, Gold

__all__ = ["Attempt", "Rehearsal", "Retrain", "climb"]

_METHODS = ("min-max", "percentile-99.99", "percentile-99.999", "mse", "entropy")
_ALPHAS = (0.5, 0.4, 0.6, 0.75)
_SENSITIVITY_WINDOWS = 32

Retrain = Callable[[Path, int, bool], None]
"""Writes a float graph whose weights were trained for int8: where, the largest int8 weight, and whether by token."""


@dataclass(frozen=True)
class Rehearsal:
    """Validation rows that attempts are tried on, and what they must reach there."""

    task: Task
    encoded: Encoded
    golds: Sequence[Gold]
    pad_id: int
    min_agreement: float
    max_loss: float

    def stricter(self) -> "Rehearsal":
        """With half as many changed answers, and half the loss."""
        return replace(self, min_agreement=(1 + self.min_agreement) / 2, max_loss=self.max_loss / 2)


@dataclass(frozen=True, slots=True)
class _Form:
    """How products are quantized, beside the ranges: what `export.quantization.quantize` takes."""

    weight_limit: int = ANYWHERE_EXACT
    by_token: tuple[str, ...] = ()
    keep_float: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Tried:
    attempt: Attempt
    path: Path
    source: Path
    ranges: Ranges
    form: _Form


@dataclass(slots=True)
class _Climb:
    """What every rung works on: the float graph with its answers, the rows, and where graphs are written.

    Attributes:
        rehearsal: becomes stricter once a choice was refused.
    """

    fp32: Path
    output: Path
    calibration: Sequence[Window]
    rehearsal: Rehearsal
    reference: Sequence[FloatArray]
    retrain: Retrain | None


def climb(
    fp32: Path,
    output: Path,
    calibration: Sequence[Window],
    rehearsal: Rehearsal,
    report: Callable[[str], None],
    retrain: Retrain | None = None,
    minutes: float = math.inf,
) -> Iterator[list[Attempt]]:
    """Writes the first static int8 graph that is good enough; asked again, the next one.

    Going on says that the graph last written was refused. Where no rung is good enough, or the time is over before one
    is, the graph that came nearest to the float one is the last.

    Args:
        fp32: the float graph.
        output: where to write; the graphs that are tried stand beside it until the iterator is closed.
        calibration: training rows.
        rehearsal: validation rows.
        report: told of each attempt in a line.
        retrain: the last rung's training; without it there is no such rung.
        minutes: after which no further rung is begun.

    Yields:
        With each graph written, every attempt so far, the chosen one and the refused ones marked.
    """
    reference = logits_of(Session(fp32).run, rehearsal.encoded.windows, rehearsal.pad_id, bar("fp32"))
    way = _Climb(fp32, output, calibration, rehearsal, reference, retrain)
    end = time.monotonic() + 60 * minutes
    everything: list[_Tried] = []
    since_refusal: list[_Tried] = []
    refused: set[str] = set()

    def written(best: _Tried) -> list[Attempt]:
        shutil.copyfile(best.path, output)
        return [
            replace(one, chosen=one.how == best.attempt.how, refused=one.how in refused)
            for one in (tried.attempt for tried in everything)
        ]

    try:
        for rung in _rungs(way, since_refusal):
            if since_refusal and time.monotonic() > end:
                report(f"  {minutes:g} minutes are over: nothing else is tried (export.search_minutes)")
                break
            for one in rung:
                report(_line(one.attempt))
                everything.append(one)
                since_refusal.append(one)
                for other in since_refusal:
                    if other is not _best(since_refusal):
                        other.path.unlink(missing_ok=True)
            best = _best(since_refusal)
            if best.attempt.good_enough:
                yield written(best)
                refused.add(best.attempt.how)
                since_refusal[:] = [replace(best, attempt=replace(best.attempt, good_enough=False))]
                way.rehearsal = rehearsal.stricter()
        best = _best(since_refusal)
        if best.attempt.how not in refused:
            yield written(best)
    finally:
        for one in everything:
            for path in {one.path, one.source} - {fp32}:
                path.unlink(missing_ok=True)


def _best(tried: Sequence[_Tried]) -> _Tried:
    return min(tried, key=lambda one: (not one.attempt.good_enough, one.attempt.mean_delta))


def _rungs(way: _Climb, tried: Sequence[_Tried]) -> Iterator[Iterable[_Tried]]:
    """What is tried together; of the products in float each number is a rung, for fewer are faster."""
    yield _ranges(way)
    yield _full_range(way, tried)
    yield _by_token(way, tried)
    yield _smoothed(way, tried)
    unmixed = list(tried)
    for one in _mixed(way, tried):
        yield [one]
    yield _retrained(way, _best(unmixed).form)


def _ranges(way: _Climb) -> Iterator[_Tried]:
    extremes = _extremes(way, way.fp32)
    yield _quantized(way, "min-max", way.fp32, extremes, _Form())
    yield from _other_methods(way, "min-max", way.fp32, extremes, _Form())


def _full_range(way: _Climb, tried: Sequence[_Tried]) -> Iterator[_Tried]:
    if sums_int8_exactly(instruction_set()):
        best = _best(tried)
        form = replace(best.form, weight_limit=FULL_RANGE)
        yield _quantized(way, f"weights ±{FULL_RANGE}, {best.attempt.how}", way.fp32, best.ranges, form)


def _by_token(way: _Climb, tried: Sequence[_Tried]) -> Iterator[_Tried]:
    products = tuple(behind_activation_functions(way.fp32))
    if products:
        best = _best(tried)
        how = f"{best.attempt.how}, activation functions by token"
        yield _quantized(way, how, best.source, best.ranges, replace(best.form, by_token=products))


def _smoothed(way: _Climb, tried: Sequence[_Tried]) -> Iterator[_Tried]:
    """Min-max tells the alphas apart, for a pass over the rows each; only the best is worth histograms."""
    before = _best(tried)
    maxima = channel_maxima(way.fp32, way.calibration, way.rehearsal.pad_id, bar("largest of each channel"))
    if not maxima:
        return
    found: list[_Tried] = []
    for alpha in _ALPHAS:
        path = way.output.with_name(f"{way.output.stem}-smoothed-{alpha}-fp32.onnx")
        smooth(way.fp32, path, maxima, alpha)
        extremes = _extremes(way, path)
        how = _renamed(before.attempt.how, f"smoothed {alpha}, min-max")
        found.append(_quantized(way, how, path, extremes, before.form))
        yield found[-1]
        for other in found:
            if other is not _best(found):
                other.source.unlink(missing_ok=True)
    best = _best(found)
    yield from _other_methods(way, best.attempt.how, best.source, best.ranges, best.form)


def _mixed(way: _Climb, tried: Sequence[_Tried]) -> Iterator[_Tried]:
    """From the best so far, a product in float, then always twice as many."""
    best = _best(tried)
    windows = way.calibration[:: max(1, len(way.calibration) // _SENSITIVITY_WINDOWS)]
    worst = list(measure_sensitivity(best.source, best.path, windows, way.rehearsal.pad_id, bar("sensitivity")))
    count = 1
    while count <= len(worst) // 2:
        how = f"{best.attempt.how}, {count} of {len(worst)} products in float"
        yield _quantized(way, how, best.source, best.ranges, replace(best.form, keep_float=tuple(worst[:count])))
        count *= 2


def _retrained(way: _Climb, form: _Form) -> Iterator[_Tried]:
    if way.retrain is not None:
        path = way.output.with_name(f"{way.output.stem}-retrained-fp32.onnx")
        way.retrain(path, form.weight_limit, bool(form.by_token))
        if form.by_token:
            # a retrained graph has the products of the float one, a smoothed one has them by other names
            form = replace(form, by_token=tuple(behind_activation_functions(path)))
        extremes = _extremes(way, path)
        yield _quantized(way, "quantization-aware, min-max", path, extremes, form)
        yield from _other_methods(way, "quantization-aware, min-max", path, extremes, form)


def _other_methods(way: _Climb, how: str, source: Path, extremes: Ranges, form: _Form) -> Iterator[_Tried]:
    """All ways to choose ranges but min-max, which has the extremes themselves and names what was tried with them."""
    histograms = collect_histograms(source, extremes, way.calibration, way.rehearsal.pad_id, bar("histograms"))
    for method in _METHODS[1:]:
        yield _quantized(way, how.replace("min-max", method), source, ranges_of(histograms, method), form)


def _extremes(way: _Climb, graph: Path) -> Ranges:
    tensors = quantizable_inputs(graph)
    return calibrate(graph, tensors, way.calibration, way.rehearsal.pad_id, bar("extremes"))


def _renamed(how: str, ranges: str) -> str:
    """What was tried, with ranges found in another way."""
    longest_first = sorted(map(re.escape, _METHODS), key=len, reverse=True)
    return re.sub("|".join(longest_first), ranges, how, count=1)


def _quantized(way: _Climb, how: str, source: Path, ranges: Ranges, form: _Form) -> _Tried:
    name = "-".join(re.findall(r"[a-z0-9.]+", how))
    path = way.output.with_name(f"{way.output.stem}-{name}.onnx")
    quantize(
        source,
        path,
        ranges,
        keep_float=form.keep_float,
        by_token=form.by_token,
        weight_limit=form.weight_limit,
    )
    return _Tried(_attempt(way, how, path), path, source, ranges, form)


def _attempt(way: _Climb, how: str, path: Path) -> Attempt:
    rehearsal = way.rehearsal
    task, encoded, golds = rehearsal.task, rehearsal.encoded, rehearsal.golds
    outputs = logits_of(Session(path).run, encoded.windows, rehearsal.pad_id, bar(how))
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
