"""Where in a context an answer stands: from characters to tokens for training, and from logits back to characters."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tasks.encoding import SECOND, Alignment, FloatArray, Window
from tasks.units import visible

__all__ = ["Found", "Span", "best_null_threshold", "find", "token_spans"]


@dataclass(frozen=True, slots=True)
class Span:
    """The characters `[start, end)` of a context; `score` is the sum of the start and the end logit."""

    start: int
    end: int
    score: float


@dataclass(frozen=True, slots=True)
class Found:
    """What the windows of a question say.

    Attributes:
        spans: best first, each once; none where the context holds nothing that can be an answer.
        null: score of there being no answer.
    """

    spans: tuple[Span, ...]
    null: float

    @property
    def margin(self) -> float:
        """By how much no answer is better than the best one; infinite where there is none."""
        return self.null - self.spans[0].score if self.spans else float("inf")


def find(outputs: Sequence[FloatArray], windows: Sequence[Window], context: str, longest: int, count: int) -> Found:
    """The best spans of a context over all windows of a question.

    All spans are weighed, not only those of the best starts and ends as in the reference script `run_qa.py`. A span
    that stands in several windows counts once, with its best score. The null score is the least over the windows:
    each of them must deny the answer (`run_squad.py` of Devlin et al. 2019).

    Args:
        outputs: of each window, the start and the end logits, shape `[tokens, 2]`.
        windows: all of the question, aligned.
        context: the second text of the input.
        longest: tokens that an answer may have.
        count: spans that each window gives at most.
    """
    scores: dict[tuple[int, int], float] = {}
    null = np.inf
    for output, window in zip(outputs, windows, strict=True):
        logits = output.astype(np.float64)
        null = min(null, float(logits[_null_position(window)].sum()))
        for begin, end, score in _best_of_window(logits, window.aligned, context, longest, count):
            place = visible(context, begin, end)
            scores[place] = max(score, scores.get(place, -np.inf))
    # of equal scores the first and shortest
    best = heapq.nsmallest(count, scores, key=lambda place: (-scores[place], place))
    return Found(tuple(Span(*place, scores[place]) for place in best), null)


def _null_position(window: Window) -> int:
    """The first special token, which stands for no answer."""
    return int(window.aligned.source.argmin())


def token_spans(windows: Sequence[Window], start: int, end: int) -> list[tuple[int, int]]:
    """For each window of a question the first and last token of a stretch of the context.

    They are the null position, twice, where not all of its tokens stand in the window.

    Args:
        windows: all of the question, aligned.
        start: first character of the stretch.
        end: behind its last character.
    """
    inside = [_overlaps(window.aligned, start, end) for window in windows]
    places = [window.aligned.positions[own] for window, own in zip(windows, inside, strict=True)]
    wanted = len(np.unique(np.concatenate(places)))
    return [
        (int(own[0]), int(own[-1])) if 0 < wanted == len(own) else (_null_position(window),) * 2
        for window, own in zip(windows, inside, strict=True)
    ]


def best_null_threshold(margins: Sequence[float], gains: Sequence[float]) -> float:
    """The threshold of `Found.margin`, up to which a question is answered, that makes the best sum of gains.

    As the official `find_best_thresh` of SQuAD v2.0 does, but midway between two margins, so that no row stands on
    the threshold; of equally good ones the nearest to 0.

    Args:
        margins: of each question.
        gains: what answering it adds to the metric: its F1, or -1 where no answer is right.
    """
    order = np.argsort(margins)
    ranked = np.asarray(margins)[order]
    order, ranked = order[np.isfinite(ranked)], ranked[np.isfinite(ranked)]
    if not len(ranked):
        return 0.0
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(gains)[order])])
    lowest, highest = min(0.0, ranked[0] - 1), max(0.0, ranked[-1] + 1)
    cuts = np.concatenate([[lowest], (ranked[1:] + ranked[:-1]) / 2, [highest]])
    # equal margins cannot be told apart
    possible = np.concatenate([[True], ranked[1:] > ranked[:-1], [True]])
    good = possible & np.isclose(sums, sums[possible].max(), rtol=0, atol=1e-9)
    return float(min(cuts[good], key=abs))


def _best_of_window(
    logits: npt.NDArray[np.float64], alignment: Alignment, context: str, longest: int, count: int
) -> list[tuple[int, int, float]]:
    """Begin and end in characters, and score, of the best spans, best first."""
    tokens = np.flatnonzero(alignment.source == SECOND)
    if not len(tokens):
        return []
    offsets = alignment.offsets[tokens]
    # a token of white space neither begins nor ends an answer
    visible = np.array([context[begin:end].strip() != "" for begin, end in offsets.tolist()])
    starts, stops = np.where(visible[:, None], logits[tokens], -np.inf).T
    width = min(longest, len(tokens))
    # row: first token; column: how many more follow
    reach = np.lib.stride_tricks.sliding_window_view(np.append(stops, np.full(width - 1, -np.inf)), width)
    # the best spans begin with as many of the tokens whose own best span is best
    rows = np.sort(_largest(starts + reach.max(axis=1), count))
    sums = (starts[rows, None] + reach[rows]).ravel()
    chosen = _largest(sums, count)
    first, last = rows[chosen // width], rows[chosen // width] + chosen % width
    return list(zip(offsets[first, 0].tolist(), offsets[last, 1].tolist(), sums[chosen].tolist(), strict=True))


def _largest(values: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.intp]:
    """Where the largest finite values stand; of equal ones the first."""
    order = np.argsort(-values, kind="stable")[:count]
    return np.asarray(order[np.isfinite(values[order])])


def _overlaps(alignment: Alignment, start: int, end: int) -> npt.NDArray[np.intp]:
    begins, ends = alignment.offsets.T
    return np.flatnonzero((alignment.source == SECOND) & (begins < end) & (ends > start))
