"""The ladder on a graph that quantizes well and on one that is made not to."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from bundle.session import Session
from export.ladder import Rehearsal, climb
from export.parity import logits_of
from tasks import Encoded, TaskSpec, TextInput, Window, load_task

pytestmark = pytest.mark.usefixtures("quick_export")


def rehearsal(graph: Path, windows: Sequence[Window], **limits: float) -> Rehearsal:
    """The float graph's own answers are the gold ones, so that the loss counts changed answers."""
    task = load_task(TaskSpec(task="single_label", labels=("animal", "food", "vehicle"), max_length=48))
    encoded = Encoded([TextInput("x")] * len(windows), windows)
    labels = [task.spec.labels[int(one.argmax())] for one in logits_of(Session(graph).run, windows, 0)]
    return Rehearsal(task, encoded, labels, 0, **{"min_agreement": 0.0, "max_loss": 1.0} | limits)


def test_first_rung_is_enough_where_it_is_good_enough(graph: Path, windows: list[Window], tmp_path: Path) -> None:
    lines: list[str] = []
    attempts = climb(graph, tmp_path / "int8.onnx", windows, rehearsal(graph, windows), lines.append)
    assert len(attempts) == len(lines) == 5
    (chosen,) = [one for one in attempts if one.chosen]
    assert chosen.mean_delta == min(one.mean_delta for one in attempts)
    assert [path.name for path in tmp_path.iterdir()] == ["int8.onnx"], "what was tried is gone"
    outputs = logits_of(Session(tmp_path / "int8.onnx").run, windows, 0)
    deltas = np.abs(np.stack(outputs) - np.stack(logits_of(Session(graph).run, windows, 0)))
    assert float(deltas.mean()) == pytest.approx(chosen.mean_delta, rel=1e-4)


def test_every_rung_is_tried_where_nothing_is_good_enough(graph: Path, windows: list[Window], tmp_path: Path) -> None:
    lines: list[str] = []
    impossible = rehearsal(graph, windows, min_agreement=1.1)
    attempts = climb(graph, tmp_path / "int8.onnx", windows, impossible, lines.append)
    ways = [one.how for one in attempts]
    assert ways[:2] == ["min-max", "percentile-99.99"]
    assert "smoothed, mse" in ways
    assert any("1 of 12 products in float" in way for way in ways)
    assert any("8 of 12 products in float" in way for way in ways)
    chosen = next(one for one in attempts if one.chosen)
    assert "products in float" in chosen.how, "the fewer products are int8, the nearer it comes"
    assert chosen.mean_delta < attempts[0].mean_delta
    assert all("not good enough" in line for line in lines)
