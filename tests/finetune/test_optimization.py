"""Optimizers, schedules, and what is chosen where a recipe is silent."""

import math

import pytest
import torch

from finetune.defaults import make_plan
from finetune.optimization import learning_rate_factor, make_optimizer, make_schedule
from finetune.recipe import TrainSection
from tests.export.test_families import Family, build

STEPS = 100


def factors(**settings: object) -> list[float]:
    section = TrainSection.model_validate(settings)
    return [learning_rate_factor(step, settings=section, steps=STEPS) for step in range(STEPS + 1)]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "polynomial"])
def test_warm_up_then_down_to_zero(schedule: str) -> None:
    found = factors(schedule=schedule, warmup_ratio=0.1)
    assert found[:11] == pytest.approx([step / 10 for step in range(11)])
    assert found[10:] == sorted(found[10:], reverse=True)
    assert found[-1] == pytest.approx(0, abs=1e-9)


def test_schedules_halfway() -> None:
    halfway = {name: factors(schedule=name, warmup_ratio=0.0)[50] for name in ("linear", "cosine", "polynomial")}
    assert halfway == pytest.approx({"linear": 0.5, "cosine": 0.5, "polynomial": 0.25})
    assert factors(schedule="constant", warmup_ratio=0.2)[20:] == [1.0] * 81


@pytest.mark.parametrize(("step", "excess"), [(12, 6.6), (100, 3.2), (1000, 1.26)])
def test_steps_without_bias_correction_are_too_large_by_what_the_literature_says(step: int, excess: float) -> None:
    section = TrainSection(schedule="constant", warmup_ratio=0.0, bias_correction=False)
    assert learning_rate_factor(step - 1, settings=section, steps=2000) == pytest.approx(excess, rel=0.02)


def test_adam_without_bias_correction_is_adam_without_bias_correction() -> None:
    """Against the update as the first BERT's optimizer wrote it."""
    section = TrainSection(schedule="constant", warmup_ratio=0.0, bias_correction=False, weight_decay=0.0)
    layer = torch.nn.Linear(3, 2, bias=False)
    expected, first, second = layer.weight.detach().clone(), torch.zeros(2, 3), torch.zeros(2, 3)
    optimizer = make_optimizer(layer, section, 1e-3, set())
    schedule = make_schedule(optimizer, section, STEPS)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        gradient = torch.randn(2, 3, generator=generator)
        layer.weight.grad = gradient.clone()
        optimizer.step()
        schedule.step()
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        expected -= 1e-3 * first / (second.sqrt() + 1e-6)
    assert torch.allclose(layer.weight, expected, atol=1e-5)


def test_adafactor_takes_the_recipes_rate() -> None:
    model = build(Family("Bert"))
    optimizer = make_optimizer(model, TrainSection(optimizer="adafactor"), 0.01, set())
    before = model.classifier.weight.detach().clone()
    model(input_ids=torch.arange(24).reshape(2, 12) + 3, labels=torch.tensor([0, 1])).loss.backward()
    optimizer.step()
    moved = (model.classifier.weight - before).abs()
    assert 0.001 < moved.max() < 0.1


def test_lion_steps_by_the_sign_and_wants_a_smaller_rate() -> None:
    layer = torch.nn.Linear(3, 2, bias=False)
    before = layer.weight.detach().clone()
    layer.weight.grad = torch.tensor([[1e-4, -2.0, 3.0], [-0.5, 1e-3, -9.0]])
    make_optimizer(layer, TrainSection(optimizer="lion", weight_decay=0.5), 0.01, {"weight"}).step()
    decayed = before * (1 - 0.01 * 0.5)
    assert torch.allclose(layer.weight, decayed - 0.01 * layer.weight.grad.sign(), atol=1e-6)
    rates = [
        make_plan(TrainSection(epochs=1, optimizer=name), windows=100, hidden_size=768).learning_rate
        for name in ("adamw", "lion")
    ]
    assert rates == pytest.approx([3e-5, 6e-6])


@pytest.mark.parametrize(
    ("windows", "epochs", "every"), [(100, 100, 20), (500, 25, 20), (2_000, 7, 63), (50_000, 4, 1563)]
)
def test_few_rows_are_gone_through_more_often(windows: int, epochs: int, every: int) -> None:
    plan = make_plan(TrainSection(), windows=windows, hidden_size=768)
    assert (plan.epochs, plan.evaluate_every) == (epochs, every)
    assert plan.steps_per_epoch == math.ceil(windows / 32)
    chosen = [line for line in plan.remarks(TrainSection(), 768) if "train.epochs" in line]
    assert chosen == [
        f"train.epochs: {epochs} chosen, {epochs * plan.steps_per_epoch} steps; an evaluation every {every}"
    ]


@pytest.mark.parametrize(("width", "rate"), [(384, 2e-4), (768, 3e-5), (1024, 2e-5)])
def test_a_rate_is_chosen_by_the_models_width(width: int, rate: float) -> None:
    plan = make_plan(TrainSection(epochs=3), windows=1000, hidden_size=width)
    assert plan.learning_rate == rate
    assert plan.evaluate_every == plan.steps_per_epoch == 32


@pytest.mark.parametrize(("rate", "warned"), [(3e-5, False), (2e-4, False), (1e-3, True), (1e-6, True)])
def test_a_rate_far_from_the_usual_is_told(rate: float, warned: bool) -> None:
    settings = TrainSection(learning_rate=rate, epochs=1)
    plan = make_plan(settings, windows=1000, hidden_size=768)
    assert [line.startswith("warning: train.learning_rate is") for line in plan.remarks(settings, 768)] == [
        True
    ] * warned
