"""Every task on real data, through every stage; and side by side with the field's reference scripts.

python -m benchmarks.tasks stages squad wnut17 --data path/of/the/data
python -m benchmarks.tasks reference wnut17 --data path/of/the/data --scripts path/of/the/examples --seeds 3
python -m benchmarks.tasks reference squad --rows 2000 --test-rows 1000 --data …   # the same part for both
python -m benchmarks.tasks table        # writes benchmarks/TASKS.md from the committed results
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.machine import machine_facts
from benchmarks.rows import test_inputs
from bundle import Predictor
from bundle.manifest import CERTIFICATE_FILE, read_manifest
from bundle.session import Session
from export.parity import batch_deltas
from finetune.recipe import load_recipe
from finetune.record import write_json
from tasks import Tokenizer, load_task
from tasks.errors import ParitybitError

__all__ = ["REFERENCES", "Reference", "main", "side_by_side", "stages", "table"]

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "tasks"
TABLE = ROOT / "benchmarks" / "TASKS.md"


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


REFERENCES = {
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
    "squad": Reference(
        "run_qa.py",
        ("--max_seq_length", "384", "--doc_stride", "128", "--pad_to_max_length", "False"),
        ("eval_f1", 100),
    ),
}
_COMPANY_ROWS = 1000
_SHARED = {"epochs": 2, "batch_size": 16, "learning_rate": 1e-4}


def stages(name: str, data: Path, build: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Fine-tunes, exports and asks a shipped recipe's model, each by its command, and says what came of it."""
    settings = [*_data_overrides(name, data), *overrides]
    checkpoint, bundle = build / "checkpoint", build / "bundle"
    _paritybit("finetune", f"recipes/{name}.toml", "--output", checkpoint, *_set(settings))
    _paritybit("export", checkpoint, "--output", bundle)
    certificate = json.loads((bundle / CERTIFICATE_FILE).read_bytes())
    run = json.loads((checkpoint / "run.json").read_bytes())
    predictor = Predictor.load(bundle)
    golden = predictor.replay_golden()
    by_name = {variant["name"]: variant for variant in certificate["variants"]}
    return {
        "name": name,
        "task": predictor.manifest.task.task,
        "test_rows": certificate["evidence"]["test_rows"],
        "primary_metric": certificate["primary_metric"],
        "training_seconds": run["timings"]["training_seconds"],
        "train": run["recipe"]["train"],
        "overrides": list(overrides),
        "pytorch": certificate["pytorch"],
        "published": certificate["published"],
        "variants": {
            name: {
                "metric": one["metrics"][certificate["primary_metric"]],
                "agreement": one["agreement"],
                "rows": one["rows"],
                "max_logit_delta": one["delta_quantiles"]["p100"],
                "max_batch_delta": one["max_batch_delta"],
                "size": one["size"],
                "verdict": one["verdict"],
            }
            for name, one in by_name.items()
        },
        "golden": {"rows": golden.rows, "passed": golden.passed},
        "company": _company(bundle, checkpoint),
        "machine": machine_facts(),
    }


def _company(bundle: Path, checkpoint: Path) -> dict[str, Any]:
    """Largest |Δlogit| of what is published between a text alone and in company, on 1,000 test rows."""
    manifest = read_manifest(bundle)
    inputs = test_inputs(checkpoint)
    rows = np.unique(np.linspace(0, len(inputs) - 1, _COMPANY_ROWS).round().astype(int))
    tokenizer = Tokenizer(bundle / "tokenizer.json", manifest.task.max_length, manifest.pad_token_id)
    windows = load_task(manifest.task).encode(tokenizer, [inputs[row] for row in rows]).windows
    engine = Session(bundle / manifest.variant.file, manifest.variant.session).run
    deltas = batch_deltas(engine, windows, manifest.pad_token_id)
    return {"rows": len(rows), "windows": len(windows), "max_delta": float(deltas.max())}


def side_by_side(
    name: str, data: Path, scripts: Path, seeds: Sequence[int], shared: Mapping[str, Any], rows: Mapping[str, int]
) -> dict[str, Any]:
    """The test metric of ours and of the reference script, trained alike, seed by seed.

    Args:
        name: of the recipe.
        data: holds a folder of that name.
        scripts: holds the reference scripts.
        seeds: of the runs.
        shared: epochs, batch size and learning rate.
        rows: of `train` and `test` at most, spread evenly over the file.
    """
    runs = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            part = _thinned(name, data, Path(folder) / "data", rows)
            ours, our_seconds = _ours(name, part, Path(folder), seed, shared)
            theirs, their_seconds = _theirs(name, part, scripts, Path(folder), seed, shared)
        runs.append({"seed": seed, "ours": ours, "theirs": theirs, "seconds": [our_seconds, their_seconds]})
        click.echo(json.dumps(runs[-1]), err=True)
    return {
        "name": name,
        "script": REFERENCES[name].script,
        "metric": REFERENCES[name].ours or REFERENCES[name].metric[0].removeprefix("eval_"),
        "settings": dict(shared),
        "rows": dict(rows),
        "runs": runs,
        "machine": machine_facts(),
    }


def _ours(name: str, data: Path, folder: Path, seed: int, shared: Mapping[str, Any]) -> tuple[float, float]:
    """With the reference's defaults where a recipe of ours has others."""
    alike = {
        "warmup_ratio": 0.0,
        "weight_decay": 0.0,
        "adam_epsilon": 1e-8,
        "dropout": 0.1,
        "freeze_embeddings": "false",
    }
    train = [f"train.{key}={value}" for key, value in (alike | dict(shared)).items()]
    settings = [*_data_overrides(name, data), f"seed={seed}", *train]
    if load_recipe(ROOT / "recipes" / f"{name}.toml").data.validation is None:
        # the script trains on all rows
        settings.append("data.validation_fraction=0.01")
    began = time.perf_counter()
    _paritybit("finetune", f"recipes/{name}.toml", "--output", folder / "checkpoint", *_set(settings))
    seconds = time.perf_counter() - began
    metrics = json.loads((folder / "checkpoint" / "metrics.json").read_bytes())
    return metrics["test"][REFERENCES[name].ours or metrics["primary_metric"]], round(seconds, 1)


def _theirs(
    name: str, data: Path, scripts: Path, folder: Path, seed: int, shared: Mapping[str, Any]
) -> tuple[float, float]:
    reference, recipe = REFERENCES[name], load_recipe(ROOT / "recipes" / f"{name}.toml", _data_overrides(name, data))
    from finetune.base_model import resolve_base_model

    files = {
        split: _as_json(Path(file), folder / f"{split}.json", nested=reference.script == "run_qa.py")
        for split, file in {"train": recipe.data.train, "validation": recipe.data.test}.items()
    }
    launcher = scripts / "run.py"
    command = [
        sys.executable,
        *([str(launcher)] if launcher.is_file() else []),
        str(scripts / reference.script),
        "--model_name_or_path",
        resolve_base_model(recipe.base_model),
        *("--train_file", str(files["train"]), "--validation_file", str(files["validation"])),
        *(
            "--do_train",
            "--do_eval",
            "--report_to",
            "none",
            "--save_strategy",
            "no",
            "--output_dir",
            str(folder / "out"),
        ),
        *("--num_train_epochs", str(shared["epochs"]), "--learning_rate", str(shared["learning_rate"])),
        *("--per_device_train_batch_size", str(shared["batch_size"]), "--seed", str(seed)),
        *("--per_device_eval_batch_size", "64", "--disable_tqdm", "True"),
        *reference.arguments,
    ]
    began = time.perf_counter()
    _run(command)
    seconds = time.perf_counter() - began
    key, scale = reference.metric
    return json.loads((folder / "out" / "all_results.json").read_bytes())[key] / scale, round(seconds, 1)


def _thinned(name: str, data: Path, target: Path, rows: Mapping[str, int]) -> Path:
    """A data folder like the one given, with fewer rows."""
    recipe = load_recipe(ROOT / "recipes" / f"{name}.toml")
    (target / name).mkdir(parents=True)
    for split in ("train", "validation", "test"):
        if file := getattr(recipe.data, split):
            lines = (data / name / Path(file).name).read_bytes().splitlines(keepends=True)
            count = min(rows.get(split, len(lines)), len(lines))
            kept = [lines[number * len(lines) // count] for number in range(count)]
            (target / name / Path(file).name).write_bytes(b"".join(kept))
    return target


def _as_json(source: Path, target: Path, *, nested: bool) -> Path:
    """The rows in the suffix, and for question answering in the nesting, that the reference scripts expect."""
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").split("\n") if line]
    if nested:
        keys = ("id", "context", "question", "answers")
        target.write_text(json.dumps({"data": [{key: row[key] for key in keys} for row in rows]}), encoding="utf-8")
    else:
        target.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return target


def _data_overrides(name: str, data: Path) -> list[str]:
    """The files of a data set folder in place of those that the recipe points to."""
    recipe = load_recipe(ROOT / "recipes" / f"{name}.toml")
    splits = {"train": recipe.data.train, "validation": recipe.data.validation, "test": recipe.data.test}
    folder = (data / name).resolve()
    return [f"data.{split}={json.dumps(str(folder / Path(file).name))}" for split, file in splits.items() if file]


def _set(overrides: Sequence[str]) -> list[str]:
    return [part for override in overrides for part in ("--set", override)]


def _paritybit(*arguments: object) -> None:
    _run([sys.executable, "-m", "paritybit", *map(str, arguments)])


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise ParitybitError(f"{' '.join(command[:4])} … ended with {done.returncode}:\n{done.stderr[-2000:]}")


def table(results: Path) -> str:
    """`benchmarks/TASKS.md` from the committed results."""
    runs = [json.loads(path.read_bytes()) for path in sorted(results.glob("stages-*.json"))]
    compared = [json.loads(path.read_bytes()) for path in sorted(results.glob("reference-*.json"))]
    return "\n".join(
        [_HEAD, *_stage_rows(runs), _MIDDLE, *(row for one in compared for row in _reference_rows(one)), ""]
    )


_HEAD = """# Every task on real data

Written by `python -m benchmarks.tasks table` from `benchmarks/results/tasks`. MiniLM-L6 (English) trained on one or two
processors; the whole test split; every row went through `paritybit finetune`, `paritybit export` and `Predictor`.
`python -m benchmarks.tasks stages NAME --data FOLDER` runs one again; the data sets are named in the recipes.

Δ fp32 is the largest |Δlogit| against PyTorch; Δ company that of int8 between a text alone and in company, on 1,000
test rows in the newer runs, else on 256.

| recipe | task | test rows | training, s | metric | PyTorch | int8 | lost | same | Δ fp32 | Δ company | published |
|---|---|---|---|---|---|---|---|---|---|---|---|"""

_MIDDLE = """
## Beside the reference scripts

The example scripts of transformers (`run_glue.py`, `run_classification.py`, `run_ner.py`, `run_qa.py`; taken from
their repository, not shipped here) and `paritybit finetune` with the same base model, rows, epochs, batch size and
learning rate, and otherwise the scripts' defaults: no warm-up, no weight decay, dropout as in the base model. On the
test rows. Where rows are named, both sides had the same part of the files. Multi-label: ours with its tuned cuts,
theirs at 0.5.
`python -m benchmarks.tasks reference NAME --data FOLDER --scripts FOLDER`.

| recipe | script | metric | epochs, batch, learning rate | seed | ours | reference | seconds, ours / reference |
|---|---|---|---|---|---|---|---|"""


def _stage_rows(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    return [" | ".join(["", *_stage_cells(run), ""]).strip() for run in runs]


def _stage_cells(run: Mapping[str, Any]) -> list[str]:
    metric = run["primary_metric"]
    fp32, int8 = run["variants"]["fp32"], run["variants"]["int8-static"]
    return [
        run["name"],
        run["task"],
        f"{run['test_rows']:,}",
        f"{run['training_seconds']:.0f}",
        metric,
        f"{run['pytorch'][metric]:.4f}",
        f"{int8['metric']:.4f}",
        f"{run['pytorch'][metric] - int8['metric']:+.4f}",
        f"{int8['agreement']:.2%}",
        f"{fp32['max_logit_delta']:.1e}",
        f"{run.get('company', {'max_delta': int8['max_batch_delta']})['max_delta']:.0e}",
        run["published"],
    ]


def _reference_rows(one: Mapping[str, Any]) -> list[str]:
    settings = one["settings"]
    part = "".join(f", {count:,} {split} rows" for split, count in one["rows"].items())
    how = f"{settings['epochs']}, {settings['batch_size']}, {settings['learning_rate']:g}{part}"
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


_NAMES = click.argument("names", nargs=-1, required=True)
_DATA = click.option(
    "--data", type=click.Path(path_type=Path, exists=True), required=True, help="Holds a folder NAME for each recipe."
)


@click.group()
def main() -> None:
    """Runs the shipped recipes through every stage, or beside the reference scripts."""


@main.command("stages")
@_NAMES
@_DATA
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a recipe key; repeatable.")
def _stages(names: Sequence[str], data: Path, overrides: Sequence[str]) -> None:
    """Fine-tune, export and ask the model of each recipe of NAMES."""
    for name in names:
        result = stages(name, data, ROOT / "build" / name, overrides)
        _keep(f"stages-{name}.json", result)


@main.command("reference")
@_NAMES
@_DATA
@click.option("--scripts", type=click.Path(path_type=Path, exists=True), required=True, help="Holds the scripts.")
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--rows", type=click.IntRange(min=1), help="Training rows at most.")
@click.option("--test-rows", type=click.IntRange(min=1), help="Test rows at most.")
@click.option("--epochs", type=click.IntRange(min=1), default=_SHARED["epochs"], show_default=True)
@click.option("--batch-size", type=click.IntRange(min=1), default=_SHARED["batch_size"], show_default=True)
@click.option("--learning-rate", type=float, default=_SHARED["learning_rate"], show_default=True)
def _reference(
    names: Sequence[str],
    data: Path,
    scripts: Path,
    seeds: int,
    rows: int | None,
    test_rows: int | None,
    **shared: Any,
) -> None:
    """Train each recipe of NAMES and the reference script alike."""
    most = {split: count for split, count in {"train": rows, "test": test_rows}.items() if count}
    for name in names:
        result = side_by_side(name, data, scripts.resolve(), range(1, seeds + 1), shared, most)
        _keep(f"reference-{name}.json", result)


@main.command("table")
def _table() -> None:
    """Write benchmarks/TASKS.md from the results."""
    TABLE.write_text(table(RESULTS), encoding="utf-8")


def _keep(name: str, result: Mapping[str, Any]) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_json(RESULTS / name, result)
    click.echo(json.dumps(result))


if __name__ == "__main__":
    main()
