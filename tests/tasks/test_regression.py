import math
import time
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import pearsonr, rankdata, spearmanr

from tasks import ParitybitError, TaskSpec, TextInput, load_task
from tasks.errors import DataError
from tasks.regression import Regression, RegressionOptions, RegressionParameters, correlation, ranks
from tests.tasks.outputs import encoded, outputs

NO_PARAMETERS = RegressionParameters()


def make(**options: Any) -> Regression:
    return Regression(TaskSpec(task="regression", labels=("score",), max_length=8, options=options))


@pytest.fixture
def task() -> Regression:
    return make(mean=2.5, std=1.5)


def test_answers_have_the_unit_of_the_data(task: Regression) -> None:
    high, low = task.decode(outputs([1.0], [-0.5], [-1.5]), encoded([0, 1, 1], truncated=True), NO_PARAMETERS)
    assert high == {"score": pytest.approx(4.0), "truncated": True}
    assert low["score"] == pytest.approx(1.0), "the mean of its windows"
    assert task.summary(high) == task.gold_summary(4) == "4"
    assert task.gold_summary(3.14159) == "3.142"
    assert task.decode([], encoded([]), NO_PARAMETERS) == []


def test_targets_are_what_decodes_to_the_gold_number(task: Regression) -> None:
    targets = task.targets(encoded([0, 1, 1]), [4.0, 1.0])
    batch = task.collate_targets(targets, length=8)
    assert batch["labels"].tolist() == [1.0, -1.0, -1.0]
    assert batch["labels"].dtype == np.float32
    answers = task.decode(outputs(*batch["labels"][:, None]), encoded([0, 1, 1]), NO_PARAMETERS)
    assert [answer["score"] for answer in answers] == pytest.approx([4.0, 1.0])


@pytest.mark.parametrize("decimals", [0, 1, 7])
def test_metrics_are_those_of_scipy(task: Regression, decimals: int) -> None:
    generator = np.random.default_rng(decimals)
    gold = generator.normal(2.5, 1.5, 120).round(decimals)
    logits = ((gold - 2.5) / 1.5 + generator.normal(size=120)).round(decimals).astype(np.float32)
    rows, golds = encoded(range(120)), gold.tolist()
    metrics = task.metrics(list(logits[:, None]), rows, golds)
    predicted = logits.astype(np.float64) * 1.5 + 2.5
    assert metrics["pearson"] == pytest.approx(pearsonr(predicted, gold).statistic)
    assert metrics["spearman"] == pytest.approx(spearmanr(predicted, gold).statistic)
    assert metrics["mse"] == pytest.approx(((predicted - gold) ** 2).mean())
    assert metrics["mae"] == pytest.approx(np.abs(predicted - gold).mean())
    statistics = task.statistics(list(logits[:, None]), rows, golds)
    assert task.score(statistics) == metrics[task.primary_metric]
    assert task.score(statistics[:30]) == pytest.approx(spearmanr(predicted[:30], gold[:30]).statistic)


def test_constant_predictions_correlate_with_nothing(task: Regression) -> None:
    metrics = task.metrics(outputs([0.1], [0.1], [0.1]), encoded(range(3)), [1.0, 2.0, 3.0])
    assert (metrics["pearson"], metrics["spearman"]) == (0.0, 0.0)
    assert metrics["mae"] > 0


@settings(max_examples=100, deadline=None)
@given(arrays(np.float64, st.integers(1, 30), elements=st.integers(-5, 5).map(lambda one: one / 3)))
def test_ranks_are_those_of_scipy(values: np.ndarray) -> None:
    assert ranks(values).tolist() == rankdata(values).tolist()


@settings(max_examples=100, deadline=None)
@given(arrays(np.float64, (2, 8), elements=st.integers(-1000, 1000).map(float)))
def test_correlation_is_that_of_scipy(pair: np.ndarray) -> None:
    left, right = pair
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy warns of constant input
        expected = pearsonr(left, right).statistic
    assert correlation(left, right) == pytest.approx(0.0 if math.isnan(expected) else expected)


def test_two_thousand_resamples_take_moments(task: Regression) -> None:
    generator = np.random.default_rng(0)
    gold = (generator.random(1400) * 5).round(1)
    logits = (gold / 3 + generator.normal(size=1400)).astype(np.float32)
    statistics = task.statistics(list(logits[:, None]), encoded(range(1400)), gold.tolist())
    samples = generator.integers(0, 1400, (2000, 1400))
    begin = time.process_time()
    scores = [task.score(statistics[sample]) for sample in samples]
    assert time.process_time() - begin < 3
    assert np.mean(scores) == pytest.approx(task.score(statistics), abs=0.01)


def test_same_answer_within_a_fifth_of_the_standard_deviation(task: Regression) -> None:
    left, right = outputs([1.0], [1.0], [1.0]), outputs([1.19], [0.79], [1.0])
    assert task.same_answer(left, right, encoded(range(3))).tolist() == [True, False, True]


def test_row_has_a_number_and_perhaps_a_pair() -> None:
    row = Regression.read_row({"text": "a", "text_pair": "b", "label": "3.8"}, RegressionOptions())
    assert (row.input, row.gold) == (TextInput("a", "b"), 3.8)
    assert Regression.names(row.gold) == ()
    with pytest.raises(DataError, match=r"no number \(found 'four'\)"):
        Regression.read_row({"text": "a", "label": "four"}, RegressionOptions())


def test_scale_is_that_of_the_training_rows() -> None:
    spec = Regression.make_spec([1.0, 2.0, 6.0], labels=None, max_length=8, options=RegressionOptions())
    assert spec.labels == ("score",)
    assert spec.options == {"mean": 3.0, "std": pytest.approx(np.std([1, 2, 6]))}
    assert load_task(spec).targets(encoded([0]), [3.0]) == [0.0]


def test_scale_that_a_recipe_gives_is_kept() -> None:
    given = RegressionOptions.model_validate({"mean": 0, "std": 5, "truncation": "head_tail"})
    spec = Regression.make_spec([1.0, 2.0, 6.0], labels=("likeness",), max_length=8, options=given)
    assert spec.labels == ("likeness",)
    assert spec.options == {"std": 5, "truncation": "head_tail"}
    assert load_task(spec).targets(encoded([0]), [3.0]) == [0.6]


def test_equal_numbers_teach_nothing() -> None:
    with pytest.raises(DataError, match=r"every row says 2\.5; expected different numbers"):
        Regression.make_spec([2.5, 2.5], labels=None, max_length=8, options=RegressionOptions())


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (("a", "b"), {}, "has one output, got"),
        (("a",), {"std": 0}, r"options\.std: Input should be greater than 0"),
        (("a",), {"mean": "much"}, r"options\.mean: Input should be a valid number"),
    ],
)
def test_specification_is_checked(labels: tuple[str, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ParitybitError, match=message):
        load_task(TaskSpec(task="regression", labels=labels, max_length=8, options=options))


def test_equal_predictions_are_a_concern(task: Regression) -> None:
    assert task.concerns(outputs([1.0], [1.01]), encoded([0, 1])) == [
        "the model collapsed: it always predicts about 4.007"
    ]
    assert task.concerns(outputs([1.0], [0.5]), encoded([0, 1])) == []
