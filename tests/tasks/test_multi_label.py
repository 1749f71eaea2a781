import json
import math
import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError
from sklearn.metrics import average_precision_score, f1_score

from tasks import ParitybitError, TaskSpec, TextInput, load_task
from tasks.base import FloatArray
from tasks.errors import DataError
from tasks.multi_label import MultiLabel, MultiLabelOptions, MultiLabelParameters
from tasks.thresholds import best_cuts, cautious_cuts
from tests.tasks.outputs import encoded, outputs

LABELS = ("fear", "joy", "love")
DEFAULTS = MultiLabelParameters()


def make(labels: tuple[str, ...] = LABELS, **options: object) -> MultiLabel:
    return MultiLabel(TaskSpec(task="multi_label", labels=labels, max_length=8, options=options))


def logit(score: float) -> float:
    return math.log(score / (1 - score))


def random_rows(count: int, labels: int, seed: int = 0) -> tuple[list[FloatArray], np.ndarray]:
    """Logits whose sigmoid is the probability of a label, and gold labels, each rarer than the one before."""
    generator = np.random.default_rng(seed)
    share = np.linspace(0.4, 0.02, labels)
    gold = generator.random((count, labels)) < share
    seen = generator.normal(size=(count, labels)) + 2 * gold
    return list((2 * seen - 2 + np.log(share / (1 - share))).astype(np.float32)), gold


def names(gold: np.ndarray, labels: tuple[str, ...] = LABELS) -> list[tuple[str, ...]]:
    return [tuple(label for label, one in zip(labels, row, strict=True) if one) for row in gold]


def test_labels_over_their_thresholds_by_falling_score() -> None:
    task = make(thresholds={"fear": 0.3, "joy": 0.95})
    scores = [logit(0.4), logit(0.9), logit(0.6)]
    (answer, nothing) = task.decode(outputs(scores, [-9, -9, -9]), encoded([0, 1], truncated=True), DEFAULTS)
    assert [entry["label"] for entry in answer["labels"]] == ["love", "fear"]
    assert [entry["score"] for entry in answer["labels"]] == pytest.approx([0.6, 0.4])
    assert nothing == {"labels": [], "truncated": True}
    assert task.summary(answer) == task.gold_summary(("fear", "love")) == "fear, love"
    assert task.summary(nothing) == task.gold_summary(()) == "no label"
    assert task.decode([], encoded([]), DEFAULTS) == []


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, ["joy"]),
        ({"top_k": 2}, ["joy", "love"]),
        ({"top_k": 9}, ["joy", "love", "fear"]),
        ({"threshold": 0.3}, ["joy", "love"]),
        ({"threshold": 0.0}, ["joy", "love", "fear"]),
        ({"threshold": 1.0}, []),
        ({"threshold": 0.3, "top_k": 1}, ["joy"]),
        ({"threshold": 0.95, "top_k": 1}, []),
    ],
)
def test_parameters_choose_among_the_labels(parameters: dict[str, float], expected: list[str]) -> None:
    rows = outputs([logit(0.1), logit(0.9), logit(0.4)])
    (answer,) = make().decode(rows, encoded([0]), MultiLabelParameters.model_validate(parameters))
    assert [entry["label"] for entry in answer["labels"]] == expected


@pytest.mark.parametrize("labels", [LABELS, ("joy",)])
@pytest.mark.parametrize("seed", range(4))
def test_metrics_are_those_of_scikit_learn(labels: tuple[str, ...], seed: int) -> None:
    logits, gold = random_rows(150, len(labels), seed)
    rows, golds = encoded(range(150)), names(gold, labels)
    task = make(labels, thresholds={"joy": 0.3})
    metrics = task.metrics(logits, rows, golds)
    given = np.stack(logits) >= [logit(0.3) if label == "joy" else 0 for label in labels]
    columns = [f1_score(gold[:, one], given[:, one], zero_division=0.0) for one in range(len(labels))]
    assert metrics["macro_f1"] == pytest.approx(np.mean(columns))
    assert metrics["micro_f1"] == pytest.approx(f1_score(gold.ravel(), given.ravel()))
    if len(labels) > 1:
        assert metrics["macro_f1"] == pytest.approx(f1_score(gold, given, average="macro", zero_division=0.0))
        assert metrics["map"] == pytest.approx(average_precision_score(gold, np.stack(logits), average="macro"))
    assert metrics["subset_accuracy"] == pytest.approx((gold == given).all(axis=1).mean())
    statistics = task.statistics(logits, rows, golds)
    assert task.score(statistics) == metrics[task.primary_metric]
    columns = [f1_score(gold[:40, one], given[:40, one], zero_division=0.0) for one in range(len(labels))]
    assert task.score(statistics[:40]) == pytest.approx(np.mean(columns))


def test_metrics_of_rows_without_any_label_are_numbers() -> None:
    metrics = make().metrics(outputs([-1, -1, -1], [-2, -2, -2]), encoded([0, 1]), [(), ()])
    assert metrics == {"macro_f1": 0.0, "micro_f1": 0.0, "map": 0.0, "subset_accuracy": 1.0}


def test_label_that_never_occurs_counts_for_f1_and_not_for_precision() -> None:
    metrics = make().metrics(outputs([-1, 1, -1], [-2, 2, 2]), encoded([0, 1]), [("joy",), ("joy", "love")])
    assert metrics == {"macro_f1": pytest.approx(2 / 3), "micro_f1": 1.0, "map": 1.0, "subset_accuracy": 1.0}


rows_of_scores = st.integers(1, 12).flatmap(
    lambda rows: st.tuples(arrays(np.float64, rows, elements=st.integers(-4, 4).map(float)), arrays(np.bool_, rows))
)


@settings(max_examples=100, deadline=None)
@given(rows_of_scores)
def test_best_cut_beats_every_other_and_is_the_nearest_to_even(rows: tuple[np.ndarray, np.ndarray]) -> None:
    scores, right = rows
    cut, same = best_cuts(np.stack([scores, scores], axis=1), np.stack([right, right], axis=1))
    assert cut == same
    quality = {other: f1_score(right, scores >= other, zero_division=0.0) for other in midpoints(scores)}
    if right.any():
        best = max(quality.values())
        assert quality[cut] == best
        assert abs(cut) == min(abs(other) for other, one in quality.items() if one == best)
    else:
        assert cut == 0


def midpoints(scores: np.ndarray) -> list[float]:
    distinct = sorted(set(scores.tolist()))
    return [distinct[0] - 0.5, *((low + high) / 2 for low, high in pairwise(distinct))]


def test_cuts_of_few_positive_rows_are_drawn_to_the_usual_one() -> None:
    logits, gold = np.stack(random_rows(500, 4)[0]), random_rows(500, 4)[1]
    gold[:, 3] = False
    own, positives = best_cuts(logits, gold)[:3], gold.sum(axis=0)[:3]
    usual = np.median(own)
    drawn = cautious_cuts(logits, gold)
    assert (drawn[:3] - usual).tolist() == pytest.approx((own - usual) * positives / (positives + 20))
    assert np.ptp(own) > 0.1
    assert drawn[3] == pytest.approx(usual)


def test_cuts_without_any_positive_row_stay_even() -> None:
    assert cautious_cuts(np.ones((5, 2)), np.zeros((5, 2), dtype=bool)).tolist() == [0.0, 0.0]


def test_cut_of_a_single_label_is_its_best() -> None:
    logits, gold = random_rows(30, 1)
    assert cautious_cuts(np.stack(logits), gold).tolist() == pytest.approx(best_cuts(np.stack(logits), gold).tolist())


def test_drawn_cuts_do_better_on_fresh_rows() -> None:
    """Over small samples of rows, by the macro-F1 on many others."""
    fresh, fresh_gold = random_rows(4000, 20, seed=100)
    fresh_logits = np.stack(fresh)

    def quality(cuts: np.ndarray) -> float:
        given = fresh_logits >= cuts
        hits, marks = (given & fresh_gold).sum(axis=0), given.sum(axis=0) + fresh_gold.sum(axis=0)
        return float((2 * hits / marks).mean())

    samples = [(np.stack(logits), gold) for logits, gold in (random_rows(200, 20, seed) for seed in range(20))]
    drawn, best, even = (
        np.mean([quality(cuts(*one)) for one in samples])
        for cuts in (cautious_cuts, best_cuts, lambda *_: np.zeros(20))
    )
    assert drawn > best + 0.01
    assert drawn > even + 0.01


def test_tuned_thresholds_are_kept_in_the_specification() -> None:
    certain, gold = random_rows(400, 3)
    logits = [row - np.float32(2) for row in certain]
    rows, golds = encoded(range(400)), names(gold)
    before = make()
    after = before.tuned(logits, rows, golds)
    assert set(after.spec.options["thresholds"]) == set(LABELS)
    assert after.metrics(logits, rows, golds)["macro_f1"] > before.metrics(logits, rows, golds)["macro_f1"] + 0.1
    again = load_task(TaskSpec.model_validate_json(after.spec.model_dump_json()))
    assert again.same_answer(logits, logits, rows).all()
    assert again.decode(logits, rows, DEFAULTS) == after.decode(logits, rows, DEFAULTS)
    assert before.spec.options == {}
    assert json.loads(json.dumps(after.spec.options)) == after.spec.options


def test_given_thresholds_are_not_tuned() -> None:
    logits, gold = random_rows(400, 3)
    task = make(thresholds={"joy": 0.77}, truncation="windows").tuned(logits, encoded(range(400)), names(gold))
    assert task.spec.options["thresholds"]["joy"] == 0.77
    assert task.spec.options["thresholds"]["fear"] != 0.5
    assert task.spec.options["truncation"] == "windows"


def test_tuning_and_resampling_thousands_of_rows_are_quick() -> None:
    labels = tuple(f"{one:02}" for one in range(28))
    logits, gold = random_rows(5400, 28)
    rows, golds = encoded(range(5400)), names(gold, labels)
    task = make(labels)
    begin = time.process_time()
    task.tuned(logits, rows, golds)
    assert time.process_time() - begin < 1
    statistics = task.statistics(logits, rows, golds)
    sample = np.random.default_rng(0).integers(0, 5400, 5400)
    begin = time.process_time()
    for _ in range(100):
        task.score(statistics[sample])
    assert time.process_time() - begin < 2


def test_same_answer_compares_label_sets() -> None:
    left, right = outputs([1, -1, 1], [1, -1, 1], [-1, -1, -1]), outputs([3, -2, 0.1], [1, 1, 1], [-1, -1, -2])
    assert make().same_answer(left, right, encoded([0, 1, 2])).tolist() == [True, False, True]


def test_targets_mark_the_labels_of_each_window() -> None:
    task = make()
    targets = task.targets(encoded([0, 1, 1]), [(), ("fear", "love")])
    batch = task.collate_targets(targets, length=8)
    assert batch["labels"].tolist() == [[0, 0, 0], [1, 0, 1], [1, 0, 1]]
    assert batch["labels"].dtype == np.float32


def test_row_may_carry_no_label() -> None:
    options = MultiLabelOptions(label_separator="|")
    row = MultiLabel.read_row({"text": "a", "labels": "love|joy"}, options)
    assert (row.input, row.gold) == (TextInput("a"), ("joy", "love"))
    assert MultiLabel.read_row({"text": "a", "labels": None}, options).gold == ()
    assert MultiLabel.names(row.gold) == ("joy", "love")


def test_specification_holds_sorted_labels_and_what_was_chosen() -> None:
    options = MultiLabelOptions(thresholds={"joy": 0.4})
    golds = [("love",), (), ("joy", "love")]
    spec = MultiLabel.make_spec(golds, labels=None, max_length=8, options=options)
    assert (spec.labels, spec.options) == (("joy", "love"), {"thresholds": {"joy": 0.4}})
    assert MultiLabel.make_spec([("a",)], labels=None, max_length=8, options=MultiLabelOptions()).options == {}
    with pytest.raises(DataError, match="no row carries a label"):
        MultiLabel.make_spec([(), ()], labels=None, max_length=8, options=options)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ((), {}, "needs at least one label"),
        (("a", "a"), {}, "stands twice"),
        (("a",), {"thresholds": {"b": 0.5}}, "thresholds: unknown label 'b'"),
        (("a",), {"thresholds": {"a": 1.5}}, r"options\.thresholds\.a: Input should be less"),
        (("a",), {"label_separator": ""}, r"options\.label_separator"),
    ],
)
def test_specification_is_checked(labels: tuple[str, ...], options: dict[str, object], message: str) -> None:
    with pytest.raises(ParitybitError, match=message):
        load_task(TaskSpec(task="multi_label", labels=labels, max_length=8, options=options))


def test_unknown_label_is_told() -> None:
    make().check(())
    with pytest.raises(DataError, match="unknown label 'hope'"):
        make().check(("fear", "hope"))


def test_silence_is_a_concern() -> None:
    two = encoded([0, 1])
    assert make().concerns(outputs([-1, -1, -1], [-2, -1, -1]), two) == [
        "the model collapsed: no label is ever over its threshold"
    ]
    assert make().concerns(outputs([-1, 1, -1], [1, 1, -1]), two) == ["1 of 3 labels are never predicted: love"]
    assert make().concerns(outputs([-1, 1, 1], [1, 1, -1]), two) == []


@pytest.mark.parametrize("parameters", [{"threshold": -0.1}, {"threshold": 1.1}, {"top_k": 0}, {"topk": 1}])
def test_parameters_are_checked(parameters: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(parameters))):
        MultiLabelParameters.model_validate(parameters)
