"""Adversary, mixout, pull to the pre-trained weights and averages, against their papers' definitions."""

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import PreTrainedModel

from finetune.averaging import AveragedWeights, load_averaged
from finetune.recipe import RegularizeSection
from finetune.regularization import Adversary, PullToPretrained, drop_several_times, mix_with_pretrained
from tests.export.test_families import EXPORTED, Family, build

IDS = torch.arange(24).reshape(2, 12) + 3
LABELS = torch.tensor([0, 1])


def tiny() -> PreTrainedModel:
    return build(Family("Bert"))


def gradients(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    found = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    model.zero_grad()
    return found


def test_the_fast_gradient_method_adds_the_gradient_of_the_moved_batch() -> None:
    model, plain = tiny(), tiny()
    # by hand: the gradient at the embedded words, each text's of length 1 times epsilon, added to them
    embedded = plain.get_input_embeddings()(IDS).detach().requires_grad_()
    plain(inputs_embeds=embedded, labels=LABELS).loss.backward()
    assert embedded.grad is not None
    move = 0.5 * embedded.grad / embedded.grad.flatten(1).norm(dim=1)[:, None, None]
    plain.zero_grad()
    clean_loss = plain(input_ids=IDS, labels=LABELS).loss
    clean_loss.backward()
    words = plain.get_input_embeddings()
    plain(inputs_embeds=words(IDS) + move, labels=LABELS).loss.backward()
    expected = gradients(plain)

    adversary = Adversary(RegularizeSection(adversarial_epsilon=0.5), model)
    losses = []

    def step(factor: float) -> torch.Tensor:
        loss = model(input_ids=IDS, labels=LABELS).loss * factor
        loss.backward()
        losses.append(loss.item())
        return loss.detach()

    assert adversary.train_on(step).item() == pytest.approx(clean_loss.item(), rel=1e-5)
    assert losses[1] > losses[0]
    found = gradients(model)
    assert found.keys() == expected.keys()
    for name, one in found.items():
        assert torch.allclose(one, expected[name], atol=1e-5), name
    # and then it is as if there were none
    assert model(input_ids=IDS, labels=LABELS).loss.item() == pytest.approx(clean_loss.item(), rel=1e-6)


@pytest.mark.parametrize("frozen", [False, True])
def test_freelb_climbs_within_its_bound_and_averages(frozen: bool) -> None:
    model = tiny()
    if frozen:
        model.get_input_embeddings().weight.requires_grad = False
    adversary = Adversary(RegularizeSection(adversarial_epsilon=0.3, adversarial_steps=3), model)
    torch.manual_seed(0)
    lengths, losses, factors = [], [], []

    def step(factor: float) -> torch.Tensor:
        loss = model(input_ids=IDS, labels=LABELS).loss
        assert adversary._move is not None
        lengths.extend(adversary._move.detach().flatten(1).norm(dim=1).tolist())
        losses.append(loss.item())
        factors.append(factor)
        (loss * factor).backward()
        return (loss * factor).detach()

    first = adversary.train_on(step)
    assert factors == pytest.approx([1 / 3] * 3)
    assert first.item() == pytest.approx(losses[0], rel=1e-5)
    assert losses[-1] > losses[0]
    assert max(lengths) <= 0.3 * 1.0001
    assert gradients(model)


def test_several_dropouts_are_several_answers_to_each_row_and_on_average_the_plain_one() -> None:
    model = tiny()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    plain = model(input_ids=IDS).logits
    drop_several_times(model, 4000)
    assert torch.equal(model(input_ids=IDS).logits, plain)
    model.train()
    torch.manual_seed(0)
    samples = torch.stack(model(input_ids=IDS).logits.chunk(4000))
    assert samples.shape == (4000, *plain.shape)
    assert not torch.allclose(samples[0], samples[1])
    # the mean of 4,000 is a sixtieth of a sample's own deviation away
    assert (samples.mean(dim=0) - plain).abs().max() < samples.std(dim=0).max() / 15


@pytest.mark.parametrize("family", [one for one in EXPORTED if one.head == "SequenceClassification"], ids=str)
def test_mixout_is_the_pretrained_model_or_the_trained_one_and_on_average_the_trained(family: Family) -> None:
    model = build(family)
    names = list(model.state_dict())
    plain = copy.deepcopy(model)
    mix_with_pretrained(model, 0.5)
    assert list(model.state_dict()) == names
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    batch = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    with torch.no_grad():
        # what has not moved is mixed with itself
        assert torch.allclose(model(**batch).logits, plain(**batch).logits, atol=1e-5)
        layer = next(one for one in model.modules() if hasattr(one, "mixed_share"))
        before = layer.weight.detach().clone()
        layer.weight += 1.0
        inputs = torch.ones(1, layer.in_features)
        torch.manual_seed(0)
        mean = torch.stack([layer(inputs) for _ in range(3000)]).mean(dim=0)
        expected = torch.nn.functional.linear(inputs, layer.weight, layer.bias)
        assert torch.allclose(mean, expected, atol=0.1 * layer.in_features**0.5)
        layer.eval()
        assert torch.equal(layer(inputs), expected)
        assert not torch.equal(before, layer.weight)


def test_weights_are_pulled_to_where_pretraining_left_them() -> None:
    model = tiny()
    start = {name: one.detach().clone() for name, one in model.named_parameters()}
    pull = PullToPretrained(model, 0.1)
    with torch.no_grad():
        for one in model.parameters():
            one.add_(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    pull.on_optimizer_step(None, None, None, optimizer=optimizer)
    for name, one in model.named_parameters():
        away = 1.0 if name.startswith("classifier") else 1 - 0.1 * 0.5
        assert torch.allclose(one, start[name] + away, atol=1e-5), name


def step_to(model: PreTrainedModel, average: AveragedWeights, step: int, value: float, steps: int = 8) -> None:
    with torch.no_grad():
        for one in model.parameters():
            one.fill_(value)
    average.on_step_end(None, SimpleNamespace(global_step=step, max_steps=steps), None)


def test_the_equal_average_is_over_the_last_part(tmp_path: Path) -> None:
    model = tiny()
    average = AveragedWeights(model, RegularizeSection(average="swa", swa_share=0.5))
    for step in range(1, 9):
        step_to(model, average, step, float(step))
        with average.applied():
            seen = model.classifier.weight[0, 0].item()
        assert seen == pytest.approx(step if step <= 4 else (5 + step) / 2)
        assert model.classifier.weight[0, 0].item() == step


def test_the_exponential_average_forgets_and_can_be_resumed(tmp_path: Path) -> None:
    model, settings = tiny(), RegularizeSection(average="ema", ema_decay=0.5)
    average = AveragedWeights(model, settings)
    expected = model.classifier.weight[0, 0].item()
    for step in range(1, 9):
        if step == 5:
            average.save(tmp_path)
            average = AveragedWeights(model, settings)
            average.load(tmp_path)
        step_to(model, average, step, float(step))
        decay = min(0.5, step / (10 + step))
        expected = decay * expected + (1 - decay) * step
    with average.applied():
        assert model.classifier.weight[0, 0].item() == pytest.approx(expected, rel=1e-5)
    average.save(tmp_path)
    other = tiny()
    load_averaged(other, tmp_path)
    assert other.classifier.weight[0, 0].item() == pytest.approx(expected, rel=1e-5)


def test_nothing_averaged_yet_is_the_model_itself(tmp_path: Path) -> None:
    model = tiny()
    before = model.classifier.weight.detach().clone()
    average = AveragedWeights(model, RegularizeSection(average="swa", swa_share=0.1))
    step_to(model, average, 1, 3.0)
    average.save(tmp_path)
    with average.applied():
        assert (model.classifier.weight == 3).all()
    load_averaged(model, tmp_path)
    assert (model.classifier.weight == 3).all()
    assert not torch.equal(before, model.classifier.weight)
