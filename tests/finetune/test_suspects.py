"""Rows with wrong labels are found by models that were trained without them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from finetune.data import read_training_rows
from finetune.recipe import load_recipe
from finetune.suspects import _folds, find_suspects
from tasks.catalogue import TASKS
from tasks.errors import DataError, DivergenceError
from tests.toy import toy_rows, write_jsonl, write_toy_data, write_toy_recipe, write_toy_task

LEARNT = ("train.epochs=10", "train.batch_size=12")
WRONG = {5, 40, 77}


@pytest.fixture
def recipe_file(tmp_path: Path, tiny_base: Path) -> Path:
    return write_toy_recipe(write_toy_data(tmp_path / "data"), tiny_base)


@pytest.mark.real
def test_wrong_labels_come_first(recipe_file: Path, tmp_path: Path) -> None:
    rows = toy_rows(360, 0)
    for number, row in enumerate(rows):
        if number in WRONG:
            row["label"] = next(one["label"] for one in rows if one["label"] != row["label"])
    write_jsonl(recipe_file.parent / "train.jsonl", rows)
    lines: list[str] = []
    recipe = load_recipe(recipe_file, LEARNT)
    found = find_suspects(recipe, tmp_path / "suspects", folds=2, workers=2, report=lines.append)
    places = [one.place.rpartition(":")[2] for one in found]
    assert {number + 1 for number in WRONG} <= {int(place) for place in places[: 4 * len(WRONG)]}
    for one in found:
        row = rows[int(one.place.rpartition(":")[2]) - 1]
        assert (one.text, one.expected) == (row["text"], row["label"])
        assert one.said != one.expected
        assert one.loss > 0
    assert [one.loss for one in found] == sorted((one.loss for one in found), reverse=True)
    written = (tmp_path / "suspects" / "suspects.jsonl").read_text().splitlines()
    assert [json.loads(line)["place"] for line in written] == [one.place for one in found]
    assert len(lines) == 2
    # nothing is trained again, and the same is found
    assert find_suspects(recipe, tmp_path / "suspects", folds=2, report=lines.append) == found


@pytest.mark.real
@pytest.mark.parametrize("task", ["token_classification", "question_answering"])
def test_every_task_can_be_asked(task: str, tmp_path: Path, tiny_base: Path) -> None:
    recipe = load_recipe(write_toy_task(tmp_path / "data", tiny_base, task), ["train.epochs=1"])
    found = find_suspects(recipe, tmp_path / "suspects", folds=2, workers=2, report=lambda line: None)
    assert found
    count = len((tmp_path / "data" / "train.jsonl").read_text().splitlines())
    assert {int(one.place.rpartition(":")[2]) for one in found} <= set(range(1, count + 1))
    held_out = [(tmp_path / "suspects" / f"fold-{fold}" / "test.jsonl").read_text().splitlines() for fold in (1, 2)]
    assert sum(map(len, held_out)) == count


def test_folds_hold_each_row_once_and_each_label_everywhere(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    rows = read_training_rows(recipe)
    parts = _folds(rows, TASKS["single_label"], 4, seed=1)
    assert sorted(row for part in parts for row in part) == list(range(len(rows)))
    assert {len(part) for part in parts} == {15}
    assert {frozenset(rows[row].values["label"] for row in part) for part in parts} == {
        frozenset(row.values["label"] for row in rows)
    }


@pytest.mark.real
def test_too_few_rows_and_divergence_are_told(recipe_file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file, ["train.epochs=1"])
    with pytest.raises(DataError, match="found 60 rows; expected at least two for each of 40 folds"):
        find_suspects(recipe, tmp_path / "suspects", folds=40, report=lambda line: None)
    alone = [{"text": f"a {number} dog", "label": f"label {number}"} for number in range(30)]
    write_jsonl(recipe_file.parent / "train.jsonl", alone)
    with pytest.raises(DataError, match="its rows cannot be spread over 3 folds; expected fewer folds"):
        find_suspects(recipe, tmp_path / "suspects", folds=3, report=lambda line: None)
    write_toy_data(recipe_file.parent)
    hopeless: Any = load_recipe(recipe_file, ["train.epochs=1", "train.learning_rate=1.0", "train.adam_epsilon=1e-30"])
    hopeless = hopeless.model_copy(update={"train": hopeless.train.model_copy(update={"learning_rate": 1e38})})
    with pytest.raises(DivergenceError, match="2 of 2 trainings diverged"):
        find_suspects(hopeless, tmp_path / "suspects", folds=2, workers=2, report=lambda line: None)


@pytest.mark.real
def test_command_line(recipe_file: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "paritybit",
        "suspects",
        str(recipe_file),
        "--folds",
        "2",
        "--set",
        "train.epochs=1",
    ]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "out")], capture_output=True, text=True, timeout=300, check=True
    )
    answer = json.loads(done.stdout)
    listed = (tmp_path / "out" / "suspects.jsonl").read_text().splitlines()
    assert answer == {"suspects": str(tmp_path / "out" / "suspects.jsonl"), "rows": len(listed)}
    assert ": says " in done.stderr
