"""Layers that are left out, drawn anew, frozen or given slower rates, in every family that has them."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from finetune.layers import GradualUnfreezing, depths, freeze, keep_layers, reinitialize
from finetune.optimization import make_optimizer
from finetune.recipe import TrainSection
from tasks.errors import RecipeError
from tests.export.test_families import EXPORTED, FUSED, Family, build

LAYERED = [one for one in {str(one): one for one in [*EXPORTED, *FUSED]}.values() if one.name != "Albert"]
families = pytest.mark.parametrize("family", LAYERED, ids=str)


def values(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: one.detach().clone() for name, one in model.named_parameters()}


def answer(model: PreTrainedModel) -> Any:
    ids = torch.arange(24).reshape(2, 12) + 3
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids))


@families
def test_every_weight_has_its_depth(family: Family) -> None:
    model = build(family)
    found = depths(model, "key")
    assert found.keys() == {name for name, _ in model.named_parameters()}
    assert set(found.values()) == {0, 1, 2, 3}
    embedding = model.get_input_embeddings().weight
    assert all(found[name] == 0 for name, one in model.named_parameters() if one is embedding)
    assert all(found[name] == 3 for name in found if name.startswith(("classifier", "qa_outputs")))


@families
def test_freezing_two_layers_leaves_the_head(family: Family) -> None:
    model = build(family)
    found = depths(model, "key")
    freeze(model, TrainSection(freeze_layers=1))
    assert {name for name, one in model.named_parameters() if not one.requires_grad} == {
        name for name, depth in found.items() if depth <= 1
    }
    freeze(model, TrainSection(freeze_encoder=True))
    trained = [name for name, one in model.named_parameters() if one.requires_grad]
    assert trained
    assert not [name for name in trained if name.startswith(f"{model.base_model_prefix}.")]


@families
def test_biases_and_the_head_alone_are_trained(family: Family) -> None:
    model = build(family)
    freeze(model, TrainSection(biases_only=True, freeze_embeddings=True))
    trained = {name for name, one in model.named_parameters() if one.requires_grad}
    below = {name for name in trained if name.startswith(f"{model.base_model_prefix}.")}
    assert all(name.endswith("bias") for name in below)
    assert {name for name, depth in depths(model, "key").items() if depth in (1, 2) and name.endswith("bias")} <= below
    assert trained - below


@families
def test_top_layers_drawn_anew_and_no_other(family: Family) -> None:
    model = build(family)
    # as after loading, when transformers initialises no weight again
    for one in model.parameters():
        one._is_hf_initialized = True
    found, before = depths(model, "key"), values(model)
    torch.manual_seed(5)
    reinitialize(model, 1)
    moved = {name for name, one in model.named_parameters() if not torch.equal(one, before[name])}
    assert {found[name] for name in moved} <= {2, 3}
    matrices = {name for name, one in model.named_parameters() if found[name] == 2 and one.dim() == 2}
    assert matrices <= moved
    assert not [name for name in moved if name.startswith(("classifier", "qa_outputs"))]
    pooler = getattr(getattr(model, model.base_model_prefix), "pooler", None)
    assert any(".pooler." in name for name in moved) == (pooler is not None)


# ESM's map of contacts between amino acids is made for all of its layers
@pytest.mark.parametrize("family", [one for one in LAYERED if one.name != "Esm"], ids=str)
def test_a_model_of_fewer_layers_runs_and_is_smaller(family: Family) -> None:
    model = build(family)
    before = model.num_parameters()
    keep_layers(model, 1)
    assert model.config.num_hidden_layers == 1
    assert model.num_parameters() < before
    again = type(model)(model.config)
    assert again.load_state_dict(model.state_dict())
    answer(model)


@families
def test_rates_fall_from_layer_to_layer(family: Family) -> None:
    model = build(family)
    settings = TrainSection(layer_decay=0.5, weight_decay=0.1)
    decaying = {name for name, one in model.named_parameters() if one.dim() == 2}
    optimizer = make_optimizer(model, settings, 0.8, decaying)
    names = {id(one): name for name, one in model.named_parameters()}
    found = depths(model, "key")
    seen = set()
    for group in optimizer.param_groups:
        for one in group["params"]:
            name = names[id(one)]
            seen.add(name)
            assert group["lr"] == pytest.approx(0.8 * 0.5 ** (3 - found[name]))
            assert group["weight_decay"] == (0.1 if name in decaying else 0.0)
    assert seen == found.keys()


def test_gradual_unfreezing_moves_one_layer_more_with_each_epoch() -> None:
    model = build(Family("Bert"))
    freeze(model, TrainSection(freeze_embeddings=True))
    found = depths(model, "key")
    optimizer = make_optimizer(model, TrainSection(gradual_unfreezing=True), 0.1, set())
    unfreezing = GradualUnfreezing(model)
    ids = torch.arange(24).reshape(2, 12) + 3
    for epoch, moving in enumerate([{3}, {2, 3}, {1, 2, 3}, {1, 2, 3}]):
        unfreezing.on_epoch_begin(None, SimpleNamespace(epoch=float(epoch)), None)
        before = values(model)
        model(input_ids=ids, labels=torch.tensor([0, 1])).loss.backward()
        optimizer.step()
        model.zero_grad()
        moved = {found[name] for name, one in model.named_parameters() if not torch.equal(one, before[name])}
        assert moved == moving, epoch


@pytest.mark.parametrize("key", ["freeze_layers", "reinitialize_layers", "keep_layers"])
def test_more_layers_than_there_are_are_refused(key: str) -> None:
    act = {
        "freeze_layers": lambda model: freeze(model, TrainSection(freeze_layers=3)),
        "reinitialize_layers": lambda model: reinitialize(model, 3),
        "keep_layers": lambda model: keep_layers(model, 3),
    }[key]
    with pytest.raises(RecipeError, match=f"train.{key}: found 3; expected at most 2, the layers of the base model"):
        act(build(Family("Bert")))


def test_layers_that_share_their_weights_are_refused() -> None:
    albert = next(one for one in EXPORTED if one.name == "Albert")
    with pytest.raises(
        RecipeError, match=r"train\.layer_decay: found with a base model of the type albert, whose layers"
    ):
        make_optimizer(build(albert), TrainSection(layer_decay=0.5), 0.1, set())
