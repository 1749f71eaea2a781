import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from finetune.recipe import Recipe, load_recipe
from finetune.training import FinetuneResult, finetune
from tasks.errors import ParitybitError, RecipeError
from tests.toy import write_toy_data, write_toy_recipe

ROOT = Path(__file__).parents[2]
SHORT = ["train.epochs=1", "train.batch_size=12"]
# three evaluations in each epoch, so that a signal falls into the middle of one
INTERRUPTED = ("train.epochs=6", "train.evaluations_per_epoch=3", "train.early_stopping_patience=0")
# whatever keeps a state of its own, or draws random numbers
TECHNIQUES = (
    "regularize.average=ema",
    "regularize.pull_to_pretrained=0.1",
    "regularize.mixout=0.1",
    "regularize.adversarial_epsilon=0.5",
    "regularize.adversarial_steps=2",
    "regularize.r_drop=1.0",
    "regularize.neftune_alpha=5.0",
    "train.gradual_unfreezing=true",
    "train.micro_batch_size=3",
    "train.dropout=0.1",
)

RUN = """
import sys
from pathlib import Path
from finetune.recipe import load_recipe
from finetune.training import finetune
from tasks.errors import ParitybitError
recipe, output, *overrides = sys.argv[1:]
try:
    finetune(load_recipe(Path(recipe), overrides), Path(output), report=lambda line: print(line, flush=True))
except ParitybitError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    return write_toy_recipe(write_toy_data(tmp_path_factory.mktemp("data")), tiny_base)


@pytest.fixture(scope="module")
def run(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., FinetuneResult]:
    """Trains one short epoch, with overrides, into a directory of its own unless one is given."""

    def train(*overrides: str, output: Path | None = None, **more: Any) -> FinetuneResult:
        target = output or tmp_path_factory.mktemp("run") / "checkpoint"
        return finetune(load_recipe(recipe_file, [*SHORT, *overrides]), target, **more)

    return train


@pytest.fixture(scope="module")
def short(run: Callable[..., FinetuneResult]) -> FinetuneResult:
    return run()


def read(result: FinetuneResult, name: str) -> Any:
    return json.loads((result.checkpoint / name).read_text())


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "model.safetensors")


def same_weights(left: Path, right: Path) -> bool:
    a, b = weights(left), weights(right)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_contract_is_written(tiny_checkpoint: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    names = {path.name for path in tiny_checkpoint.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} < names
    assert {"run.json", "metrics.json", "task.json"} < names
    assert not [path for path in tiny_checkpoint.parent.iterdir() if path.name.startswith(".")]
    assert json.loads((tiny_checkpoint / "task.json").read_text()) == {
        "schema_version": 1,
        "task": "single_label",
        "max_length": 48,
        "options": {"temperature": pytest.approx(1.0, abs=4.0)},
    }
    model = AutoModelForSequenceClassification.from_pretrained(tiny_checkpoint)
    assert model.config.id2label == {0: "animal", 1: "food", 2: "vehicle"}
    assert model.config.label2id == {"animal": 0, "food": 1, "vehicle": 2}


def test_the_record_holds_what_a_later_reader_needs(tiny_checkpoint: Path) -> None:
    record = json.loads((tiny_checkpoint / "run.json").read_text())
    recipe = Recipe.model_validate(record["recipe"])
    assert recipe == load_recipe(tiny_checkpoint.parent / "data" / "toy.toml")
    assert record["seed"] == 7
    assert record["data_report"]["splits"]["train"]["rows"] == 60
    assert record["versions"]["torch"] == torch.__version__
    assert {"cpu", "threads", "instruction_set", "device"} == record["hardware"].keys()
    assert record["timings"]["training_seconds"] > 0
    assert all(re.fullmatch("[0-9a-f]{64}", record[key]) for key in ("inputs_digest", "data_fingerprint"))


def test_it_learns_and_keeps_the_best(tiny_checkpoint: Path) -> None:
    metrics = json.loads((tiny_checkpoint / "metrics.json").read_text())
    history = json.loads((tiny_checkpoint / "run.json").read_text())["training"]["history"]
    assert metrics["primary_metric"] == "accuracy"
    assert metrics["test"]["accuracy"] > 0.6
    evaluated = [entry["eval_accuracy"] for entry in history if "eval_accuracy" in entry]
    # measured again, by the published weights
    assert metrics["validation"]["accuracy"] == max(evaluated)


def test_unchanged_inputs_are_not_trained_again(run: Callable[..., FinetuneResult], tmp_path: Path) -> None:
    output = tmp_path / "out" / "checkpoint"
    first = run(output=output)
    stamp = (output / "model.safetensors").stat().st_mtime_ns
    lines: list[str] = []
    second = run(output=output, report=lines.append)
    assert (first.reused, second.reused) == (False, True)
    assert (output / "model.safetensors").stat().st_mtime_ns == stamp
    assert second.metrics == first.metrics
    assert lines == [], "nothing to tell: nothing was done"
    # the export section changes nothing that is trained, but export reads it from the record
    third = run("export.golden_rows=5", output=output)
    assert third.reused
    assert read(third, "run.json")["recipe"]["export"]["golden_rows"] == 5
    assert not run("train.weight_decay=0.5", output=output).reused
    assert not run("train.weight_decay=0.5", output=output, force=True).reused
    assert [path.name for path in output.parent.iterdir()] == ["checkpoint"]


def test_changed_data_is_trained_again(tmp_path: Path, tiny_base: Path) -> None:
    path = write_toy_recipe(write_toy_data(tmp_path / "data"), tiny_base)
    output = tmp_path / "checkpoint"
    first = finetune(load_recipe(path, SHORT), output)
    write_toy_data(tmp_path / "data", train=63)
    second = finetune(load_recipe(path, SHORT), output)
    assert not second.reused
    assert not list(tmp_path.glob(".*"))
    assert read(second, "run.json")["data_report"]["splits"]["train"]["rows"] == 63
    assert first.checkpoint == second.checkpoint


def test_moved_data_is_not_trained_again(tmp_path: Path, tiny_base: Path) -> None:
    data = write_toy_data(tmp_path / "data")
    output = tmp_path / "checkpoint"
    finetune(load_recipe(write_toy_recipe(data, tiny_base), SHORT), output)
    moved = data.rename(tmp_path / "moved")
    again = finetune(load_recipe(moved / "toy.toml", SHORT), output)
    assert again.reused
    # from there export reads its rows
    assert read(again, "run.json")["recipe"]["data"]["train"] == str(moved / "train.jsonl")


def test_the_same_seed_gives_the_same_weights(run: Callable[..., FinetuneResult], short: FinetuneResult) -> None:
    assert same_weights(run().checkpoint, short.checkpoint)
    assert not same_weights(run("seed=8").checkpoint, short.checkpoint)


def test_somebody_elses_directory_is_refused_before_training(
    run: Callable[..., FinetuneResult], tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ParitybitError, match=r"exists and holds no task\.json"):
        run(output=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_problems_with_the_base_model(run: Callable[..., FinetuneResult], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such directory"):
        run(f"base_model={tmp_path}/none")
    with pytest.raises(RecipeError, match="max_length: found 200; expected at most 128"):
        run("max_length=200")


def test_two_runs_do_not_share_an_output(run: Callable[..., FinetuneResult], tmp_path: Path) -> None:
    import fcntl

    work = tmp_path / ".checkpoint.training"
    work.mkdir()
    with (work / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ParitybitError, match="another fine-tuning is at work"):
            run(output=tmp_path / "checkpoint")


def test_divergence_is_an_error_and_the_old_checkpoint_stays(
    run: Callable[..., FinetuneResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import BertForSequenceClassification

    output = tmp_path / "checkpoint"
    run(output=output)
    before = weights(output)
    forward = BertForSequenceClassification.forward

    def diverging(self: Any, **batch: Any) -> Any:
        result = forward(self, **batch)
        if self.training:
            result.logits = result.logits * float("nan")
        return result

    monkeypatch.setattr(BertForSequenceClassification, "forward", diverging)
    with pytest.raises(ParitybitError, match=r"the loss is nan at step 1, on training rows (\d+, ){8}…; lower train"):
        run("train.learning_rate=0.9", output=output)
    assert all(torch.equal(before[name], now) for name, now in weights(output).items())


@pytest.mark.parametrize("most", [3, 0])
def test_rows_that_do_not_fit_into_memory_go_in_parts(
    most: int, run: Callable[..., FinetuneResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import BertForSequenceClassification

    forward = BertForSequenceClassification.forward

    def greedy(self: Any, **batch: Any) -> Any:
        if self.training and len(batch["input_ids"]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(self, **batch)

    monkeypatch.setattr(BertForSequenceClassification, "forward", greedy)
    lines: list[str] = []
    if most == 0:
        with pytest.raises(ParitybitError, match=r"out of memory: 1 rows of up to \d+ tokens do not fit .*; lower"):
            run(report=lines.append)
        return
    result = run(report=lines.append)
    told = [line for line in lines if "do not fit" in line]
    assert [line.rpartition(" ")[2] for line in told] == ["6", "3"]
    assert read(result, "run.json")["plan"]["micro_batch_size"] == 3
    monkeypatch.undo()
    assert same_weights(result.checkpoint, run("train.micro_batch_size=3").checkpoint)


def _evaluations(record: dict[str, Any]) -> int:
    return sum("eval_accuracy" in entry for entry in record["training"]["history"])


def test_frozen_embeddings_stay_as_they_were(run: Callable[..., FinetuneResult], tiny_base: Path) -> None:
    frozen = weights(run("train.freeze_embeddings=true").checkpoint)
    base = load_file(tiny_base / "model.safetensors")
    names = [name for name in base if name.startswith("embeddings.")]
    assert names
    assert all(torch.equal(base[name], frozen[f"bert.{name}"]) for name in names)


def test_patience_0_never_stops(run: Callable[..., FinetuneResult]) -> None:
    patient = run("train.epochs=5", "train.learning_rate=1e-12", "train.early_stopping_patience=0")
    assert _evaluations(read(patient, "run.json")) == 5


@pytest.mark.parametrize("most", [50_000, 150_000], ids=["weights", "optimizer"])
def test_a_full_disk_is_one_line_and_the_old_checkpoint_stays(
    most: int, recipe_file: Path, run: Callable[..., FinetuneResult], tmp_path: Path
) -> None:
    output = tmp_path / "checkpoint"
    run(output=output)
    before = weights(output)
    size = (output / "model.safetensors").stat().st_size
    assert 50_000 < size < 150_000 < 2 * size, "Adam keeps two numbers for each weight"
    limit = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({most}, {most}))\n"
    command = [sys.executable, "-c", limit + RUN, str(recipe_file), str(output), "train.epochs=2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith(f"{output}: the checkpoint cannot be written: ")
    assert "Traceback" not in done.stderr
    assert all(torch.equal(before[name], now) for name, now in weights(output).items())


def start(recipe: Path, output: Path, *overrides: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(recipe), str(output), *overrides],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("number", "overrides"),
    [
        (signal.SIGINT, INTERRUPTED),
        pytest.param(signal.SIGTERM, (*INTERRUPTED, *TECHNIQUES), marks=pytest.mark.real, id="with-techniques"),
    ],
)
def test_a_signal_in_training_keeps_progress_and_the_old_checkpoint(
    recipe_file: Path,
    run: Callable[..., FinetuneResult],
    tmp_path: Path,
    number: signal.Signals,
    overrides: tuple[str, ...],
) -> None:
    output = tmp_path / "out" / "checkpoint"
    run(output=output)
    before = weights(output)
    process = start(recipe_file, output, *overrides)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 2."):
            break
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    message = re.search(rf"stopped by {number.name} at step (\d+) of 60; run the same command again", errors)
    assert message, errors
    assert "Traceback" not in errors
    assert all(torch.equal(before[name], now) for name, now in weights(output).items())

    started = time.monotonic()
    resumed = finetune(load_recipe(recipe_file, overrides), output)
    record = read(resumed, "run.json")["training"]
    assert record["resumed_at"] == int(message[1]) > 20
    assert record["steps"] == 60
    assert time.monotonic() - started < 60
    assert [path.name for path in output.parent.iterdir()] == ["checkpoint"]
    # not a row twice, not a row left out, not a random number lost: as if it had never been stopped
    never_stopped = finetune(load_recipe(recipe_file, overrides), tmp_path / "whole" / "checkpoint")
    assert same_weights(never_stopped.checkpoint, resumed.checkpoint)


def test_another_recipe_does_not_resume(recipe_file: Path, run: Callable[..., FinetuneResult], tmp_path: Path) -> None:
    output = tmp_path / "checkpoint"
    left = tmp_path / ".checkpoint.training" / ("0" * 16) / "checkpoint-3"
    left.mkdir(parents=True)
    (left / "trainer_state.json").write_text("{}")
    assert read(run(output=output), "run.json")["training"]["resumed_at"] == 0
    assert not left.exists()


def test_what_the_task_is_concerned_about_is_told(run: Callable[..., FinetuneResult]) -> None:
    lines: list[str] = []
    # a rate that learns nothing: the random head's favourite wins
    run("train.learning_rate=1e-12", report=lines.append)
    assert any(line.startswith("warning: test: ") for line in lines)
