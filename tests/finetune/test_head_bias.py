"""The bias that a new head begins with."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from finetune.recipe import load_recipe
from finetune.trainer import begin_with_bias
from finetune.training import finetune
from tasks.base import TaskSpec
from tasks.catalogue import load_task
from tests.export.test_families import EXPORTED as FAMILIES
from tests.export.test_families import Family, build
from tests.toy import toy_rows_of, write_toy_task

BIAS = np.array([0.5, -1.0, -2.5], dtype=np.float32)


@pytest.mark.parametrize("family", [one for one in FAMILIES if one.head == "SequenceClassification"], ids=str)
def test_logits_of_a_new_head_move_by_the_bias_and_those_of_a_trained_one_stay(family: Family) -> None:
    model = build(family)
    ids = torch.arange(24).reshape(2, 12) + 3
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        before = model(**batch).logits
        begin_with_bias(model, BIAS)
        moved = model(**batch).logits
        begin_with_bias(model, 2 * BIAS)
        again = model(**batch).logits
    assert (moved - before).numpy() == pytest.approx(np.tile(BIAS, (2, 1)), abs=1e-5)
    assert torch.equal(again, moved)


def first_bias(folder: Path, base: Path, task: str) -> np.ndarray:
    """Of a head that was trained at no learning rate to speak of."""
    unmoved = ["train.learning_rate=1e-12", "train.epochs=1"]
    checkpoint = finetune(load_recipe(write_toy_task(folder, base, task), unmoved), folder / "checkpoint").checkpoint
    bias: np.ndarray = load_file(checkpoint / "model.safetensors")["classifier.bias"].numpy()
    return bias


def test_multi_label_begins_with_how_often_each_label_is_given(tiny_base: Path, tmp_path: Path) -> None:
    bias = first_bias(tmp_path, tiny_base, "multi_label")
    rows = [row["labels"] for row in toy_rows_of("multi_label", 120, 0)]
    labels = sorted({label for row in rows for label in row})
    share = [(sum(label in row for row in rows) + 1) / (len(rows) + 2) for label in labels]
    assert 1 / (1 + np.exp(-bias)) == pytest.approx(share, abs=1e-6)


def test_token_classification_begins_with_how_often_each_tag_is_given(tiny_base: Path, tmp_path: Path) -> None:
    bias = first_bias(tmp_path, tiny_base, "token_classification")
    shares = dict(zip(labels_of(tmp_path / "checkpoint"), np.exp(bias), strict=True))
    assert sum(shares.values()) == pytest.approx(1, abs=1e-6)
    assert max(shares, key=shares.__getitem__) == "O"
    assert 0.5 < shares["O"] < 1


def labels_of(checkpoint: Path) -> list[str]:
    names: dict[str, str] = json.loads((checkpoint / "config.json").read_text())["id2label"]
    return [names[str(one)] for one in range(len(names))]


def test_multi_label_of_a_label_on_all_rows_or_on_none_begins_with_a_number() -> None:
    task = load_task(TaskSpec(task="multi_label", labels=("all", "none"), max_length=8, options={}))
    bias = task.initial_bias([np.array([1, 0], dtype=np.float32)] * 8)
    assert bias is not None
    assert bias.tolist() == pytest.approx([np.log(9), -np.log(9)])
