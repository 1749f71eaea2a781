"""The losses against those of transformers and against their papers' formulas."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from finetune.inference import raw_outputs
from finetune.losses import class_weights, make_loss, positive_weights
from finetune.recipe import LossSection, load_recipe
from finetune.training import finetune
from tasks.base import TaskSpec
from tasks.catalogue import load_task
from tasks.token_classification import IGNORED
from tests.export.test_families import Family, build
from tests.toy import write_toy_data, write_toy_recipe, write_toy_task

ROWS, TOKENS, LABELS = 6, 12, 3
NAMES: dict[str, tuple[str, ...]] = {
    "token_classification": ("O", "B-x", "I-x"),
    "regression": ("value",),
    "question_answering": ("start", "end"),
}


def loss_of(task: str, targets: list[Any] | None = None, **settings: Any) -> Any:
    labels = {
        "token_classification": ("O", "B-x", "I-x"),
        "regression": ("value",),
        "question_answering": ("start", "end"),
    }
    spec = TaskSpec(task=task, labels=labels.get(task, ("a", "b", "c")), max_length=TOKENS, options={})
    plain = [np.array([1, 0, 1], dtype=np.float32)] * 4 if task == "multi_label" else [0, 1, 2]
    return make_loss(load_task(spec), LossSection(**settings), targets or plain)


def batch_of(task: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
    def ids(count: int, *shape: int) -> torch.Tensor:
        return torch.randint(count, shape, generator=generator)

    if task == "question_answering":
        spans = {"start_positions": ids(TOKENS, ROWS), "end_positions": ids(TOKENS, ROWS)}
        return spans | {"attention_mask": torch.ones(ROWS, TOKENS, dtype=torch.int64)}
    if task == "token_classification":
        labels = ids(LABELS, ROWS, TOKENS)
        # as many as differ from row to row, for parts of a batch must not count alike
        for row in range(ROWS):
            labels[row, 1 + row :] = IGNORED
        return {"labels": labels}
    if task == "multi_label":
        return {"labels": ids(2, ROWS, LABELS).float()}
    return {"labels": torch.randn(ROWS, generator=generator) if task == "regression" else ids(LABELS, ROWS)}


HEADS = {
    "single_label": ("SequenceClassification", {"problem_type": "single_label_classification"}),
    "multi_label": ("SequenceClassification", {"problem_type": "multi_label_classification"}),
    "regression": ("SequenceClassification", {"problem_type": "regression", "num_labels": 1}),
    "token_classification": ("TokenClassification", {}),
    "question_answering": ("QuestionAnswering", {}),
}


@pytest.mark.parametrize("task", HEADS)
def test_the_loss_is_that_of_transformers_whole_and_in_parts(task: str) -> None:
    head, config = HEADS[task]
    model = build(Family("Bert", head, config))
    generator = torch.Generator().manual_seed(1)
    questions = {"input_ids": torch.randint(3, 90, (ROWS, TOKENS), generator=generator)}
    gold = batch_of(task, generator)
    loss = loss_of(task)

    def gradients() -> dict[str, torch.Tensor]:
        found = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
        model.zero_grad()
        return found

    theirs = model(**questions, **gold).loss
    theirs.backward()
    expected = gradients()
    for parts in (1, 2, 6):
        total = torch.zeros(())
        for part in range(parts):
            rows = slice(part * ROWS // parts, (part + 1) * ROWS // parts)
            some = {name: one[rows] for name, one in gold.items()}
            outputs = raw_outputs(model(**{name: one[rows] for name, one in questions.items()}))
            ours = loss.total(outputs, some) / loss.items(gold)
            ours.backward()
            total += ours.detach()
        assert total.item() == pytest.approx(theirs.item(), rel=1e-5)
        found = gradients()
        assert found.keys() == expected.keys()
        for name, one in found.items():
            assert torch.allclose(one, expected[name], atol=1e-6), (parts, name)


@pytest.mark.parametrize("task", HEADS)
def test_two_answers_diverge_alike_both_ways_and_an_answer_not_from_itself(task: str) -> None:
    generator = torch.Generator().manual_seed(2)
    gold = batch_of(task, generator)
    width = {"regression": (1,), "token_classification": (TOKENS, LABELS), "question_answering": (TOKENS, 2)}
    shape = (ROWS, *width.get(task, (LABELS,)))
    left, right = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    loss = loss_of(task)
    assert loss.divergence(left, right, gold).item() == pytest.approx(loss.divergence(right, left, gold).item())
    assert loss.divergence(left, right, gold) > 0
    assert loss.divergence(left, left, gold) == 0


def test_divergence_is_that_of_kullback_and_leibler() -> None:
    generator = torch.Generator().manual_seed(3)
    left, right = torch.randn(2, ROWS, LABELS, generator=generator)
    labels = torch.zeros(ROWS, dtype=torch.int64)
    first, second = functional.log_softmax(left, -1), functional.log_softmax(right, -1)
    forth, back = (
        functional.kl_div(one, other, log_target=True, reduction="sum")
        for one, other in ((first, second), (second, first))
    )
    found = loss_of("single_label").divergence(left, right, {"labels": labels})
    assert found.item() == pytest.approx(((forth + back) / 2).item(), rel=1e-5)


def test_padding_is_no_place_for_an_answer() -> None:
    outputs = torch.randn(1, 8, 2, generator=torch.Generator().manual_seed(4))
    gold = {"start_positions": torch.tensor([1]), "end_positions": torch.tensor([3])}
    loss = loss_of("question_answering")
    alone = loss.total(outputs[:, :5], gold | {"attention_mask": torch.ones(1, 5)})
    padded = loss.total(outputs, gold | {"attention_mask": torch.tensor([[1] * 5 + [0] * 3])})
    assert padded.item() == pytest.approx(alone.item())
    moved = outputs.clone()
    moved[:, 5:] += 9
    assert loss.divergence(outputs, moved, gold | {"attention_mask": torch.tensor([[1] * 5 + [0] * 3])}) == 0


def test_focal_loss_counts_what_is_right_for_less() -> None:
    logits = torch.tensor([[4.0, 0.0, 0.0], [0.0, 4.0, 0.0]])
    gold = {"labels": torch.tensor([0, 0])}
    given = torch.softmax(logits, -1)[:, 0]
    expected = -((1 - given) ** 2 * given.log()).sum().item()
    assert loss_of("single_label", focal_gamma=2.0).total(logits, gold).item() == pytest.approx(expected, rel=1e-5)


def test_smoothing_gives_every_label_a_share() -> None:
    logits = torch.tensor([[3.0, 1.0, 0.0]])
    logs = torch.log_softmax(logits, -1)[0]
    expected = -(0.9 * logs[1] + 0.1 * logs.mean()).item()
    found = loss_of("single_label", label_smoothing=0.1).total(logits, {"labels": torch.tensor([1])})
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_weights_of_labels() -> None:
    ids = np.array([0] * 90 + [1] * 9 + [2])
    inverse = class_weights(ids, "inverse", 4)
    assert inverse[[1, 2]] / inverse[0] == pytest.approx([10, 90])
    root = class_weights(ids, "sqrt_inverse", 4)
    assert root[[1, 2]] / root[0] == pytest.approx([math.sqrt(10), math.sqrt(90)])
    effective = class_weights(ids, "effective_number", 4)
    assert effective[2] / effective[0] == pytest.approx((1 - 0.999**90) / (1 - 0.999), rel=1e-4)
    for weights in (inverse, root, effective):
        assert weights[3] == weights[2], "a label that no row bears"
        assert np.bincount(ids, minlength=4) @ weights == pytest.approx(len(ids), rel=1e-5)


def test_a_rare_label_counts_for_more_and_padding_for_nothing() -> None:
    targets = [np.array([0, 0, 0, 1, IGNORED]), np.array([IGNORED, 0, 2, 2, 0])]
    loss = loss_of("token_classification", targets, class_weights="inverse")
    logits = torch.zeros(1, 3, 3)
    alone = {
        label: loss.total(logits, {"labels": torch.tensor([[label, IGNORED, IGNORED]])}).item() for label in range(3)
    }
    assert alone[1] / alone[0] == pytest.approx(5)
    assert alone[2] / alone[0] == pytest.approx(2.5)


def test_positive_weights_are_capped() -> None:
    labels = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 0], [1, 0, 0]], dtype=np.float32)
    assert positive_weights(labels, 100).tolist() == [1, 3, 4]
    assert positive_weights(labels, 2).tolist() == [1, 2, 2]
    loss = loss_of("multi_label", list(labels), max_positive_weight=2.0)
    gold = torch.tensor([[1.0, 1.0, 0.0]])
    expected = functional.binary_cross_entropy_with_logits(
        torch.zeros(1, 3), gold, pos_weight=torch.tensor([1.0, 2.0, 2.0]), reduction="sum"
    )
    assert loss.total(torch.zeros(1, 3), {"labels": gold}).item() == pytest.approx(expected.item())


def test_asymmetric_loss_is_its_papers_formula() -> None:
    logits, gold = torch.tensor([[1.5, -0.5, -4.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    given = torch.sigmoid(logits)[0].tolist()
    shifted = [max(one - 0.05, 0) for one in given]
    expected = -(
        (1 - given[0]) * math.log(given[0]) + sum(one**4 * math.log(1 - one) for one in (shifted[1], shifted[2]))
    )
    loss = loss_of("multi_label", focal_gamma=1.0, negative_gamma=4.0, probability_margin=0.05)
    assert loss.total(logits, {"labels": gold}).item() == pytest.approx(expected, rel=1e-4)


@given(
    st.floats(-200, 200),
    st.sampled_from([0.0, 1.0]),
    st.sampled_from([0.0, 0.5, 2.0]),
    st.sampled_from([0.0, 0.05]),
)
def test_extreme_logits_have_a_loss_and_a_gradient(logit: float, label: float, gamma: float, margin: float) -> None:
    logits = torch.full((1, 3), logit, requires_grad=True)
    loss = loss_of("multi_label", focal_gamma=gamma, probability_margin=margin)
    total = loss.total(logits, {"labels": torch.full((1, 3), label)})
    total.backward()
    assert torch.isfinite(total) and total >= 0
    assert logits.grad is not None and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("task", HEADS)
def test_a_batch_in_parts_trains_as_the_whole_does(task: str, tiny_base: Path, tmp_path: Path) -> None:
    """32x1, 8x4 and 1x32 of transformers#47688, through all of training."""
    if task == "single_label":
        recipe = write_toy_recipe(write_toy_data(tmp_path), tiny_base)
    else:
        recipe = write_toy_task(tmp_path, tiny_base, task)
    # one step, without what is random, and of a size that shows the gradient's
    fixed = ["train.epochs=1", "train.dropout=0.0", "train.warmup_ratio=0.0", "train.batch_size=32"]
    fixed += ["train.max_grad_norm=0", "train.early_stopping_patience=0", "train.evaluations_per_epoch=1"]
    logged = []
    for part in (32, 8, 1):
        result = finetune(load_recipe(recipe, [*fixed, f"train.micro_batch_size={part}"]), tmp_path / f"out{part}")
        history = json.loads((result.checkpoint / "run.json").read_bytes())["training"]["history"]
        logged.append([one[key] for one in history if "grad_norm" in one for key in ("loss", "grad_norm")])
    assert len(logged[0]) == 2
    assert logged[1] == pytest.approx(logged[0], rel=2e-3)
    assert logged[2] == pytest.approx(logged[0], rel=2e-3)
