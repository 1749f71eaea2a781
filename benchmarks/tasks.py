"""Every task on real data, through every stage; and side by side with the field's reference scripts.

python -m benchmarks.tasks stages squad wnut17 --data path/of/the/data
python -m benchmarks.tasks reference wnut17 --data path/of/the/data --scripts path/of/the/examples --seeds 3
python -m benchmarks.tasks reference squad --rows 2000 --test-rows 1000 --data …   # the same part for both
python -m benchmarks.tasks reference banking77 --settings few --rows 500 --data …   # each side with its own settings
python -m benchmarks.tasks table        # writes benchmarks/TASKS.md from the committed results
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.references import SHARED, Comparison, reference_rows, side_by_side
from benchmarks.stages import ROOT, stage_rows, stages
from finetune.record import write_json

__all__ = ["RESULTS", "TABLE", "main", "table"]

RESULTS = ROOT / "benchmarks" / "results" / "tasks"
TABLE = ROOT / "benchmarks" / "TASKS.md"


def table(results: Path) -> str:
    """`benchmarks/TASKS.md` from the committed results."""
    lines = [_HEAD, *stage_rows(_read(results, "stages"))]
    for mode, text in _COMPARED.items():
        compared = _read(results, mode)
        if compared:
            lines += [text + _COLUMNS, *(row for one in compared for row in reference_rows(one))]
    return "\n".join([*lines, ""])


def _read(results: Path, prefix: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_bytes()) for path in sorted(results.glob(f"{prefix}-*.json"))]


_HEAD = """# Every task on real data

Written by `python -m benchmarks.tasks table` from `benchmarks/results/tasks`. MiniLM-L6 (English) trained on one or two
processors; the whole test split; every row went through `paritybit finetune`, `paritybit export` and `Predictor`.
`python -m benchmarks.tasks stages NAME --data FOLDER` runs one again; the data sets are named in the recipes.

Δ fp32 is the largest |Δlogit| against PyTorch; Δ company that of int8 between a text alone and in company, on at most
5,000 test rows in the newest runs, else on 1,000 or 256.

| recipe | task | test rows | training, s | metric | PyTorch | int8 | lost | same | Δ fp32 | Δ company | published |
|---|---|---|---|---|---|---|---|---|---|---|---|"""

_COMPARED = {
    "alike": """
## Beside the reference scripts

The example scripts of transformers (`run_glue.py`, `run_classification.py`, `run_ner.py`, `run_qa.py`; taken from
their repository, not shipped here) and `paritybit finetune` with the same base model, rows, epochs, batch size and
learning rate, and otherwise the scripts' defaults: no warm-up, no weight decay, dropout as in the base model. On the
test rows. Where rows are named, both sides had the same part of the files. Multi-label: ours with its tuned cuts,
theirs at 0.5.
`python -m benchmarks.tasks reference NAME --data FOLDER --scripts FOLDER`.
""",
    "defaults": """
## Each side with its own defaults

As above, but only epochs and batch size are shared: the learning rate, its schedule and all else are what each side
does when it is told nothing. `python -m benchmarks.tasks reference NAME --settings defaults …`.
""",
    "few": """
## Few rows

Ours with no `[train]` section at all, the scripts with no argument for training: 3 epochs, batches of 8, 5e-5.
`python -m benchmarks.tasks reference banking77 --settings few --rows 500 …`.
""",
}
_COLUMNS = """
| recipe | script | metric | epochs, batch, learning rate | seed | ours | reference | seconds, ours / reference |
|---|---|---|---|---|---|---|---|"""

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
        _keep(f"stages-{name}.json", stages(name, data, ROOT / "build" / name, overrides))


@main.command("reference")
@_NAMES
@_DATA
@click.option("--scripts", type=click.Path(path_type=Path, exists=True), required=True, help="Holds the scripts.")
@click.option(
    "--settings", type=click.Choice(list(_COMPARED)), default="alike", show_default=True, help="What both are given."
)
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--rows", type=click.IntRange(min=1), help="Training rows at most.")
@click.option("--test-rows", type=click.IntRange(min=1), help="Test rows at most.")
@click.option("--epochs", type=click.IntRange(min=1), default=SHARED["epochs"], show_default=True)
@click.option("--batch-size", type=click.IntRange(min=1), default=SHARED["batch_size"], show_default=True)
@click.option("--learning-rate", type=float, default=SHARED["learning_rate"], show_default=True)
@click.option("--base-model", help="In place of the recipe's.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Trainings at the same time.")
def _reference(
    names: Sequence[str],
    data: Path,
    scripts: Path,
    settings: str,
    seeds: int,
    rows: int | None,
    test_rows: int | None,
    base_model: str | None,
    jobs: int,
    **shared: Any,
) -> None:
    """Train each recipe of NAMES and the reference script on the same rows."""
    given: dict[str, Sequence[str]] = {"alike": tuple(shared), "defaults": ("epochs", "batch_size"), "few": ()}
    how = Comparison(
        data=data,
        scripts=scripts.resolve(),
        alike=settings == "alike",
        shared={key: shared[key] for key in given[settings]},
        rows={split: count for split, count in {"train": rows, "test": test_rows}.items() if count},
        base_model=base_model,
        jobs=jobs,
    )
    for name in names:
        part = f"-{rows}" if settings == "few" else ""
        _keep(f"{settings}-{name}{part}.json", side_by_side(name, range(1, seeds + 1), how))


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
