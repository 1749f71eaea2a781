"""Every other task through every stage, on a model of two layers and on texts longer than its windows."""

import json
from pathlib import Path
from typing import Any

import pytest

from bundle import Predictor
from export.pipeline import export_bundle
from finetune.recipe import load_recipe, recipe_of_run
from finetune.training import finetune
from tasks import load_task
from tasks.checkpoint import read_task_spec
from tasks.inputs import input_from_json
from tests.toy import LENIENT, TOY_TASKS, toy_rows_of, write_toy_task

pytestmark = pytest.mark.real

LEARNT = {"multi_label": 0.8, "regression": 0.5, "token_classification": 0.6, "question_answering": 0.3}


@pytest.fixture(scope="module", params=TOY_TASKS)
def task(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def checkpoint(task: str, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(task)
    return finetune(load_recipe(write_toy_task(folder, tiny_base, task)), folder / "checkpoint").checkpoint


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, quick_export: None) -> Path:
    recipe = recipe_of_run(checkpoint, [*LENIENT, 'export.variants=["fp32", "int8-static"]'])
    return export_bundle(checkpoint, checkpoint.parent / "bundle", recipe=recipe).bundle


@pytest.fixture(scope="module")
def predictor(bundle: Path) -> Predictor:
    return Predictor.load(bundle)


def rows_of(task: str, predictor: Predictor) -> list[Any]:
    kinds = predictor.task.input_types
    names = {name for kind in kinds for name in kind.__match_args__}
    rows = toy_rows_of(task, 40, 2)
    return [input_from_json({key: value for key, value in row.items() if key in names}, kinds) for row in rows]


def test_it_learns(task: str, checkpoint: Path) -> None:
    metrics = json.loads((checkpoint / "metrics.json").read_text())
    assert metrics["test"][metrics["primary_metric"]] >= LEARNT[task]


def test_what_was_tuned_stands_in_checkpoint_and_manifest(checkpoint: Path, predictor: Predictor) -> None:
    assert read_task_spec(checkpoint) == predictor.manifest.task
    assert load_task(predictor.manifest.task).spec.options == predictor.manifest.task.options


def test_fp32_gives_the_answers_of_pytorch(bundle: Path) -> None:
    certificate = json.loads((bundle / "certificate.json").read_text())
    fp32 = next(one for one in certificate["variants"] if one["name"] == "fp32")
    assert fp32["agreement"] == 1.0
    assert fp32["delta_quantiles"]["p100"] <= 1e-4
    metrics, reference = dict(fp32["metrics"]), dict(certificate["pytorch"])
    if "map" in metrics:
        # some of these short texts are the same: whether their scores are equal or an ulp apart counts in a ranking
        assert metrics.pop("map") == pytest.approx(reference.pop("map"), abs=2e-3)
    assert metrics == pytest.approx(reference, abs=1e-6)
    assert {gate["name"] for gate in fp32["gates"]} >= {"agreement", "max_logit_delta on the edge cases"}


def test_predictor_gives_the_certified_metric(task: str, predictor: Predictor, bundle: Path) -> None:
    """From the rows of the file to the metric, on the published graph."""
    certificate = json.loads((bundle / "certificate.json").read_text())
    published = next(one for one in certificate["variants"] if one["name"] == certificate["published"])
    options = predictor.task.options.model_validate(predictor.manifest.task.options)
    examples = [type(predictor.task).read_row(row, options) for row in toy_rows_of(task, 40, 2)]
    encoded = predictor.task.encode(predictor.tokenizer, [example.input for example in examples])
    outputs = predictor.outputs(encoded.windows)
    golds = [example.gold for example in examples]
    assert predictor.task.metrics(outputs, encoded, golds) == pytest.approx(published["metrics"], abs=1e-6)


def test_answers_do_not_depend_on_the_company(task: str, predictor: Predictor) -> None:
    inputs = rows_of(task, predictor)
    together = predictor(inputs)
    assert together == [predictor([one])[0] for one in inputs]


def test_golden_rows_hold_every_window(predictor: Predictor) -> None:
    report = predictor.replay_golden()
    assert report.passed
    assert report.max_delta == 0.0
