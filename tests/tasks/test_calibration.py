"""Calibration error and temperature."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from tasks.base import TaskSpec
from tasks.calibration import best_temperature, calibration_error
from tasks.catalogue import load_task
from tests.tasks.outputs import encoded


def test_calibration_error_of_a_worked_example() -> None:
    """Bins of a fifth: one holds 0.9 and 0.9, one of them right; one holds 0.7, right; one holds 0.2, wrong."""
    rows = np.array([[0.9, 1], [0.9, 0], [0.7, 1], [0.3, 0]])
    assert calibration_error(rows, bins=5) == pytest.approx((2 * 0.4 + 0.3 + 0.3) / 4)


@pytest.mark.parametrize("seed", range(3))
def test_calibration_error_is_that_of_bins_counted_one_by_one(seed: int) -> None:
    generator = np.random.default_rng(seed)
    confidence = np.append(generator.random(500), [0.0, 1.0, 1.0])
    right = (generator.random(503) < confidence**2).astype(np.float64)
    expected = 0.0
    for low in range(15):
        inside = [
            i for i in range(503) if low / 15 <= confidence[i] < (low + 1) / 15 or (low == 14 and confidence[i] == 1)
        ]
        if inside:
            expected += len(inside) / 503 * abs(confidence[inside].mean() - right[inside].mean())
    assert calibration_error(np.column_stack([confidence, right])) == pytest.approx(expected)
    assert expected > 0.05


def test_who_is_as_often_right_as_sure_has_no_calibration_error() -> None:
    honest = np.array([[0.75, 1], [0.75, 1], [0.75, 1], [0.75, 0]])
    assert calibration_error(honest) == 0
    boastful = honest + np.array([0.2, 0])
    assert calibration_error(boastful) == pytest.approx(0.2)


def drawn(temperature: float, rows: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a model that is too sure by a known temperature, and labels as they fall."""
    generator = np.random.default_rng(seed)
    honest = generator.normal(0, 2, (rows, 4))
    shares = np.exp(log_softmax(honest, axis=1))
    ids = np.array([generator.choice(4, p=share) for share in shares])
    return honest * temperature, ids


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_a_temperature_is_found_again(temperature: float) -> None:
    logits, ids = drawn(temperature)
    found = best_temperature(logits, ids)
    assert found == pytest.approx(temperature, rel=0.1)

    def loss(one: float) -> float:
        return float(-log_softmax(logits / one, axis=1)[np.arange(len(ids)), ids].mean())

    assert found == pytest.approx(minimize_scalar(loss, bounds=(0.2, 5), method="bounded").x, rel=1e-3)


def test_a_model_without_a_mistake_or_without_a_clue_ends_at_a_bound() -> None:
    logits = np.eye(3).repeat(5, axis=0)
    right = np.arange(3).repeat(5)
    assert best_temperature(logits, right) == pytest.approx(0.2)
    assert best_temperature(logits, (right + 1) % 3) == pytest.approx(5.0)


def test_single_label_scores_are_tuned_and_labels_stay() -> None:
    logits, ids = drawn(2.5)
    spec = TaskSpec(task="single_label", labels=("a", "b", "c", "d"), max_length=8, options={})
    task = load_task(spec)
    golds = [spec.labels[one] for one in ids]
    rows = encoded(range(len(ids)))
    outputs = list(logits.astype(np.float32))
    tuned = task.tuned(outputs, rows, golds)
    assert tuned.spec.options["temperature"] == pytest.approx(2.5, rel=0.1)
    before, after = (one.confidences(outputs, rows, golds) for one in (task, tuned))
    assert before is not None and after is not None
    assert calibration_error(before) > 0.1
    assert calibration_error(after) < 0.03
    assert tuned.same_answer(outputs, outputs, rows).all()
    assert tuned.metrics(outputs, rows, golds) == task.metrics(outputs, rows, golds)
    answer = tuned.decode(outputs[:1], encoded([0]), tuned.parameters())[0]
    best = max(one["score"] for one in answer["labels"])
    assert best == pytest.approx(after[0, 0])
    plain = tuned.decode(outputs[:1], encoded([0]), tuned.parameters(function_to_apply="none"))[0]
    assert plain["labels"][0]["score"] == pytest.approx(float(outputs[0].max()))


def test_a_temperature_of_the_recipe_stays() -> None:
    logits, ids = drawn(2.5, rows=50)
    spec = TaskSpec(task="single_label", labels=("a", "b", "c", "d"), max_length=8, options={"temperature": 1.0})
    tuned = load_task(spec).tuned(list(logits), encoded(range(50)), [spec.labels[one] for one in ids])
    assert tuned.spec.options == {"temperature": 1.0}
