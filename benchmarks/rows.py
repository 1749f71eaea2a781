"""The real texts that throughput is measured on: the test split that a checkpoint's run names."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bundle.manifest import Manifest
from finetune.recipe import recipe_of_run
from tasks import TextInput, Tokenizer, Window, load_task
from tasks.checkpoint import labels_of_config

__all__ = ["sample_windows", "test_inputs"]


def test_inputs(checkpoint: Path) -> list[TextInput]:
    """The test split of the recipe in the checkpoint's `run.json`.

    Raises:
        ParitybitError: if the checkpoint names no recipe, or the recipe's data cannot be read.
    """
    from finetune.data import load_data

    recipe = recipe_of_run(checkpoint)
    labels = labels_of_config(checkpoint / "config.json")
    return load_data(recipe.data, seed=recipe.seed, labels=labels).test.inputs


def sample_windows(manifest: Manifest, bundle: Path, inputs: Sequence[TextInput], size: int, seed: int) -> list[Window]:
    """Token ids of a seeded sample of the inputs, in the order that the inputs are in."""
    rows = np.sort(np.random.default_rng(seed).permutation(len(inputs))[:size])
    tokenizer = Tokenizer(bundle / "tokenizer.json", manifest.task.max_length, manifest.pad_token_id)
    return load_task(manifest.task).encode(tokenizer, [inputs[row] for row in rows])
