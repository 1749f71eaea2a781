"""Training in two processes that torchrun starts, which speak over gloo."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from finetune import processes
from finetune.defaults import Plan
from tasks.errors import RecipeError
from tests.toy import write_toy_data, write_toy_recipe

pytestmark = pytest.mark.real

ROOT = Path(__file__).parents[2]
LAUNCHER = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
# a loss without chance, so that it may be compared; a batch of 12 of 60 rows has no rest
PLAIN = ("train.batch_size=12", "train.epochs=3", "train.evaluations_per_epoch=2", "train.dropout=0")
LONG = (*PLAIN, "train.epochs=20", "train.early_stopping_patience=0")
SYNCHRONOUS = (
    "train.gradual_unfreezing=true",
    "regularize.average=ema",
    "regularize.pull_to_pretrained=0.1",
    "train.micro_batch_size=3",
)
RANDOM = (
    "train.dropout=0.1",
    "regularize.mixout=0.1",
    "regularize.adversarial_epsilon=0.5",
    "regularize.adversarial_steps=2",
    "regularize.r_drop=1.0",
    "regularize.neftune_alpha=5.0",
)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    return write_toy_recipe(write_toy_data(tmp_path_factory.mktemp("data")), tiny_base)


STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
            process.communicate()


def start(recipe: Path, output: Path, overrides: tuple[str, ...], *launcher: str) -> subprocess.Popen[str]:
    changes = [part for one in overrides for part in ("--set", one)]
    command = [*launcher, "-m", "paritybit", "finetune", str(recipe), "--output", str(output), *changes]
    settings = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    STARTED.append(process)
    return process


def together(recipe: Path, output: Path, overrides: tuple[str, ...], *more: str) -> subprocess.Popen[str]:
    return start(recipe, output, overrides, *LAUNCHER, "--rdzv-endpoint", "127.0.0.1:0", *more)


def ended(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    output, errors = process.communicate(timeout=180)
    assert process.returncode == code, errors
    return output, errors


def training(checkpoint: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((checkpoint / "run.json").read_bytes())["training"]
    return found


def losses(checkpoint: Path) -> list[float]:
    return [entry["loss"] for entry in training(checkpoint)["history"] if "loss" in entry]


def metrics(checkpoint: Path) -> Any:
    return json.loads((checkpoint / "metrics.json").read_bytes())


def first_checkpoint(output: Path, process: subprocess.Popen[str]) -> None:
    """Waits for it."""
    while not list(output.parent.glob(f".{output.name}.training/*/checkpoint-*/trainer_state.json")):
        assert process.poll() is None
        time.sleep(0.05)


@pytest.mark.parametrize("techniques", [(), SYNCHRONOUS], ids=["plain", "with-techniques"])
def test_the_losses_are_those_of_one_process(recipe: Path, tmp_path: Path, techniques: tuple[str, ...]) -> None:
    overrides = (*PLAIN, *techniques)
    alone, both = start(recipe, tmp_path / "one", overrides), together(recipe, tmp_path / "two", overrides)
    ended(alone)
    output, errors = ended(both)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)
    assert metrics(tmp_path / "two") == metrics(tmp_path / "one")
    assert [json.loads(line) for line in output.splitlines()] == [metrics(tmp_path / "two")], "said once"
    assert errors.count("epoch 3.00 of 3") == 1


def test_what_draws_random_numbers_trains_too(recipe: Path, tmp_path: Path) -> None:
    ended(together(recipe, tmp_path / "two", (*PLAIN, *RANDOM, "train.epochs=8")))
    first, *_, last = losses(tmp_path / "two")
    assert last < first


def test_a_killed_process_is_replaced(recipe: Path, tmp_path: Path) -> None:
    """The launcher starts all of them again, and they go on from the last checkpoint."""
    undisturbed = together(recipe, tmp_path / "whole", LONG)
    process = together(recipe, tmp_path / "killed", LONG, "--max-restarts", "1")
    first_checkpoint(tmp_path / "killed", process)
    psutil.Process(process.pid).children()[-1].kill()
    _, errors = ended(process)
    assert "a restart may fail" not in errors
    ended(undisturbed)
    assert training(tmp_path / "killed")["resumed_at"] > 0
    assert losses(tmp_path / "killed") == pytest.approx(losses(tmp_path / "whole"), abs=1e-4)
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")


def test_a_signal_stops_all_of_them_at_one_step(recipe: Path, tmp_path: Path) -> None:
    process = together(recipe, tmp_path / "stopped", LONG)
    first_checkpoint(tmp_path / "stopped", process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "stopped by SIGTERM at step" in errors
    ended(together(recipe, tmp_path / "stopped", LONG))
    assert training(tmp_path / "stopped")["resumed_at"] > 0


def test_every_process_has_an_equal_share_of_a_batch() -> None:
    def shares(micro: int, accumulated: int, count: int) -> tuple[int, int]:
        plan = Plan(1e-4, 1, 10, 10, micro, accumulated).shared_by(count)
        assert plan.micro_batch_size * plan.accumulated * count == micro * accumulated
        assert plan.micro_batch_size <= micro
        return plan.micro_batch_size, plan.accumulated

    assert shares(32, 1, 1) == (32, 1)
    assert shares(32, 1, 2) == (16, 1)
    assert shares(8, 4, 2) == (8, 2)
    assert shares(12, 1, 4) == (3, 1)
    with pytest.raises(RecipeError, match=r"train\.batch_size: found 16; expected a multiple of the 3 processes"):
        shares(16, 1, 3)


@pytest.mark.parametrize(
    ("restarts", "shared", "told"), [("3", "True", True), ("0", "True", False), ("3", "False", False)]
)
def test_a_launcher_whose_restarts_would_fail_is_warned_of(
    restarts: str, shared: str, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert processes.restart_hazard() is None, "no launcher"
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", restarts)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", shared)
    assert (processes.restart_hazard() is not None) == told


def test_one_process_waits_for_nobody() -> None:
    assert processes.is_first()
    assert processes.count() == 1
    processes.wait()
    with processes.first_before_others():
        assert processes.largest(3) == 3
    assert processes.said_by_first("x") == "x"
