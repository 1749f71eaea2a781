import math
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score, matthews_corrcoef

from tasks import ParitybitError, TaskSpec, TextInput, Tokenizer, load_task
from tasks.classification import TextOptions
from tasks.errors import DataError
from tasks.single_label import SingleLabel, SingleLabelParameters
from tests.tasks.outputs import encoded, outputs

LABELS = ("a", "b", "c")


@pytest.fixture
def task() -> SingleLabel:
    return SingleLabel(TaskSpec(task="single_label", labels=LABELS, max_length=8))


def test_softmax_scores_fall_and_sum_to_one(task: SingleLabel) -> None:
    (answer,) = task.decode(
        outputs([0.0, math.log(6), math.log(3)]), encoded([0], truncated=True), SingleLabelParameters()
    )
    assert [entry["label"] for entry in answer["labels"]] == ["b", "c", "a"]
    assert [entry["score"] for entry in answer["labels"]] == pytest.approx([0.6, 0.3, 0.1])
    assert answer["truncated"] is True
    assert task.summary(answer) == task.gold_summary("b") == "b"


@pytest.mark.parametrize(("function", "expected"), [("sigmoid", [1 / (1 + math.exp(-2)), 0.5]), ("none", [2.0, 0.0])])
def test_other_functions_and_top_k(task: SingleLabel, function: str, expected: list[float]) -> None:
    parameters = SingleLabelParameters.model_validate({"top_k": 2, "function_to_apply": function})
    (answer,) = task.decode(outputs([0.0, 2.0, -1.0]), encoded([0]), parameters)
    assert [entry["label"] for entry in answer["labels"]] == ["b", "a"]
    assert [entry["score"] for entry in answer["labels"]] == pytest.approx(expected)


def test_top_k_beyond_the_labels_gives_all(task: SingleLabel) -> None:
    (answer,) = task.decode(outputs([0, 0, 0]), encoded([0]), SingleLabelParameters(top_k=99))
    assert len(answer["labels"]) == 3


def test_huge_logits_do_not_overflow(task: SingleLabel) -> None:
    for function in ("softmax", "sigmoid"):
        parameters = SingleLabelParameters.model_validate({"function_to_apply": function})
        (answer,) = task.decode(outputs([3e38, 0, -3e38]), encoded([0]), parameters)
        assert answer["labels"][0] == {"label": "a", "score": 1.0}


def test_scores_that_round_to_one_keep_the_order_of_the_logits(task: SingleLabel) -> None:
    parameters = SingleLabelParameters(function_to_apply="sigmoid", top_k=1)
    (answer,) = task.decode(outputs([50, 60, 0]), encoded([0]), parameters)
    assert answer["labels"] == [{"label": "b", "score": 1.0}]


def test_no_inputs_no_answers(task: SingleLabel) -> None:
    assert task.decode([], encoded([]), SingleLabelParameters()) == []


def test_answer_of_several_windows_is_that_of_their_mean(task: SingleLabel) -> None:
    one, two = task.decode(outputs([1, 0, 0], [0, 3, 0], [2, 0, 0]), encoded([0, 1, 1]), SingleLabelParameters())
    assert (task.summary(one), task.summary(two)) == ("a", "b")


def test_metrics_are_those_of_scikit_learn(task: SingleLabel) -> None:
    generator = np.random.default_rng(0)
    logits = list(generator.normal(size=(200, 3)).astype(np.float32))
    gold = generator.integers(0, 3, 200)
    golds = [LABELS[one] for one in gold]
    predicted = np.array([row.argmax() for row in logits])
    metrics = task.metrics(logits, encoded(range(200)), golds)
    assert metrics["accuracy"] == pytest.approx((gold == predicted).mean())
    assert metrics["macro_f1"] == pytest.approx(f1_score(gold, predicted, average="macro"))
    assert metrics["mcc"] == pytest.approx(matthews_corrcoef(gold, predicted))
    statistics = task.statistics(logits, encoded(range(200)), golds)
    assert statistics.shape == (200, 1)
    assert task.score(statistics) == pytest.approx(metrics[task.primary_metric])
    assert task.score(statistics[:50]) == pytest.approx((gold == predicted)[:50].mean())


def test_one_label_everywhere_is_no_correlation(task: SingleLabel) -> None:
    same = outputs([5, 0, 0], [4, 0, 0])
    assert task.metrics(same, encoded(range(2)), ["a", "a"]) == {"accuracy": 1.0, "macro_f1": 1.0, "mcc": 0.0}


def test_same_answer_compares_labels_not_numbers(task: SingleLabel) -> None:
    left, right = outputs([1, 0, 0], [0, 1, 0]), outputs([0.1, 0, 0], [1, 0, 0])
    assert task.same_answer(left, right, encoded([0, 1])).tolist() == [True, False]


def test_targets_are_label_ids_of_each_window(task: SingleLabel) -> None:
    targets = task.targets(encoded([0, 1, 1, 2]), ["c", "a", "b"])
    assert targets == [2, 0, 0, 1]
    batch = task.collate_targets(targets, length=8)
    assert batch["labels"].tolist() == [2, 0, 0, 1]
    assert batch["labels"].dtype == np.int64


def test_unknown_label_is_told(task: SingleLabel) -> None:
    task.check("a")
    with pytest.raises(DataError, match="unknown label 'd'"):
        task.check("d")


def test_row_of_numbers_and_pairs() -> None:
    row = SingleLabel.read_row({"text": "a", "text_pair": "b", "label": 3}, TextOptions())
    assert (row.input, row.gold) == (TextInput("a", "b"), "3")
    assert SingleLabel.names(row.gold) == ("3",)
    assert SingleLabel.group(row.input) is None


def test_specification_holds_sorted_labels_and_what_was_chosen() -> None:
    options = TextOptions(truncation="windows")
    spec = SingleLabel.make_spec(["10", "9", "10"], labels=None, max_length=8, options=options)
    assert spec == TaskSpec(task="single_label", labels=("9", "10"), max_length=8, options={"truncation": "windows"})
    assert SingleLabel.make_spec(["a"], labels=("b", "a"), max_length=8, options=options).labels == ("b", "a")
    with pytest.raises(DataError, match="one label only, 'a'"):
        SingleLabel.make_spec(["a", "a"], labels=None, max_length=8, options=options)


def test_text_is_encoded_as_the_options_say(tokenizer_file: Path) -> None:
    spec = TaskSpec(task="single_label", labels=LABELS, max_length=6, options={"truncation": "windows", "stride": 0})
    result = SingleLabel(spec).encode(Tokenizer(tokenizer_file, 6), [TextInput("where is my lost card ?")])
    assert [len(window) for window in result.windows] == [6, 4]
    assert SingleLabel(spec).texts(TextInput("a", "b")) == ("a", "b")


def test_collapse_and_silent_labels_are_concerns(task: SingleLabel) -> None:
    three = encoded(range(3))
    assert task.concerns(outputs([0, 1, 0], [0, 2, 0], [0, 3, 0]), three) == [
        "the model collapsed: it always predicts 'b'"
    ]
    assert task.concerns(outputs([0, 1, 0], [0, 2, 0], [4, 3, 0]), three) == ["1 of 3 labels are never predicted: c"]
    assert task.concerns(outputs([0, 1, 0], [0, 2, 3], [4, 3, 0]), three) == []


@pytest.mark.parametrize(("labels", "message"), [(("a",), "at least two"), (("a", "b", "a"), "stands twice")])
def test_labels_are_checked(labels: tuple[str, ...], message: str) -> None:
    with pytest.raises(ParitybitError, match=message):
        load_task(TaskSpec(task="single_label", labels=labels, max_length=8))


def test_unknown_task_names_the_known() -> None:
    with pytest.raises(ParitybitError, match="unknown task 'poetry'; this version knows: single_label, multi_label"):
        load_task(TaskSpec(task="poetry", labels=LABELS, max_length=8))
