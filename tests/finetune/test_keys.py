"""Every key of a recipe changes the run."""

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from finetune.recipe import DataSection, LossSection, PretrainSection, RegularizeSection, TrainSection, load_recipe
from finetune.training import finetune
from tests.toy import toy_rows, toy_rows_of, write_jsonl, write_toy_data, write_toy_recipe, write_toy_task

ROOT = Path(__file__).parents[2]
SHORT = ("train.epochs=1", "train.batch_size=12")
FOREVER = "train.early_stopping_patience=0"
FGM = "regularize.adversarial_epsilon=1.0"
EMA, SWA = "regularize.average=ema", "regularize.average=swa"


def _evaluations(record: dict[str, Any]) -> int:
    return sum("eval_accuracy" in entry for entry in record["training"]["history"])


# Each key with a value that must give other weights than the short run: of the recipe as it is, or beside what else is
# named, without which the key means nothing or shows nothing.
CHANGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "train.learning_rate": ("1e-3", ()),
    "train.batch_size": ("20", ()),
    "train.micro_batch_size": ("4", ()),
    "train.optimizer": ("adafactor", ()),
    "train.bias_correction": ("false", ()),
    "train.schedule": ("cosine", ()),
    "train.warmup_ratio": ("0.9", ()),
    "train.weight_decay": ("0.9", ()),
    "train.adam_epsilon": ("0.1", ()),
    # Adam's step does not depend on the gradient's scale but for its epsilon
    "train.max_grad_norm": ("1e-3", ("train.adam_epsilon=1e-3",)),
    "train.dropout": ("0.4", ()),
    "train.freeze_embeddings": ("true", ()),
    "train.freeze_layers": ("1", ("train.freeze_embeddings=true",)),
    "train.freeze_encoder": ("true", ()),
    "train.biases_only": ("true", ()),
    "train.lora_rank": ("2", ()),
    "train.lora_alpha": ("1", ("train.lora_rank=2",)),
    "train.gradual_unfreezing": ("true", ()),
    "train.layer_decay": ("0.5", ()),
    "train.reinitialize_layers": ("1", ()),
    "train.keep_layers": ("1", ()),
    "train.precision": ("bf16", ()),
    "loss.label_smoothing": ("0.1", ()),
    "loss.class_weights": ("inverse", ("data.train=uneven.jsonl",)),
    "loss.focal_gamma": ("2.0", ()),
    "loss.max_positive_weight": ("5.0", ("multi_label", "data.train=uneven.jsonl")),
    "loss.negative_gamma": ("4.0", ("multi_label",)),
    "loss.probability_margin": ("0.05", ("multi_label",)),
    "pretrain.epochs": ("1", ()),
    "pretrain.learning_rate": ("1e-2", ("pretrain.epochs=1",)),
    "pretrain.masked_share": ("0.5", ("pretrain.epochs=1",)),
    "regularize.r_drop": ("1.0", ()),
    "regularize.adversarial_epsilon": ("1.0", ()),
    "regularize.adversarial_steps": ("2", (FGM,)),
    "regularize.neftune_alpha": ("5.0", ()),
    "regularize.dropout_samples": ("4", ()),
    "regularize.mixout": ("0.5", ()),
    "regularize.pull_to_pretrained": ("0.9", ()),
    "regularize.average": ("ema", ()),
    "regularize.ema_decay": ("0.1", (EMA,)),
    "regularize.swa_share": ("0.8", (SWA,)),
}
# Each key whose effect the record tells: overrides, and what it tells of them.
TOLD: dict[str, tuple[tuple[str, ...], Callable[[dict[str, Any]], object], object]] = {
    "train.epochs": (("train.epochs=2",), lambda run: run["training"]["steps"], 10),
    "train.evaluations_per_epoch": (("train.evaluations_per_epoch=5", FOREVER), _evaluations, 5),
    # a rate so small that no evaluation is better than the first
    "train.early_stopping_patience": (
        ("train.epochs=9", "train.learning_rate=1e-12", "train.early_stopping_patience=2"),
        _evaluations,
        3,
    ),
}

Run = Callable[..., Path]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Run:
    """Trains one short epoch with overrides, the first of which may be the name of another task."""
    data = write_toy_data(tmp_path_factory.mktemp("data"))
    write_jsonl(data / "uneven.jsonl", [row for row in toy_rows(60, 0) if row["label"] != "food"] + toy_rows(6, 0))
    recipes = {"single_label": write_toy_recipe(data, tiny_base)}
    several = tmp_path_factory.mktemp("multi_label")
    recipes["multi_label"] = write_toy_task(several, tiny_base, "multi_label")
    rows = toy_rows_of("multi_label", 120, 0)
    for number, row in enumerate(rows):
        row["labels"] = [label for label in row["labels"] if label != "food" or number % 5 == 0]
    write_jsonl(several / "uneven.jsonl", rows)

    @cache
    def train(*overrides: str) -> Path:
        named = [one for one in overrides if one in recipes]
        recipe = load_recipe(
            recipes[named[0] if named else "single_label"], [*SHORT, *(one for one in overrides if one not in recipes)]
        )
        return finetune(recipe, tmp_path_factory.mktemp("run") / "checkpoint").checkpoint

    return train


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "model.safetensors")


def test_every_key_is_tried() -> None:
    sections = {
        "pretrain": PretrainSection,
        "train": TrainSection,
        "loss": LossSection,
        "regularize": RegularizeSection,
    }
    keys = {f"{name}.{key}" for name, section in sections.items() for key in section.model_fields}
    assert CHANGES.keys() | TOLD.keys() == keys


@pytest.mark.real
@pytest.mark.parametrize("key", CHANGES)
def test_a_key_changes_the_weights(key: str, run: Run) -> None:
    value, beside = CHANGES[key]
    without, changed = weights(run(*beside)), weights(run(*beside, f"{key}={value}"))
    assert not all(torch.equal(without[name], one) for name, one in changed.items())


@pytest.mark.parametrize("key", TOLD)
def test_a_key_changes_what_is_done(key: str, run: Run) -> None:
    overrides, tell, expected = TOLD[key]
    assert tell(record(run(*overrides))) == expected != tell(record(run()))


def record(checkpoint: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((checkpoint / "run.json").read_bytes())
    return found


def test_no_data_key_is_dead() -> None:
    sources = [
        path.read_text() for path in (ROOT / "finetune").glob("*.py") if path.name not in ("recipe.py", "sections.py")
    ]
    for key in [*DataSection.model_fields, *TrainSection.model_fields]:
        assert any(re.search(rf"\.{key}\b", source) for source in sources), key
