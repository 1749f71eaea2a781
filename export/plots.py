"""The certificate's figures as inline SVG: no library, no network, sharp in print, coloured by the page's style."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

__all__ = ["STYLE", "ParetoPoint", "delta_by_length", "logit_scatter", "pareto"]

_WIDTH, _HEIGHT = 460, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 12, 46
_STRETCHES = 10
_LETTER, _LINE = 6.5, 13.0
"""Of a label, in pixels, near enough to keep labels off each other."""

STYLE = """
svg { width: 100%; height: auto; font: 11px system-ui, sans-serif; fill: currentColor; }
svg .grid { stroke: currentColor; stroke-opacity: .15; }
svg .line { stroke: currentColor; stroke-opacity: .6; fill: none; }
svg .dashed { stroke-dasharray: 5 4; }
svg .dots { stroke: #2b6cb0; stroke: light-dark(#2b6cb0, #7db4ec); stroke-opacity: .45; stroke-width: 3.5;
  stroke-linecap: round; fill: none; }
svg .mark { stroke: currentColor; stroke-width: 1.5; fill: none; }
svg .mark.pass { fill: currentColor; }
"""


@dataclass(frozen=True, slots=True)
class ParetoPoint:
    """One variant.

    Attributes:
        time: relative to the fastest.
        metric: with `low` and `high`, the bounds of its interval.
        passed: whether it may be published.
    """

    name: str
    time: float
    metric: float
    low: float
    high: float
    passed: bool


def logit_scatter(points: Sequence[tuple[float, float]], name: str) -> str:
    """Logits of PyTorch and of a variant; equal ones lie on the line.

    Args:
        points: PyTorch's and the variant's.
        name: of the variant.
    """
    values = np.array(points)
    axis = _Axis.over(values.ravel())
    ends = axis.low, axis.high
    body = _polyline(axis, axis, [ends[:1] * 2, ends[1:] * 2], "line") + _dots(axis, axis, points)
    return _figure(axis, axis, ("logit of PyTorch", f"logit of {name}"), body)


def delta_by_length(points: Sequence[tuple[float, float]], name: str) -> str:
    """Largest |Δlogit| of rows by their tokens, with the medians of ten stretches of length.

    Args:
        points: tokens and |Δlogit|.
        name: of the variant.
    """
    values = np.array(points)
    x, y = _Axis.over(values[:, 0]), _Axis.over(np.append(values[:, 1], 0.0))
    by_length = values[np.argsort(values[:, 0], kind="stable")]
    stretches = np.array_split(by_length, min(_STRETCHES, len(by_length)))
    medians = [tuple(np.median(stretch, axis=0).tolist()) for stretch in stretches]
    body = _dots(x, y, points) + _polyline(x, y, medians, "line")
    return _figure(x, y, ("tokens", f"largest |Δlogit| of {name}"), body)


def pareto(points: Sequence[ParetoPoint], metric: str, pytorch: float) -> str:
    """Time against metric; the line joins the passing variants that no other passing one beats at both.

    Args:
        points: the variants.
        metric: its name.
        pytorch: PyTorch's, drawn as a dashed line.
    """
    x = _Axis.over([0.0, *(one.time for one in points)])
    y = _Axis.over([pytorch, *(bound for one in points for bound in (one.low, one.high))])
    body = _polyline(x, y, [(x.low, pytorch), (x.high, pytorch)], "line dashed")
    body += _polyline(x, y, [(one.time, one.metric) for one in _front(points)], "line")
    for one in points:
        body += _polyline(x, y, [(one.time, one.low), (one.time, one.high)], "line") + _mark(x, y, one)
    body += _names(x, y, points)
    return _figure(x, y, ("time relative to the fastest", metric), body)


@dataclass(frozen=True, slots=True)
class _Axis:
    """A range of values that ends at round numbers, with a tick at each of them."""

    low: float
    high: float
    step: float

    @classmethod
    def over(cls, values: Sequence[float] | np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> "_Axis":
        """About five steps of 1, 2 or 5 times a power of ten (Heckbert 1990, Nice Numbers for Graph Labels)."""
        least, most = float(np.min(values)), float(np.max(values))
        spread = most - least or abs(most) or 1.0
        power = 10.0 ** np.floor(np.log10(spread / 5))
        step = float(next(power * factor for factor in (1, 2, 5, 10) if spread / 5 <= power * factor * (1 + 1e-9)))
        low, high = np.floor(least / step + 1e-9) * step, np.ceil(most / step - 1e-9) * step
        return cls(float(low), float(high if high > low else low + step), step)

    @property
    def ticks(self) -> list[float]:
        """From `low` to `high`."""
        # whole multiples, so that nothing adds up to 0.30000000000000004 or -0
        return [self.step * number for number in range(round(self.low / self.step), round(self.high / self.step) + 1)]

    def share(self, value: float) -> float:
        """0 at `low`, 1 at `high`."""
        return (value - self.low) / (self.high - self.low)


def _x(axis: _Axis, value: float) -> float:
    return _LEFT + axis.share(value) * (_WIDTH - _LEFT - _RIGHT)


def _y(axis: _Axis, value: float) -> float:
    return _HEIGHT - _BOTTOM - axis.share(value) * (_HEIGHT - _TOP - _BOTTOM)


def _figure(x: _Axis, y: _Axis, titles: tuple[str, str], body: str) -> str:
    across, along = (escape(title) for title in titles)
    grid = "".join(
        f'<path class="grid" d="M{_x(x, tick):.1f} {_TOP}V{_HEIGHT - _BOTTOM}"/>'
        f'<text x="{_x(x, tick):.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{tick:.6g}</text>'
        for tick in x.ticks
    )
    grid += "".join(
        f'<path class="grid" d="M{_LEFT} {_y(y, tick):.1f}H{_WIDTH - _RIGHT}"/>'
        f'<text x="{_LEFT - 6}" y="{_y(y, tick) + 4:.1f}" text-anchor="end">{tick:.6g}</text>'
        for tick in y.ticks
    )
    middle = (_HEIGHT - _BOTTOM + _TOP) / 2
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"><title>{along} by {across}</title>{grid}{body}'
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2:.0f}" y="{_HEIGHT - 10}" text-anchor="middle">{across}</text>'
        f'<text transform="translate(12 {middle:.0f}) rotate(-90)" text-anchor="middle">{along}</text></svg>'
    )


def _dots(x: _Axis, y: _Axis, points: Sequence[tuple[float, float]]) -> str:
    # one path of strokes without length: a tenth of the bytes of as many circles
    drawn = "".join(f"M{_x(x, across):.1f} {_y(y, along):.1f}h0" for across, along in points)
    return f'<path class="dots" d="{drawn}"/>'


def _polyline(x: _Axis, y: _Axis, points: Sequence[Sequence[float]], kind: str) -> str:
    places = " ".join(f"{_x(x, across):.1f},{_y(y, along):.1f}" for across, along in points)
    return f'<polyline class="{kind}" points="{places}"/>'


def _front(points: Sequence[ParetoPoint]) -> list[ParetoPoint]:
    """The passing variants, fastest first, each better than all that are faster."""
    front: list[ParetoPoint] = []
    for one in sorted((one for one in points if one.passed), key=lambda one: (one.time, -one.metric)):
        if not front or one.metric > front[-1].metric:
            front.append(one)
    return front


def _mark(x: _Axis, y: _Axis, one: ParetoPoint) -> str:
    across, along = _x(x, one.time), _y(y, one.metric)
    if one.passed:
        return f'<circle class="mark pass" cx="{across:.1f}" cy="{along:.1f}" r="4"/>'
    return f'<path class="mark fail" d="M{across - 4:.1f} {along - 4:.1f}l8 8m0 -8l-8 8"/>'


def _names(x: _Axis, y: _Axis, points: Sequence[ParetoPoint]) -> str:
    """A name beside each mark, on the side that has room, moved down until it is clear of those above."""
    placed: list[tuple[float, float, float]] = []
    drawn = ""
    for one in sorted(points, key=lambda one: -one.metric):
        width, across, line = _LETTER * len(one.name), _x(x, one.time), _y(y, one.metric) - 6
        left = across + 7 if across + 7 + width < _WIDTH else across - 7 - width
        while any(abs(line - other) < _LINE and left < end and begin < left + width for begin, end, other in placed):
            line += _LINE
        placed.append((left, left + width, line))
        drawn += f'<text x="{left:.1f}" y="{line:.1f}" textLength="{width:.1f}">{escape(one.name)}</text>'
    return drawn
