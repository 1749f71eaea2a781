"""The real texts that throughput is measured on: the test split that a checkpoint's run names."""

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from bundle.manifest import Manifest
from finetune.recipe import recipe_of_run
from tasks import Input, Tokenizer, Window, load_task
from tasks.checkpoint import read_task_spec

__all__ = ["sample_windows", "test_inputs"]

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
