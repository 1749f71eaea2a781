"""The report on what a model gets wrong."""

import re
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from torch.nn import functional

from finetune.curves import draw_confusion
from finetune.errors import error_page, error_report, row_losses
from finetune.recipe import load_recipe
from finetune.training import CONFUSION_FILE, ERRORS_FILE, finetune
from tasks import Encoded, TaskSpec, TextInput, Window, load_task
from tests.toy import TOY_TASKS, write_toy_task

TASK = load_task(TaskSpec(task="single_label", labels=("cat", "dog", "horse"), max_length=8))


def encoded(count: int, texts: list[str] | None = None) -> Encoded:
    ids = np.array([2, 5, 3])
    windows = [Window(row, ids, np.zeros_like(ids), truncated=False) for row in range(count)]
    return Encoded([TextInput(text) for text in texts or ["x"] * count], windows)


def saying(*labels: str) -> list[np.ndarray]:
    return [np.eye(3, dtype=np.float32)[TASK.spec.labels.index(label)] * 4 for label in labels]


def test_mistakes_are_counted_and_the_hardest_come_first() -> None:
    golds = ["cat", "cat", "cat", "dog", "dog"]
    outputs = saying("cat", "dog", "dog", "dog", "cat")
    outputs[4] *= 3
    report = error_report(TASK, outputs, encoded(5), golds)
    assert (report.rows, report.wrong) == (5, 3)
    assert report.mistakes == (("cat", "dog", 2),), "what happened once is no habit"
    assert report.labels == (
        ("cat", 3, pytest.approx(1 / 3), 0.5),
        ("dog", 2, 0.5, pytest.approx(1 / 3)),
        ("horse", 0, 0.0, None),
    )
    assert report.confusion is not None
    assert report.confusion.tolist() == [[1, 2, 0], [1, 1, 0], [0, 0, 0]]
    assert [row.row for row in report.hardest] == [5, 2, 3, 1, 4]
    assert [row.wrong for row in report.hardest] == [True] * 3 + [False] * 2
    assert (report.hardest[0].expected, report.hardest[0].said) == ("dog", "cat")


def test_a_rows_loss_is_that_of_the_task() -> None:
    outputs = [np.array(values, dtype=np.float32) for values in ([1.0, 0, -1], [0.2, 0.1, 2.0])]
    expected = functional.cross_entropy(torch.from_numpy(np.stack(outputs)), torch.tensor([2, 2]), reduction="none")
    assert row_losses(TASK, outputs, encoded(2), ["horse", "horse"]) == pytest.approx(expected.numpy(), abs=1e-6)


def test_the_page_holds_what_was_found_and_no_text_is_markup() -> None:
    report = error_report(
        TASK, saying("dog", "dog"), encoded(2, ["<script>alert(1)</script>", "long " * 200]), ["cat", "cat"]
    )
    page = error_page(report, "animals & co")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "Where animals &amp; co errs" in page
    assert "2 of 2 validation rows" in page
    assert "<td>cat</td><td>dog</td><td>2</td>" in page
    assert not re.search(r"""(src|href)=["']?(?!data:)""", page), "nothing is fetched"
    assert "long " * 70 not in page


def test_a_picture_of_what_was_taken_for_what(tmp_path: Path) -> None:
    report = error_report(TASK, saying("cat", "dog", "dog"), encoded(3), ["cat", "cat", "dog"])
    draw_confusion(report, TASK.spec.labels, tmp_path / "confusion.png")
    assert matplotlib.image.imread(tmp_path / "confusion.png").std() > 0.05
    draw_confusion(report, [str(number) for number in range(101)], tmp_path / "many.png")
    assert not (tmp_path / "many.png").exists()


@pytest.mark.real
@pytest.mark.parametrize("task", TOY_TASKS)
def test_every_tasks_checkpoint_has_its_report(task: str, tiny_base: Path, tmp_path: Path) -> None:
    recipe = load_recipe(write_toy_task(tmp_path / "data", tiny_base, task), ["train.epochs=1"])
    found: Any = finetune(recipe, tmp_path / "checkpoint")
    assert (found.checkpoint / ERRORS_FILE).read_text().count("<tr>") > 5
    assert not (found.checkpoint / CONFUSION_FILE).exists()


def test_a_checkpoint_has_its_report(tiny_checkpoint: Path) -> None:
    assert "Label by label" in (tiny_checkpoint / ERRORS_FILE).read_text()
    assert matplotlib.image.imread(tiny_checkpoint / CONFUSION_FILE).std() > 0.05
