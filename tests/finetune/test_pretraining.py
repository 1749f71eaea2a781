"""Masked language modelling before the labels are learnt."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from finetune.base_model import open_base_model
from finetune.data import load_data
from finetune.defaults import make_plan
from finetune.pretraining import pretrain
from finetune.recipe import Recipe, load_recipe
from finetune.training import finetune
from tasks import load_task
from tasks.errors import RecipeError
from tests.toy import write_toy_data, write_toy_recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    return write_toy_recipe(write_toy_data(tmp_path_factory.mktemp("data")), tiny_base)


def pretrained(recipe: Recipe, work: Path) -> tuple[Path, list[str]]:
    base = open_base_model(recipe.base_model, recipe.max_length)
    data = load_data(recipe)
    windows = load_task(data.spec).encode(base.tokenizer, data.train.inputs).windows
    lines: list[str] = []
    place = pretrain(
        recipe,
        make_plan(recipe.train, windows=len(windows), hidden_size=base.config.hidden_size),
        location=base.location,
        tokenizer=base.hf_tokenizer,
        windows=windows,
        work=work,
        report=lines.append,
    )
    return Path(place), lines


def loss_of(line: str) -> float:
    found = re.fullmatch(r"pretraining: \d+ steps, loss ([\d.]+)", line)
    assert found is not None
    return float(found[1])


def test_the_encoder_learns_its_texts_and_the_pooler_stays(recipe_file: Path, tiny_base: Path, tmp_path: Path) -> None:
    rate = "pretrain.learning_rate=1e-2"
    short, few = pretrained(load_recipe(recipe_file, ["pretrain.epochs=1", rate]), tmp_path / "short")
    _, many = pretrained(load_recipe(recipe_file, ["pretrain.epochs=40", rate]), tmp_path / "long")
    assert loss_of(many[0]) < 0.8 * loss_of(few[0])
    before, after = load_file(tiny_base / "model.safetensors"), load_file(short / "model.safetensors")
    before = {name.removeprefix("bert."): values for name, values in before.items()}
    kept = {name for name, values in after.items() if torch.equal(values, before[name])}
    assert kept == {name for name in after if name.startswith("pooler.")}


def test_a_part_of_a_batch_in_which_nothing_is_masked_counts_nothing(recipe_file: Path, tmp_path: Path) -> None:
    overrides = ["pretrain.epochs=2", "pretrain.masked_share=0.01", "train.micro_batch_size=1"]
    place, lines = pretrained(load_recipe(recipe_file, overrides), tmp_path)
    assert loss_of(lines[0]) > 0
    assert all(values.isfinite().all() for values in load_file(place / "model.safetensors").values())


def test_what_was_pretrained_is_taken_as_it_is(recipe_file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file, ["pretrain.epochs=1"])
    first, _ = pretrained(recipe, tmp_path)
    second, lines = pretrained(recipe, tmp_path)
    assert (first, lines) == (second, [])


def test_a_tokenizer_without_a_mask_is_refused(recipe_file: Path, tmp_path: Path, tiny_base: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.mask_token = None
    recipe = load_recipe(recipe_file, ["pretrain.epochs=1"])
    with pytest.raises(RecipeError, match=r"^pretrain\.epochs: found with a base model whose tokenizer has no mask"):
        pretrain(
            recipe,
            make_plan(recipe.train, windows=1, hidden_size=8),
            location=str(tiny_base),
            tokenizer=tokenizer,
            windows=[],
            work=tmp_path,
            report=print,
        )


def test_a_head_that_the_base_model_brings_is_used(recipe_file: Path, tmp_path: Path, tiny_base: Path) -> None:
    """One that guesses well already has less to lose than one that is drawn anew."""
    config = BertConfig.from_pretrained(tiny_base)
    base = tmp_path / "base"
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(base)
    (base / "tokenizer.json").write_bytes((tiny_base / "tokenizer.json").read_bytes())
    model = BertForMaskedLM(config)
    with torch.no_grad():
        model.cls.predictions.bias.copy_(torch.linspace(-20, 20, config.vocab_size))
    model.save_pretrained(base)
    overrides = ["pretrain.epochs=1", "pretrain.learning_rate=1e-9"]
    _, own = pretrained(load_recipe(recipe_file, [*overrides, f'base_model="{base}"']), tmp_path / "own")
    _, new = pretrained(load_recipe(recipe_file, overrides), tmp_path / "new")
    assert loss_of(own[0]) > loss_of(new[0]) + 2, "this one guesses badly, on purpose"


@pytest.mark.real
def test_a_signal_in_pretraining_keeps_progress(recipe_file: Path, tmp_path: Path) -> None:
    overrides = ["pretrain.epochs=40", "train.epochs=1"]
    command = [sys.executable, "-m", "paritybit", "finetune", str(recipe_file), "--output", str(tmp_path / "stopped")]
    command += [part for one in overrides for part in ("--set", one)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob(".stopped.training/*/pretrained-steps/checkpoint-*/trainer_state.json")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "stopped by SIGTERM in pretraining, at step" in errors
    subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=120, check=True)
    whole = finetune(load_recipe(recipe_file, overrides), tmp_path / "whole").checkpoint
    resumed, undisturbed = (load_file(one / "model.safetensors") for one in (tmp_path / "stopped", whole))
    assert all(torch.equal(values, undisturbed[name]) for name, values in resumed.items())
    assert json.loads((whole / "run.json").read_bytes())["recipe"]["pretrain"]["epochs"] == 40
