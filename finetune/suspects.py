"""Training rows whose labels are doubted by models that did not learn them.

Each model is trained on all folds but one and asked about that one. What it answers otherwise than the row says, and
the surer it is the more so, is either hard or labelled wrongly (confident learning, Northcutt et al. 2021,
arXiv:1911.00068, ranks rows in this way).
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from finetune.checkpoint import load_checkpoint
from finetune.data import PlacedRow, read_training_rows, strata
from finetune.errors import row_losses, row_text
from finetune.inference import predict
from finetune.recipe import Recipe
from finetune.study import run_study
from tasks.base import Task
from tasks.catalogue import TASKS, load_task
from tasks.errors import DataError, DivergenceError

__all__ = ["SUSPECTS_FILE", "Suspect", "find_suspects"]

SUSPECTS_FILE = "suspects.jsonl"


@dataclass(frozen=True, slots=True)
class Suspect:
    """A row that is answered otherwise than it says.

    Attributes:
        place: `file:line`.
        loss: of the row's own label by the model that did not see it; of one label a row, minus the logarithm of its
            probability.
        expected: what the row says.
        said: what the model says.
        text: what both say it of.
    """

    place: str
    loss: float
    expected: str
    said: str
    text: str


def find_suspects(
    recipe: Recipe, output: Path, *, folds: int = 5, workers: int = 1, report: Callable[[str], None]
) -> list[Suspect]:
    """Trains the recipe once for each fold, asks about the rows left out, and writes `suspects.jsonl`.

    Folds that were trained before, on the same rows, are taken as they are.

    Args:
        recipe: with absolute paths; validation rows are cut from the training rows, whatever it says of them.
        output: directory of the folds' rows, their checkpoints and the result.
        folds: at least 2.
        workers: trainings side by side.
        report: takes a line for people after each training.

    Returns:
        The suspects, the most doubtful first.

    Raises:
        DataError: if there are fewer rows than folds, or bad ones.
        DivergenceError: if a training diverged.
        InterruptionError: after Ctrl-C or SIGTERM; every training keeps its progress.
    """
    task, rows = TASKS[recipe.task], read_training_rows(recipe)
    if len(rows) < 2 * folds:
        raise DataError(f"{recipe.data.train}: found {len(rows)} rows; expected at least two for each of {folds} folds")
    try:
        parts = _folds(rows, task, folds, recipe.seed)
    except ValueError:
        parts = []
    if not parts or not all(parts):
        # no label has as many rows, or rows that belong together are too few groups
        raise DataError(f"{recipe.data.train}: its rows cannot be spread over {folds} folds; expected fewer folds")
    recipes = {
        f"fold {number}": _without(recipe, task, rows, part, output / f"fold-{number}")
        for number, part in enumerate(parts, start=1)
    }
    study = run_study(recipes, [recipe.seed], output, workers=workers, report=report)
    checkpoints = list(study.checkpoints())
    if len(checkpoints) < folds:
        raise DivergenceError(f"{folds - len(checkpoints)} of {folds} trainings diverged; lower train.learning_rate")
    found = [
        one
        for checkpoint, part in zip(checkpoints, parts, strict=True)
        for one in _doubted(checkpoint, [rows[row] for row in part])
    ]
    found.sort(key=lambda one: -one.loss)
    lines = "".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in found)
    draft = output / f".{SUSPECTS_FILE}"
    draft.write_text(lines, encoding="utf-8")
    draft.replace(output / SUSPECTS_FILE)
    return found


def _folds(rows: Sequence[PlacedRow], task: type[Task], folds: int, seed: int) -> list[list[int]]:
    """Row numbers, each stratum spread over all folds, rows of a group together."""
    from sklearn.model_selection import StratifiedGroupKFold

    labels = strata([task.names(row.example.gold) for row in rows])
    groups = [task.group(row.example.input) for row in rows]
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    alone = [len(numbers) + row if group is None else numbers[group] for row, group in enumerate(groups)]
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(labels, labels, alone)
    return [part.tolist() for _, part in split]


def _without(recipe: Recipe, task: type[Task], rows: Sequence[PlacedRow], part: Sequence[int], folder: Path) -> Recipe:
    """The recipe of all rows but those of a part, which are its test rows."""
    folder.mkdir(parents=True, exist_ok=True)
    held_out = set(part)
    kept = [row for number, row in enumerate(rows) if number not in held_out]
    files = {"train": kept, "test": [rows[number] for number in part]}
    for name, chosen in files.items():
        lines = (
            json.dumps({field: value for field, value in row.values.items() if value is not None}) for row in chosen
        )
        (folder / f"{name}.jsonl").write_text("\n".join([*lines, ""]), encoding="utf-8")
    data = recipe.data.model_copy(
        update={name: str(folder / f"{name}.jsonl") for name in files}
        | {"hub": None, "hub_config": None, "validation": None, "format": "jsonl"}
        # under the fields' own names now
        | {"columns": {field: field for field in recipe.data.columns}}
    )
    labels = recipe.labels
    if labels is None and task.takes_labels:
        # a fold may lack one
        labels = tuple(sorted({name for row in rows for name in task.names(row.example.gold)}))
    return recipe.model_copy(update={"data": data, "labels": labels})


def _doubted(location: Path, rows: Sequence[PlacedRow]) -> Iterator[Suspect]:
    checkpoint = load_checkpoint(location)
    task = load_task(checkpoint.spec)
    golds = [row.example.gold for row in rows]
    encoded = task.encode(checkpoint.tokenizer, [row.example.input for row in rows])
    outputs = predict(checkpoint.model, encoded.windows, checkpoint.pad_token_id)
    losses = row_losses(task, outputs, encoded, golds)
    answers = task.decode(outputs, encoded, task.parameters())
    for row, gold, answer, loss in zip(rows, golds, answers, losses.tolist(), strict=True):
        expected, said = task.gold_summary(gold), task.summary(answer)
        if said != expected:
            yield Suspect(row.place, round(loss, 4), expected, said, row_text(task, row.example.input))
