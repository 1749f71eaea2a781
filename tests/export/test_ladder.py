"""The ladder on a graph that quantizes well and on one that is made not to."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from shutil import copyfile
from typing import Any

import numpy as np
import pytest

import export.ladder
from bundle.session import Session
from export.ladder import Attempt, Rehearsal, climb
from export.parity import logits_of
from export.quantization import largest_weight
from tasks import Encoded, TaskSpec, TextInput, Window, load_task

pytestmark = pytest.mark.usefixtures("quick_export")


def rehearsal(graph: Path, windows: Sequence[Window], **limits: float) -> Rehearsal:
    """The float graph's own answers are the gold ones, so that the loss counts changed answers."""
    task = load_task(TaskSpec(task="single_label", labels=("animal", "food", "vehicle"), max_length=48))
    encoded = Encoded([TextInput("x")] * len(windows), windows)
    labels = [task.spec.labels[int(one.argmax())] for one in logits_of(Session(graph).run, windows, 0)]
    return Rehearsal(task, encoded, labels, 0, **{"min_agreement": 0.0, "max_loss": 1.0} | limits)


def counted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Path]:
    """The graphs that a function of the ladder is called for."""
    function, calls = getattr(export.ladder, name), []

    def counting(model: Path, *others: Any) -> Any:
        calls.append(model)
        return function(model, *others)

    monkeypatch.setattr(export.ladder, name, counting)
    return calls


def first(graph: Path, output: Path, windows: Sequence[Window], rows: Rehearsal) -> tuple[list[Attempt], list[str]]:
    """The attempts to the first choice, and what was reported of them."""
    lines: list[str] = []
    with closing(climb(graph, output, windows, rows, lines.append)) as climbs:
        return next(climbs), lines


def test_first_rung_is_enough_where_it_is_good_enough(graph: Path, windows: list[Window], tmp_path: Path) -> None:
    attempts, lines = first(graph, tmp_path / "int8.onnx", windows, rehearsal(graph, windows))
    assert len(attempts) == len(lines) == 5
    (chosen,) = [one for one in attempts if one.chosen]
    assert chosen.mean_delta == min(one.mean_delta for one in attempts)
    assert [path.name for path in tmp_path.iterdir()] == ["int8.onnx"], "what was tried is gone"
    outputs = logits_of(Session(tmp_path / "int8.onnx").run, windows, 0)
    deltas = np.abs(np.stack(outputs) - np.stack(logits_of(Session(graph).run, windows, 0)))
    assert float(deltas.mean()) == pytest.approx(chosen.mean_delta, rel=1e-4)


def test_every_rung_is_tried_where_nothing_is_good_enough(
    graph: Path, windows: list[Window], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export.ladder, "instruction_set", lambda: ("avx2", "fma"))
    passes = {name: counted(monkeypatch, name) for name in ("channel_maxima", "calibrate", "collect_histograms")}
    impossible = rehearsal(graph, windows, min_agreement=1.1)
    attempts, lines = first(graph, tmp_path / "int8.onnx", windows, impossible)
    ways = [one.how for one in attempts]
    assert ways[:2] == ["min-max", "percentile-99.99"]
    assert ways[5].endswith(", activation functions by token")
    smoothed = [one for one in attempts if one.how.startswith("smoothed") and "products" not in one.how]
    by_alpha = [one for one in smoothed if ", min-max" in one.how]
    assert len(by_alpha) == len({one.how for one in by_alpha}) == 4
    best = min(by_alpha, key=lambda one: one.mean_delta).how
    others = [one.how for one in smoothed if one not in by_alpha]
    assert others == [best.replace("min-max", way) for way in ways[1:5]], "only the best alpha is worth histograms"
    assert {name: len(one) for name, one in passes.items()} == {
        "channel_maxima": 1,
        "calibrate": 1 + len(by_alpha),
        "collect_histograms": 2,
    }
    assert not any("weights" in way for way in ways)
    assert any("1 of 12 products in float" in way for way in ways)
    assert any("4 of 12 products in float" in way for way in ways)
    assert not any("8 of 12" in way for way in ways), "with more than half it is hardly faster than float"
    chosen = next(one for one in attempts if one.chosen)
    assert "products in float" in chosen.how, "the fewer products are int8, the nearer it comes"
    assert chosen.mean_delta < attempts[0].mean_delta
    assert all("not good enough" in line for line in lines)
    assert [path.name for path in tmp_path.iterdir()] == ["int8.onnx"], "what was tried is gone"
    assert largest_weight(tmp_path / "int8.onnx") == 64


def test_last_rung_is_a_graph_of_weights_trained_for_the_form_that_came_nearest(
    graph: Path, windows: list[Window], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export.ladder, "instruction_set", lambda: ("avx2", "fma"))
    asked: list[tuple[int, bool]] = []

    def retrain(output: Path, weight_limit: int, by_token: bool) -> None:
        asked.append((weight_limit, by_token))
        copyfile(graph, output)

    impossible, lines = rehearsal(graph, windows, min_agreement=1.1), []
    with closing(climb(graph, tmp_path / "int8.onnx", windows, impossible, lines.append, retrain)) as climbs:
        attempts = next(climbs)
    others, retrained = attempts[:-5], attempts[-5:]
    nearest = min((one for one in others if "products" not in one.how), key=lambda one: one.mean_delta)
    assert asked == [(64, "by token" in nearest.how)], "once, after all else"
    assert [one.how.split(", ")[0] for one in retrained] == ["quantization-aware"] * 5
    assert not any("quantization-aware" in one.how for one in others)
    if not asked[0][1]:
        deltas = [one.mean_delta for one in retrained]
        assert deltas == [one.mean_delta for one in others[:5]], "the same weights in the same form"
    assert [path.name for path in tmp_path.iterdir()] == ["int8.onnx"], "what was tried is gone"


def test_no_rung_is_begun_when_the_time_is_over(graph: Path, windows: list[Window], tmp_path: Path) -> None:
    impossible, lines = rehearsal(graph, windows, min_agreement=1.1), []
    with closing(climb(graph, tmp_path / "int8.onnx", windows, impossible, lines.append, minutes=1e-6)) as climbs:
        (attempts,) = climbs
    assert len(attempts) == 5, "the first rung is for everybody"
    assert lines[-1] == "  1e-06 minutes are over: nothing else is tried (export.search_minutes)"
    (chosen,) = [one for one in attempts if one.chosen]
    assert chosen.mean_delta == min(one.mean_delta for one in attempts)
    assert (tmp_path / "int8.onnx").is_file()


def test_full_range_weights_are_tried_after_the_ranges_where_the_processor_sums_them_right(
    graph: Path, windows: list[Window], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export.ladder, "instruction_set", lambda: ("avx2", "avx512_vnni"))
    for rung in ("_by_token", "_smoothed", "_mixed"):
        monkeypatch.setattr(export.ladder, rung, lambda *_: iter(()))
    impossible = rehearsal(graph, windows, min_agreement=1.1)
    (*ranges, full), _ = first(graph, tmp_path / "int8.onnx", windows, impossible)
    best = min(ranges, key=lambda one: one.mean_delta)
    assert full.how == f"weights ±127, {best.how}"
    assert len(ranges) == 5
    assert full.chosen == (full.mean_delta < best.mean_delta)
    assert largest_weight(tmp_path / "int8.onnx") == (127 if full.chosen else 64)


def test_refused_choice_is_climbed_on_from_with_half_the_distance(
    graph: Path, windows: list[Window], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export.ladder, "instruction_set", lambda: ("avx2", "fma"))
    rows = rehearsal(graph, windows, min_agreement=0.5, max_loss=0.5)
    assert (rows.stricter().min_agreement, rows.stricter().max_loss) == (0.75, 0.25)
    output, asked, written = tmp_path / "int8.onnx", [], []
    original = Rehearsal.stricter
    monkeypatch.setattr(Rehearsal, "stricter", lambda self: asked.append(self) or original(self))
    choices = []
    with closing(climb(graph, output, windows, rows, lambda _: None)) as climbs:
        for attempts in climbs:
            choices.append(next(one.how for one in attempts if one.chosen))
            written.append(output.read_bytes())
            assert [one.how for one in attempts if one.refused] == [
                one.how for one in attempts if one.how in choices[:-1]
            ]
    assert all(one is rows for one in asked), "half of the recipe's limits, however often it was refused"
    assert len(asked) == len(choices) == len(set(choices)) == len(set(written))
    ranges, functions, smoothed, *mixed = choices
    assert functions == f"{ranges}, activation functions by token"
    assert smoothed.startswith("smoothed")
    assert smoothed.endswith(", activation functions by token")
    assert mixed == [f"{smoothed}, {count} of 12 products in float" for count in (1, 2, 4)]
    assert [path.name for path in tmp_path.iterdir()] == ["int8.onnx"], "what was tried is gone"
    outputs = np.stack(logits_of(Session(output).run, windows, 0))
    deltas = np.abs(outputs - np.stack(logits_of(Session(graph).run, windows, 0)))
    assert float(deltas.mean()) == pytest.approx(attempts[-1].mean_delta, rel=1e-4), "the last choice stands"
