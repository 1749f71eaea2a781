"""A search over a recipe's keys, interrupted, shared and resumed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from finetune.recipe import load_recipe
from finetune.sweep import run_sweep, to_table
from tasks.errors import ParitybitError, RecipeError
from tests.toy import write_toy_data, write_toy_recipe

ROOT = Path(__file__).parents[2]
SWEEP = """
[sweep]
trials = 3

[sweep.ranges]
"train.learning_rate" = { low = 1e-5, high = 1e-2, log = true }
"train.batch_size" = { choices = [6, 12] }
"train.epochs" = { low = 1, high = 2 }
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    path = write_toy_recipe(write_toy_data(tmp_path_factory.mktemp("data")), tiny_base)
    path.write_text(path.read_text() + SWEEP)
    return path


@pytest.mark.real
def test_the_best_of_the_trials_is_kept_and_a_longer_search_goes_on(recipe: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    found = run_sweep(recipe, [], tmp_path, report=lines.append)
    assert found.trials == 3
    values = [float(line.rpartition(" ")[2]) for line in lines if ": validation accuracy " in line]
    assert found.value == pytest.approx(max(values), abs=1e-4)
    assert found.ranking[0] == (found.best, found.value)
    assert found.checkpoint is not None
    metrics = json.loads((found.checkpoint / "metrics.json").read_bytes())
    assert metrics["validation"]["accuracy"] == found.value
    trained = json.loads((found.checkpoint / "run.json").read_bytes())["recipe"]["train"]
    assert {key: trained[key.removeprefix("train.")] for key in found.best} == found.best
    assert 1e-5 <= trained["learning_rate"] <= 1e-2
    assert [one.name for one in (tmp_path / "trials").iterdir()] == [found.checkpoint.parent.name]
    assert json.loads((tmp_path / "sweep.json").read_bytes()) == found.to_json()
    assert len(to_table(found).splitlines()) == 2 + len(found.ranking)

    again = run_sweep(recipe, [], tmp_path, report=pytest.fail)
    assert again.best == found.best
    longer = run_sweep(recipe, ["sweep.trials=4"], tmp_path, report=lines.append)
    assert longer.trials == 4
    study = optuna.load_study(study_name="toy", storage=f"sqlite:///{tmp_path}/sweep.db")
    rates = [trial.params["train.learning_rate"] for trial in study.trials]
    assert len(set(rates)) == 4, "a search that goes on must not draw again what it drew at first"


@pytest.mark.real
def test_an_interrupted_trial_is_gone_on_with(recipe: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    one = recipe.with_name("long.toml")
    one.write_text(recipe.read_text().replace("low = 1, high = 2", "low = 40, high = 60"))
    command = [sys.executable, "-m", "paritybit", "sweep", str(one), "--output", str(tmp_path)]
    command += ["--set", "sweep.trials=1", "--set", "train.early_stopping_patience=0"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        if list(tmp_path.glob("trials/*/.checkpoint.training/*/checkpoint-*/trainer_state.json")):
            break
        try:
            process.wait(timeout=0.1)
        except subprocess.TimeoutExpired:
            continue
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "run the same command again to go on from there" in errors
    assert "Traceback" not in errors
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    best = json.loads(done.stdout)
    record = json.loads((Path(best["checkpoint"]) / "run.json").read_bytes())
    assert record["training"]["resumed_at"] > 0


def test_trials_that_make_no_sense_are_given_up(recipe: Path, tmp_path: Path) -> None:
    bad = recipe.with_name("bad.toml")
    more = '"train.micro_batch_size" = { choices = [5] }'
    bad.write_text(f"{recipe.read_text()}{more}\n")
    lines: list[str] = []
    with pytest.raises(ParitybitError, match="all 3 trials were given up"):
        run_sweep(bad, [], tmp_path, report=lines.append)
    assert sum("expected a divisor of train.batch_size" in line for line in lines) == 3


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"train.epochs"', '"train.epoch"', "sweep.ranges: train.epoch: unknown key"),
        ("high = 1e-2", "high = 2.0", "sweep.ranges: train.learning_rate: found 2.0; expected less than or equal to 1"),
        ("low = 1, high = 2", "low = 2, high = 1", "sweep.ranges.train.epochs: "),
        ("low = 1, high = 2", "low = 1", "expected low and high, or choices"),
        ("low = 1e-5,", "low = 0.0,", "expected log with a low above 0"),
    ],
)
def test_bad_ranges_are_told_before_anything_is_trained(recipe: Path, old: str, new: str, problem: str) -> None:
    bad = recipe.with_name("ranges.toml")
    bad.write_text(recipe.read_text().replace(old, new))
    with pytest.raises(RecipeError) as caught:
        load_recipe(bad)
    assert problem in str(caught.value)


def test_a_recipe_without_a_sweep_and_a_storage_that_is_none(tiny_base: Path, recipe: Path, tmp_path: Path) -> None:
    plain = write_toy_recipe(write_toy_data(tmp_path), tiny_base)
    with pytest.raises(RecipeError, match="sweep: missing"):
        run_sweep(plain, [], tmp_path / "out", report=print)
    with pytest.raises(ParitybitError, match="storage: nonsense cannot be opened"):
        run_sweep(recipe, [], tmp_path / "out", storage="nonsense", report=print)
