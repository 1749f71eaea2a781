import math

import numpy as np
import pytest
from sklearn.metrics import f1_score, matthews_corrcoef

from tasks import ParitybitError, TaskSpec, Window, load_task
from tasks.errors import DataError
from tasks.single_label import SingleLabel, SingleLabelParameters

LABELS = ("a", "b", "c")


@pytest.fixture
def task() -> SingleLabel:
    return SingleLabel(TaskSpec(task="single_label", labels=LABELS, max_length=8))


def window(row: int, truncated: bool = False) -> Window:
    ids = np.array([2, 3], dtype=np.int64)
    return Window(row, ids, np.zeros_like(ids), truncated)


def logits(*rows: list[float]) -> list[np.ndarray]:
    return [np.array(row, dtype=np.float32) for row in rows]


def test_softmax_scores_fall_and_sum_to_one(task: SingleLabel) -> None:
    (answer,) = task.decode(
        logits([0.0, math.log(6), math.log(3)]), [window(0, truncated=True)], SingleLabelParameters()
    )
    assert [entry["label"] for entry in answer["labels"]] == ["b", "c", "a"]
    assert [entry["score"] for entry in answer["labels"]] == pytest.approx([0.6, 0.3, 0.1])
    assert answer["truncated"] is True


@pytest.mark.parametrize(("function", "expected"), [("sigmoid", [1 / (1 + math.exp(-2)), 0.5]), ("none", [2.0, 0.0])])
def test_other_functions_and_top_k(task: SingleLabel, function: str, expected: list[float]) -> None:
    parameters = SingleLabelParameters.model_validate({"top_k": 2, "function_to_apply": function})
    (answer,) = task.decode(logits([0.0, 2.0, -1.0]), [window(0)], parameters)
    assert [entry["label"] for entry in answer["labels"]] == ["b", "a"]
    assert [entry["score"] for entry in answer["labels"]] == pytest.approx(expected)


def test_top_k_beyond_the_labels_gives_all(task: SingleLabel) -> None:
    (answer,) = task.decode(logits([0, 0, 0]), [window(0)], SingleLabelParameters(top_k=99))
    assert len(answer["labels"]) == 3


def test_huge_logits_do_not_overflow(task: SingleLabel) -> None:
    for function in ("softmax", "sigmoid"):
        parameters = SingleLabelParameters.model_validate({"function_to_apply": function})
        (answer,) = task.decode(logits([3e38, 0, -3e38]), [window(0)], parameters)
        assert answer["labels"][0] == {"label": "a", "score": 1.0}


def test_no_inputs_no_answers(task: SingleLabel) -> None:
    assert task.decode([], [], SingleLabelParameters()) == []


def test_metrics_are_those_of_scikit_learn(task: SingleLabel) -> None:
    generator = np.random.default_rng(0)
    outputs = list(generator.normal(size=(200, 3)).astype(np.float32))
    gold = generator.integers(0, 3, 200).tolist()
    predicted = [int(row.argmax()) for row in outputs]
    metrics = task.metrics(outputs, gold)
    assert metrics["accuracy"] == pytest.approx(sum(a == b for a, b in zip(gold, predicted, strict=True)) / 200)
    assert metrics["macro_f1"] == pytest.approx(f1_score(gold, predicted, average="macro"))
    assert metrics["mcc"] == pytest.approx(matthews_corrcoef(gold, predicted))
    assert task.row_scores(outputs, gold).mean() == pytest.approx(metrics[task.primary_metric])


def test_same_answer_compares_labels_not_numbers(task: SingleLabel) -> None:
    left, right = logits([1, 0, 0], [0, 1, 0]), logits([0.1, 0, 0], [1, 0, 0])
    assert task.same_answer(left, right).tolist() == [True, False]


def test_targets_are_label_ids(task: SingleLabel) -> None:
    assert [task.target(label) for label in LABELS] == [0, 1, 2]
    with pytest.raises(DataError, match="unknown label 'd'"):
        task.target("d")


@pytest.mark.parametrize(("labels", "message"), [(("a",), "at least two"), (("a", "b", "a"), "stands twice")])
def test_labels_are_checked(labels: tuple[str, ...], message: str) -> None:
    with pytest.raises(ParitybitError, match=message):
        load_task(TaskSpec(task="single_label", labels=labels, max_length=8))


def test_unknown_task_names_the_known() -> None:
    with pytest.raises(ParitybitError, match="unknown task 'poetry'; this version knows: single_label"):
        load_task(TaskSpec(task="poetry", labels=LABELS, max_length=8))
