"""What each technique gave: one key changed at a time, several seeds, on two data sets with few rows.

python -m benchmarks.ablation banking77 snli --data path/of/the/data --out build/ablation

Writes a JSON file for each, and all of them as `ablation.md`. On two processors all of it takes hours.
"""

import math
import shlex
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from scipy.stats import t as student

from benchmarks.machine import machine_facts
from benchmarks.rows import thinned_data
from benchmarks.stages import ROOT, data_overrides
from finetune.recipe import load_recipe
from finetune.record import write_json
from finetune.study import run_study

__all__ = ["ARMS", "main", "run", "table"]

_BASE = ("train.freeze_embeddings=false", "train.dropout=0.1", "train.learning_rate=2e-4", "train.epochs=5")
ARMS = {
    "no bias correction": "train.bias_correction=false",
    "no warm-up": "train.warmup_ratio=0.0",
    "no weight decay": "train.weight_decay=0.0",
    "cosine schedule": "train.schedule=cosine",
    "polynomial schedule": "train.schedule=polynomial",
    "constant schedule": "train.schedule=constant",
    "Adafactor": "train.optimizer=adafactor",
    "no dropout": "train.dropout=0.0",
    "frozen embeddings": "train.freeze_embeddings=true",
    "frozen embeddings, no dropout": "train.freeze_embeddings=true train.dropout=0.0",
    "two layers frozen": "train.freeze_layers=2",
    "head alone": "train.freeze_encoder=true",
    "biases only (BitFit)": "train.biases_only=true train.learning_rate=2e-3",
    "gradual unfreezing": "train.gradual_unfreezing=true",
    "layer-wise decay .9": "train.layer_decay=0.9",
    "top layer drawn anew": "train.reinitialize_layers=1",
    "four of six layers": "train.keep_layers=4",
    "label smoothing .1": "loss.label_smoothing=0.1",
    "focal, gamma 2": "loss.focal_gamma=2.0",
    "R-Drop 1": "regularize.r_drop=1.0",
    "FGM": "regularize.adversarial_epsilon=1.0",
    "FreeLB, 3 steps": "regularize.adversarial_epsilon=1.0 regularize.adversarial_steps=3",
    "NEFTune 5": "regularize.neftune_alpha=5.0",
    "multi-sample dropout, 4": "regularize.dropout_samples=4",
    "mixout .1": "regularize.mixout=0.1",
    "L2-SP .01": "regularize.pull_to_pretrained=0.01",
    "EMA .99": "regularize.average=ema regularize.ema_decay=0.99",
    "SWA": "regularize.average=swa",
}
"""Changes to the base, by what the table calls them."""


def run(
    name: str,
    data: Path,
    arms: Mapping[str, str],
    *,
    seeds: int,
    rows: int,
    workers: int = 1,
    base_model: str | None = None,
) -> dict[str, Any]:
    """Trains a shipped recipe on part of its data as it is, and with every change.

    Args:
        name: of the recipe.
        data: holds a folder of that name.
        arms: changes by name, of `ARMS`.
        seeds: of each.
        rows: of training, at most.
        workers: trainings side by side.
        base_model: in place of the recipe's.
    """
    file = ROOT / "recipes" / f"{name}.toml"
    with tempfile.TemporaryDirectory() as temporary:
        part = thinned_data(file, data, Path(temporary) / "data", {"train": rows})
        base = [*data_overrides(name, part), *_BASE, *([f"base_model={base_model}"] if base_model else [])]
        recipes = {"base": load_recipe(file, base)}
        recipes |= {arm: load_recipe(file, [*base, *shlex.split(change)]) for arm, change in arms.items()}
        found = run_study(
            recipes,
            range(1, seeds + 1),
            Path(temporary) / "study",
            workers=workers,
            report=lambda line: click.echo(line, err=True),
        ).to_json()
    return {"name": name, "rows": rows, "workers": workers, **found, "machine": machine_facts()}


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """What `run` found of some recipes, side by side."""
    by_arm = [{one["name"]: one for one in found["variants"]} for found in runs]
    columns = "".join(f" {found['name']}: {found['metric']} | ± | time |" for found in runs)
    names = [arm for arm in ("base", *ARMS) if any(arm in found for found in by_arm)]
    rows = [f"| {arm} |" + "".join(_cells(found["base"], found.get(arm)) for found in by_arm) for arm in names]
    part = ", ".join(f"{found['name']} {found['rows']:,} rows" for found in runs)
    return "\n".join([_HEAD.format(part=part), f"| |{columns}", f"|---|{'---|---|---|' * len(runs)}", *rows, ""])


_HEAD = """# What each technique gave

Written by `python -m benchmarks.ablation`: {part}, five epochs, batches of 32, 2e-4, all weights trained with dropout
.1; each row changes what it names and nothing else. For the base the mean over the seeds on the test rows, for the
others the difference to it in points, with the half width of its 95 % interval (Welch), and the time over that of the
base. An interval that holds zero is no evidence of a gain.
"""


def _cells(base: Mapping[str, Any], one: Mapping[str, Any] | None) -> str:
    if one is None:
        return " | | |"
    values, before = _tests(one), _tests(base)
    if not values:
        return " diverged | | |"
    if one is base:
        return f" {statistics.fmean(values):.4f} | {_half_width(values):.4f} | 1.00 |"
    difference = 100 * (statistics.fmean(values) - statistics.fmean(before))
    time = one["summary"]["seconds"] / base["summary"]["seconds"]
    failed = f", {one['summary']['failed']} failed" if one["summary"]["failed"] else ""
    return f" {difference:+.2f}{failed} | {100 * _half_width(values, before):.2f} | {time:.2f} |"


def _tests(one: Mapping[str, Any]) -> list[float]:
    return [run["test"] for run in one["runs"] if run["test"] is not None]


def _half_width(*groups: Sequence[float]) -> float:
    """Of the 95 % interval of a mean, or of the difference of two, whose variances may differ (Welch 1947)."""
    shares = [statistics.variance(group) / len(group) for group in groups if len(group) > 1]
    total = sum(shares)
    if not total:
        return 0.0
    freedom = total**2 / sum(
        share**2 / (len(group) - 1) for share, group in zip(shares, groups, strict=False) if len(group) > 1
    )
    return float(student.ppf(0.975, freedom)) * math.sqrt(total)


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Holds a folder per recipe.")
@click.option("--only", multiple=True, type=click.Choice(list(ARMS)), help="A change; repeatable.  [default: all]")
@click.option("--seeds", type=click.IntRange(min=2), default=3, show_default=True)
@click.option("--rows", type=click.IntRange(min=1), default=2000, show_default=True, help="Training rows at most.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Trainings side by side.")
@click.option("--base-model", help="In place of the recipe's.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the results.")
def main(names: Sequence[str], data: Path, only: Sequence[str], out: Path, **how: Any) -> None:
    """Train the recipes of NAMES with every change."""
    out.mkdir(parents=True, exist_ok=True)
    found = []
    for name in names:
        found.append(run(name, data, {arm: ARMS[arm] for arm in only or ARMS}, **how))
        write_json(out / f"{name}.json", found[-1])
    (out / "ablation.md").write_text(table(found), encoding="utf-8")
    click.echo(table(found))


if __name__ == "__main__":
    main()
