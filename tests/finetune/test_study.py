"""A recipe with many seeds, each in a process of its own."""

import json
import os
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from finetune.recipe import Recipe, load_recipe
from finetune.study import Run, Study, Variant, _Job, _read, run_study, to_table
from finetune.study_plot import draw
from finetune.training import finetune
from tasks.errors import ParitybitError
from tests.toy import write_toy_data, write_toy_recipe

ROOT = Path(__file__).parents[2]
SHORT = ("train.epochs=1", "train.batch_size=12")


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    return write_toy_recipe(write_toy_data(tmp_path_factory.mktemp("data")), tiny_base)


@pytest.fixture(scope="module")
def recipes(recipe_file: Path) -> dict[str, Recipe]:
    unmoved = "train.learning_rate=1e-12"
    return {name: load_recipe(recipe_file, [*SHORT, *more]) for name, more in [("recipe", []), (unmoved, [unmoved])]}


@pytest.fixture(scope="module")
def studied(recipes: dict[str, Recipe], tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, list[str]]:
    lines: list[str] = []
    output = tmp_path_factory.mktemp("study")
    return run_study(recipes, [7, 8], output, workers=2, least=0.5, report=lines.append), lines


@pytest.mark.real
def test_each_seed_is_the_training_that_finetune_makes(
    studied: tuple[Study, list[str]], recipes: dict[str, Recipe], tmp_path: Path
) -> None:
    study, lines = studied
    assert [one.name for one in study.variants] == list(recipes)
    assert [run.seed for run in study.variants[0].runs] == [7, 8]
    alone = finetune(recipes["recipe"].model_copy(update={"seed": 8}), tmp_path / "checkpoint").metrics
    run = study.variants[0].runs[1]
    assert run.test == pytest.approx(alone["test"]["accuracy"])
    assert run.validation == pytest.approx(alone["validation"]["accuracy"])
    assert run.curve[-1] == (1.0, pytest.approx(run.validation))
    assert len(lines) == 4


@pytest.mark.real
def test_a_model_that_learnt_nothing_counts_as_failed(studied: tuple[Study, list[str]]) -> None:
    study, lines = studied
    unmoved = study.variants[1]
    assert unmoved.summary()["failed"] == 2
    assert all(run.failure in ("one answer to everything", "accuracy under 0.5") for run in unmoved.runs)
    assert sum(": failed: " in line for line in lines) >= 2


@pytest.mark.real
def test_what_is_written_can_be_drawn_and_read(studied: tuple[Study, list[str]], tmp_path: Path) -> None:
    study, _ = studied
    stored = json.loads((study.directory / "study.json").read_bytes())
    assert stored == json.loads(json.dumps(study.to_json()))
    best = study.best_checkpoint()
    assert best is not None and (best / "task.json").is_file()
    chosen = max(study.variants[0].runs, key=lambda run: run.validation or 0)
    assert best.parent.name == f"seed-{chosen.seed}"
    draw(study, tmp_path / "study.png")
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.real
def test_a_study_goes_on_where_it_was_stopped(recipe_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "paritybit", "study", str(recipe_file), "--seeds", "2", "--output", str(tmp_path)]
    command += ["--set", "train.epochs=30", "--set", "train.early_stopping_patience=0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    # the first seed is done, the second at work
    assert process.stderr.readline().startswith("recipe: seed 7: validation ")
    first = tmp_path / "variant-0" / "seed-7" / "checkpoint" / "model.safetensors"
    stamp = first.stat().st_mtime_ns
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert errors.strip() == "paritybit: stopped by SIGTERM; run the same command again to go on from there"
    assert not (tmp_path / "study.json").exists()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert first.stat().st_mtime_ns == stamp
    assert json.loads(done.stdout)["study"] == str(tmp_path)
    assert len(json.loads((tmp_path / "study.json").read_bytes())["variants"][0]["runs"]) == 2


@pytest.mark.real
def test_what_ends_a_training_ends_the_study(recipes: dict[str, Recipe], tmp_path: Path) -> None:
    recipe = recipes["recipe"]
    missing = recipe.model_copy(update={"data": recipe.data.model_copy(update={"train": str(tmp_path / "none.jsonl")})})
    with pytest.raises(ParitybitError, match=r"recipe: seed 7: .*none\.jsonl") as caught:
        run_study({"recipe": missing}, [7, 8], tmp_path / "study", report=lambda line: None)
    assert caught.value.exit_code == 3


def run_of(seed: int, test: float | None, failure: str | None = None) -> Run:
    return Run(seed, failure, test, test, None if test is None else 2.0, () if test is None else ((1.0, test),))


def study_of(*values: float) -> Study:
    runs: list[Any] = [run_of(seed, value) for seed, value in enumerate(values)]
    runs.append(run_of(len(runs), 0.5, "one answer to everything"))
    runs.append(run_of(len(runs), None, "training diverged: the loss is nan at step 4"))
    return Study("toy", "accuracy", None, (Variant("recipe", tuple(runs)),), Path("study"))


def test_figures_are_of_all_runs_that_have_any() -> None:
    found = study_of(0.8, 0.9).variants[0].summary()
    values = [0.8, 0.9, 0.5]
    assert (found["runs"], found["failed"]) == (4, 2)
    assert found["mean"] == pytest.approx(statistics.fmean(values))
    assert found["std"] == pytest.approx(statistics.stdev(values))
    assert (found["median"], found["min"], found["max"]) == (0.8, 0.5, 0.9)


def test_the_table_has_a_row_for_each_variant() -> None:
    lines = to_table(study_of(0.8, 0.9)).splitlines()
    assert lines[0] == "|  | runs | failed | mean accuracy | std | median | min | max | seconds |"
    assert lines[2] == "| recipe | 4 | 2 | 0.7333 | 0.2082 | 0.8000 | 0.5000 | 0.9000 | 2 |"


def test_runs_without_a_figure_are_drawn_too(tmp_path: Path) -> None:
    draw(study_of(0.8), tmp_path / "study.png")
    assert (tmp_path / "study.png").is_file()
    nothing = Study("toy", "accuracy", None, (Variant("recipe", (run_of(1, None, "diverged"),)),), Path("study"))
    draw(nothing, tmp_path / "nothing.png")
    assert (tmp_path / "nothing.png").is_file()
    assert nothing.best_checkpoint() is None
    assert to_table(nothing).splitlines()[2] == "| recipe | 1 | 1 |  |  |  |  |  |  |"


def test_a_run_that_diverged_is_a_result(recipes: dict[str, Recipe], tmp_path: Path) -> None:
    job = _Job("recipe", recipes["recipe"], tmp_path)
    (tmp_path / "error.json").write_text('{"message": "training diverged: the loss is nan at step 4"}')
    assert _read(job, None) == run_of(7, None, "training diverged: the loss is nan at step 4")
