"""Recipes over data files, as the tests of reading need them."""

from pathlib import Path
from typing import Any

import pytest

from finetune.data import load_data
from finetune.recipe import Recipe
from tasks.errors import DataError


def recipe_of(train: str | Path, test: str | Path | None = None, **more: Any) -> Recipe:
    """A recipe that validates and tests on its training rows, unless told otherwise; `data` adds to that section."""
    files = {"train": str(train), "validation": str(train), "test": str(test or train)}
    data = {key: value for key, value in (files | more.pop("data", {})).items() if value is not None}
    return Recipe.model_validate({"name": "toy", "base_model": "x/y", "data": data, **more})


def error_of(recipe: Recipe) -> str:
    with pytest.raises(DataError) as caught:
        load_data(recipe)
    return str(caught.value)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path
