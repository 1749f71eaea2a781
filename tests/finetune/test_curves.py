import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
from matplotlib.axes import Axes

from finetune.recipe import load_recipe
from finetune.training import CURVES_FILE, finetune
from tests.toy import write_toy_data, write_toy_recipe


def test_a_checkpoint_has_its_learning_curves(tiny_checkpoint: Path) -> None:
    picture = matplotlib.image.imread(tiny_checkpoint / CURVES_FILE)
    assert picture.std() > 0.05, "something is drawn"


def test_every_evaluation_is_a_point(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune.curves import draw_curves

    drawn: list[list[float]] = []
    plot = Axes.plot

    def seen(self: Axes, xs: list[float], ys: list[float], *others: Any, **more: Any) -> Any:
        drawn.append(ys)
        return plot(self, xs, ys, *others, **more)

    monkeypatch.setattr(Axes, "plot", seen)
    history = json.loads((tiny_checkpoint / "run.json").read_text())["training"]["history"]
    draw_curves(history, "accuracy", tmp_path / "curves.png")
    assert drawn == [
        [entry["loss"] for entry in history if "loss" in entry],
        [entry["eval_accuracy"] for entry in history if "eval_accuracy" in entry],
    ]
    assert all(drawn)


def test_without_matplotlib_there_is_a_checkpoint_and_a_line(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "finetune.curves", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    lines: list[str] = []
    recipe = load_recipe(write_toy_recipe(write_toy_data(tmp_path), tiny_base), ["train.epochs=1"])
    result = finetune(recipe, tmp_path / "checkpoint", report=lines.append)
    assert f"no {CURVES_FILE}: matplotlib is not installed" in lines
    assert not (result.checkpoint / CURVES_FILE).exists()
