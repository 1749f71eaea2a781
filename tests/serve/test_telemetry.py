"""Which answers are counted, and under which label."""

from pathlib import Path

import pytest

from bundle import Predictor
from serve.telemetry import Metrics
from tasks import TaskSpec
from tests.bundles import TINY, write_bundle


def counted(metrics: Metrics) -> dict[str, float]:
    (family,) = metrics.labels.collect()
    return {sample.labels["label"]: sample.value for sample in family.samples if sample.name.endswith("_total")}


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        ("single_label", lambda answer: [answer["labels"][0]["label"]]),
        ("multi_label", lambda answer: [entry["label"] for entry in answer["labels"]]),
        ("token_classification", lambda answer: [entity["label"] for entity in answer["entities"]]),
        ("regression", lambda _: []),
        ("question_answering", lambda _: []),
    ],
)
def test_real_answers_are_counted_by_the_labels_that_they_decide_for(task: str, labels: object, tmp_path: Path) -> None:
    write_bundle(tmp_path, task=task)
    predictor = Predictor.load(tmp_path, threads=1)
    metrics = Metrics(predictor.manifest.task)
    answers = predictor(TINY[task].golden)
    metrics.answered(answers)
    said = [label for answer in answers for label in labels(answer)]  # type: ignore[operator]
    assert counted(metrics) == {label: said.count(label) for label in said}
    assert bool(said) == (task not in {"regression", "question_answering"})


def test_a_task_of_very_many_labels_is_not_counted() -> None:
    answers = [{"labels": [{"label": "7", "score": 1.0}], "truncated": False}]
    for number, expected in [(100, {"7": 1.0}), (101, {})]:
        spec = TaskSpec(task="single_label", labels=tuple(map(str, range(number))), max_length=8)
        metrics = Metrics(spec)
        metrics.answered(answers)
        assert counted(metrics) == expected
