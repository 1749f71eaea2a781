"""The bias that a new head begins with."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from finetune.recipe import load_recipe
from finetune.trainer import set_head_bias
from finetune.training import finetune
from tests.export.test_families import EXPORTED as FAMILIES
from tests.export.test_families import Family, build
from tests.toy import toy_rows_of, write_toy_task

BIAS = np.array([0.5, -1.0, -2.5], dtype=np.float32)


@pytest.mark.parametrize("family", [one for one in FAMILIES if one.head == "SequenceClassification"], ids=str)
def test_logits_move_by_the_bias(family: Family) -> None:
    model = build(family)
    ids = torch.arange(24).reshape(2, 12) + 3
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        set_head_bias(model, np.zeros_like(BIAS))
        before = model(**batch).logits
        set_head_bias(model, BIAS)
        moved = model(**batch).logits - before
    assert moved.numpy() == pytest.approx(np.tile(BIAS, (2, 1)), abs=1e-5)


def test_multi_label_begins_with_how_often_each_label_is_given(tiny_base: Path, tmp_path: Path) -> None:
    unmoved = ["train.learning_rate=1e-12", "train.epochs=1"]
    recipe = load_recipe(write_toy_task(tmp_path, tiny_base, "multi_label"), unmoved)
    checkpoint = finetune(recipe, tmp_path / "checkpoint").checkpoint
    rows = [row["labels"] for row in toy_rows_of("multi_label", 120, 0)]
    labels = sorted({label for row in rows for label in row})
    share = np.array([(sum(label in row for row in rows) + 1) / (len(rows) + 2) for label in labels])
    bias = load_file(checkpoint / "model.safetensors")["classifier.bias"]
    assert 1 / (1 + np.exp(-bias.numpy())) == pytest.approx(share, abs=1e-6)
