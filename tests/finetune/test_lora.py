"""Adapters: what learns, and that what is published is a plain model that says the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from finetune.defaults import make_plan
from finetune.lora import adapt, load_adapted, merge
from finetune.recipe import TrainSection, load_recipe
from finetune.training import finetune
from tasks.errors import RecipeError
from tests.toy import write_toy_data, write_toy_recipe

ADAPTED = ("train.lora_rank=2", "train.epochs=2", "train.batch_size=12")


def loaded(folder: Path) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3).eval()


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(5, 25).reshape(2, 10)
    with torch.no_grad():
        answer: torch.Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return answer


def test_only_adapters_head_and_pooler_learn_and_nothing_changes_at_first(tiny_base: Path) -> None:
    model = loaded(tiny_base)
    before = logits(model)
    adapt(model, 2, 16)
    trained = {name for name, one in model.named_parameters() if one.requires_grad}
    assert {name for name in trained if "lora_" not in name} == {
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
        "classifier.weight",
        "classifier.bias",
    }
    layers = model.config.num_hidden_layers
    assert sum("lora_" in name for name in trained) == 2 * 6 * layers, "two factors for each of six products a layer"
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)


def test_merged_model_says_what_the_adapted_one_says(tiny_base: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = loaded(tiny_base)
    names = set(model.state_dict())
    plain = logits(model)
    adapt(model, 2, 16)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted = logits(model)
    assert (adapted - plain).abs().max() > 0.01
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    again = loaded(tiny_base)
    adapt(again, 2, 16)
    load_adapted(again, tmp_path)
    merge(again)
    torch.testing.assert_close(logits(again), adapted, rtol=0, atol=1e-5)
    assert set(again.state_dict()) == names
    assert all(parameter.requires_grad for parameter in again.parameters())


@pytest.mark.parametrize("average", ["none", "ema"])
def test_the_published_checkpoint_is_a_plain_model(tiny_base: Path, tmp_path: Path, average: str) -> None:
    recipe = load_recipe(
        write_toy_recipe(write_toy_data(tmp_path), tiny_base), (*ADAPTED, f"regularize.average={average}")
    )
    result = finetune(recipe, tmp_path / "checkpoint")
    weights, base = load_file(result.checkpoint / "model.safetensors"), load_file(tiny_base / "model.safetensors")
    assert not any("lora" in name or "base_layer" in name for name in weights)
    base = {f"bert.{name.removeprefix('bert.')}": value for name, value in base.items()}
    moved = {name for name, value in base.items() if name in weights and not torch.equal(weights[name], value)}
    assert "bert.encoder.layer.0.attention.self.query.weight" in moved
    assert not any("embeddings" in name or "LayerNorm" in name for name in moved)


def test_adapters_learn_ten_times_as_fast_where_no_rate_is_given() -> None:
    rates = [make_plan(TrainSection(lora_rank=rank), windows=100, hidden_size=384).learning_rate for rank in (0, 8)]
    assert rates == pytest.approx([2e-4, 2e-3])


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (("train.lora_alpha=8",), "train.lora_alpha: found without train.lora_rank"),
        (("train.lora_rank=2", "train.biases_only=true"), "train.biases_only: found together with train.lora_rank"),
        (("train.lora_rank=2", "regularize.mixout=0.1"), "regularize.mixout: found together with train.lora_rank"),
    ],
)
def test_what_does_not_go_with_adapters_is_refused(
    tiny_base: Path, tmp_path: Path, overrides: tuple[str, ...], problem: str
) -> None:
    with pytest.raises(RecipeError, match=problem):
        load_recipe(write_toy_recipe(write_toy_data(tmp_path), tiny_base), overrides)
