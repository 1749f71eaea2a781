"""Real rows: the test split that a checkpoint's run names, for throughput; and parts of data sets, for trainings."""

import json
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from bundle.manifest import Manifest
from finetune.recipe import load_recipe, recipe_of_run
from tasks import Input, Tokenizer, Window, load_task
from tasks.checkpoint import read_task_spec

__all__ = ["sample_windows", "test_inputs", "thinned_data"]

_MOST_TOKENS = 24_576
"""Of a sample: long documents would take minutes a round, and fewer of them say as much."""


def test_inputs(checkpoint: Path) -> list[Input]:
    """The test split of the recipe in the checkpoint's `run.json`.

    Raises:
        ParitybitError: if the checkpoint names no recipe, or the recipe's data cannot be read.
    """
    from finetune.data import load_data

    return load_data(recipe_of_run(checkpoint), spec=read_task_spec(checkpoint)).test.inputs


def sample_windows(manifest: Manifest, bundle: Path, inputs: Sequence[Input], size: int, seed: int) -> list[Window]:
    """The windows of some of the inputs, drawn by seed and in the order drawn."""
    rows = np.random.default_rng(seed).permutation(len(inputs))[:size]
    tokenizer = Tokenizer(bundle / "tokenizer.json", manifest.task.max_length, manifest.pad_token_id)
    windows = load_task(manifest.task).encode(tokenizer, [inputs[row] for row in rows]).windows
    fitting = sum(total <= _MOST_TOKENS for total in accumulate(map(len, windows)))
    return list(windows[: max(1, fitting)])


def thinned_data(recipe: Path, data: Path, target: Path, rows: Mapping[str, int]) -> Path:
    """A folder of data sets that holds a recipe's own, with fewer rows.

    Args:
        recipe: its file; the data set is named like it.
        data: holds the whole data set.
        target: is made.
        rows: of `train`, `validation` and `test` at most, spread evenly over the file and the labels.
    """
    name, files = recipe.stem, load_recipe(recipe).data
    (target / name).mkdir(parents=True)
    for split in ("train", "validation", "test"):
        if file := getattr(files, split):
            lines = (data / name / Path(file).name).read_bytes().splitlines(keepends=True)
            kept = _spread([json.loads(line).get("label") for line in lines], rows.get(split, len(lines)))
            (target / name / Path(file).name).write_bytes(b"".join(lines[number] for number in kept))
    return target


def _spread(labels: Sequence[Any], most: int) -> list[int]:
    """Row numbers spread evenly over the file, of each label as many as of the others while there are some."""
    groups: dict[str, list[int]] = {}
    for number, label in enumerate(labels):
        groups.setdefault(json.dumps(label), []).append(number)
    taken = dict.fromkeys(groups, 0)
    while sum(taken.values()) < min(most, len(labels)):
        label = min((one for one in groups if taken[one] < len(groups[one])), key=lambda one: taken[one])
        taken[label] += 1
    return sorted(rows[at * len(rows) // taken[label]] for label, rows in groups.items() for at in range(taken[label]))
