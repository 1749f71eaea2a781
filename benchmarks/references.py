"""`paritybit finetune` beside the example scripts of transformers, seed by seed on the same rows."""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import machine_facts
from benchmarks.rows import thinned_data
from benchmarks.stages import ROOT, data_overrides, paritybit, run, set_options
from finetune.recipe import load_recipe
from finetune.record import hardware

__all__ = ["REFERENCES", "SHARED", "Comparison", "Reference", "reference_rows", "side_by_side"]

SHARED = {"epochs": 2, "batch_size": 16, "learning_rate": 1e-4}
"""What both sides are given where nothing else is said."""


@dataclass(frozen=True, slots=True)
class Reference:
    """How a script of the transformers examples is asked for the same training as a recipe.

    Attributes:
        script: its file name.
        arguments: beside model, data, seed and the shared settings.
        metric: its name in `all_results.json`, and what it must be divided by to be ours.
        ours: our name of it; the task's primary metric where empty.
    """

    script: str
    arguments: tuple[str, ...]
    metric: tuple[str, float]
    ours: str = ""


_SQUAD = ("--max_seq_length", "384", "--doc_stride", "128", "--pad_to_max_length", "False")

REFERENCES = {
    "banking77": Reference(
        "run_classification.py",
        (
            *("--text_column_names", "text", "--label_column_name", "label", "--metric_name", "accuracy"),
            *("--max_seq_length", "128", "--pad_to_max_length", "False"),
        ),
        ("eval_accuracy", 1),
    ),
    "snli": Reference("run_glue.py", ("--max_seq_length", "128"), ("eval_accuracy", 1)),
    "stsb": Reference("run_glue.py", ("--max_seq_length", "128"), ("eval_spearman", 1)),
    "clinc150": Reference("run_glue.py", ("--max_seq_length", "64"), ("eval_accuracy", 1)),
    # its cut is 0.5 for every label
    "goemotions": Reference(
        "run_classification.py",
        (
            *("--text_column_names", "text", "--label_column_name", "labels", "--metric_name", "f1"),
            *("--max_seq_length", "64", "--pad_to_max_length", "False"),
        ),
        ("eval_f1", 1),
        ours="micro_f1",
    ),
    "wnut17": Reference("run_ner.py", ("--text_column_name", "tokens", "--label_column_name", "tags"), ("eval_f1", 1)),
    "squad": Reference("run_qa.py", _SQUAD, ("eval_f1", 100)),
}

_SCRIPT_SETTINGS = {
    "warmup_ratio": 0.0,
    "weight_decay": 0.0,
    "adam_epsilon": 1e-8,
    "dropout": 0.1,
    "freeze_embeddings": "false",
}
_ARGUMENTS = {
    "epochs": "--num_train_epochs",
    "batch_size": "--per_device_train_batch_size",
    "learning_rate": "--learning_rate",
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """What both sides are given.

    Attributes:
        data: holds a folder of the recipe's name.
        scripts: holds the reference scripts.
        alike: whether ours trains with the scripts' defaults, not with its own.
        shared: epochs, batch size and learning rate; those that are missing are each side's own.
        rows: of `train` and `test` at most, spread evenly over the file and the labels.
        base_model: in place of the recipe's, where given.
        jobs: trainings at the same time.
    """

    data: Path
    scripts: Path
    alike: bool
    shared: Mapping[str, Any]
    rows: Mapping[str, int] = field(default_factory=dict)
    base_model: str | None = None
    jobs: int = 1


def side_by_side(name: str, seeds: Sequence[int], how: Comparison) -> dict[str, Any]:
    """The test metric of ours and of the reference script, seed by seed."""
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(how.jobs) as pool:
        folder = Path(temporary)
        part = thinned_data(ROOT / "recipes" / f"{name}.toml", how.data, folder / "data", how.rows)
        for side in ("ours", "theirs"):
            for seed in seeds:
                (folder / side / str(seed)).mkdir(parents=True)
        ours = [pool.submit(_ours, name, part, folder / "ours" / str(seed), seed, how) for seed in seeds]
        theirs = [pool.submit(_theirs, name, part, folder / "theirs" / str(seed), seed, how) for seed in seeds]
        pairs = [(one.result(), other.result()) for one, other in zip(ours, theirs, strict=True)]
    return {
        "name": name,
        "script": REFERENCES[name].script,
        "metric": REFERENCES[name].ours or REFERENCES[name].metric[0].removeprefix("eval_"),
        "settings": dict(how.shared),
        "rows": dict(how.rows),
        "runs": [
            {"seed": seed, "ours": ours[0], "theirs": theirs[0], "seconds": [ours[1], theirs[1]]}
            for seed, (ours, theirs) in zip(seeds, pairs, strict=True)
        ],
        "machine": machine_facts() | {"device": hardware()["device"], "jobs": str(how.jobs)},
    }


def _ours(name: str, data: Path, folder: Path, seed: int, how: Comparison) -> tuple[float, float]:
    recipe = load_recipe(ROOT / "recipes" / f"{name}.toml")
    settings = [*data_overrides(name, data), f"seed={seed}"]
    if how.base_model:
        settings.append(f"base_model={how.base_model}")
    source = ROOT / "recipes" / f"{name}.toml"
    if how.alike:
        settings += [f"train.{key}={value}" for key, value in _SCRIPT_SETTINGS.items()]
    else:
        source = _without_training(source, folder / "recipe.toml")
    settings += [f"train.{key}={value}" for key, value in how.shared.items()]
    if recipe.data.validation is None:
        # the script trains on all rows
        settings.append("data.validation_fraction=0.01")
    began = time.perf_counter()
    paritybit("finetune", source, "--output", folder / "checkpoint", *set_options(settings))
    seconds = time.perf_counter() - began
    metrics = json.loads((folder / "checkpoint" / "metrics.json").read_bytes())
    return metrics["test"][REFERENCES[name].ours or metrics["primary_metric"]], round(seconds, 1)


def _without_training(recipe: Path, target: Path) -> Path:
    """The recipe without what it says of training, which leaves our defaults."""
    lines = recipe.read_text(encoding="utf-8").splitlines()
    begin = lines.index("[train]")
    end = next((at for at in range(begin + 1, len(lines)) if lines[at].startswith("[")), len(lines))
    target.write_text("\n".join([*lines[:begin], *lines[end:], ""]), encoding="utf-8")
    return target


def _theirs(name: str, data: Path, folder: Path, seed: int, how: Comparison) -> tuple[float, float]:
    from finetune.base_model import resolve_base_model

    reference, recipe = REFERENCES[name], load_recipe(ROOT / "recipes" / f"{name}.toml", data_overrides(name, data))
    files = {
        split: _as_json(Path(file), folder / f"{split}.json", nested=reference.script == "run_qa.py")
        for split, file in {"train": recipe.data.train, "validation": recipe.data.test}.items()
    }
    launcher = how.scripts / "run.py"
    command = [
        sys.executable,
        *([str(launcher)] if launcher.is_file() else []),
        str(how.scripts / reference.script),
        *("--model_name_or_path", how.base_model or resolve_base_model(recipe.base_model)),
        *("--train_file", str(files["train"]), "--validation_file", str(files["validation"])),
        *("--do_train", "--do_eval", "--report_to", "none", "--save_strategy", "no"),
        *("--output_dir", str(folder / "out"), "--cache_dir", str(folder / "cache"), "--seed", str(seed)),
        *("--per_device_eval_batch_size", "64", "--disable_tqdm", "True"),
        *(part for key, value in how.shared.items() for part in (_ARGUMENTS[key], str(value))),
        *reference.arguments,
    ]
    began = time.perf_counter()
    run(command)
    seconds = time.perf_counter() - began
    key, scale = reference.metric
    return json.loads((folder / "out" / "all_results.json").read_bytes())[key] / scale, round(seconds, 1)


def _as_json(source: Path, target: Path, *, nested: bool) -> Path:
    """The rows in the suffix, and for question answering in the nesting, that the reference scripts expect."""
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").split("\n") if line]
    if nested:
        keys = ("id", "context", "question", "answers")
        target.write_text(json.dumps({"data": [{key: row[key] for key in keys} for row in rows]}), encoding="utf-8")
    else:
        target.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return target


def reference_rows(one: Mapping[str, Any]) -> list[str]:
    """The rows of a comparison in the table, the means last."""
    settings = [str(one["settings"].get(key, "own")) for key in _ARGUMENTS]
    part = "".join(f", {count:,} {split} rows" for split, count in one["rows"].items())
    how = ", ".join(settings) + part
    runs = one["runs"]
    rows = [
        f"| {one['name']} | {one['script']} | {one['metric']} | {how} | {run['seed']} | {run['ours']:.4f} | "
        f"{run['theirs']:.4f} | {run['seconds'][0]:.0f} / {run['seconds'][1]:.0f} |"
        for run in runs
    ]
    means = [statistics.mean(run[side] for run in runs) for side in ("ours", "theirs")]
    spread = [statistics.stdev(run[side] for run in runs) if len(runs) > 1 else 0.0 for side in ("ours", "theirs")]
    cells = [f"**{mean:.4f}** ± {deviation:.4f}" for mean, deviation in zip(means, spread, strict=True)]
    return [*rows, f"| {one['name']} | | | | mean | {cells[0]} | {cells[1]} | |"]
