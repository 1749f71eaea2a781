"""The recipe: one TOML file that says what is trained, on what, how, and how strictly its export is judged.

Nothing heavy is imported here, so that `--help` and a recipe's errors come at once.
"""

import copy
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, Field, JsonValue, ValidationError, field_validator

from finetune.contradictions import data_contradictions, task_contradictions, training_contradictions
from finetune.sections import (
    DataSection,
    ExportSection,
    Format,
    LossSection,
    Name,
    PretrainSection,
    RegularizeSection,
    SweepRange,
    SweepSection,
    TrainSection,
)
from tasks.base import Frozen
from tasks.catalogue import TASKS
from tasks.checkpoint import RUN_FILE
from tasks.errors import CheckpointError, RecipeError

__all__ = [
    "DataSection",
    "ExportSection",
    "Format",
    "LossSection",
    "PretrainSection",
    "Recipe",
    "RegularizeSection",
    "SweepRange",
    "SweepSection",
    "TrainSection",
    "load_recipe",
    "recipe_of_run",
]

_DEFAULT_TASK = "single_label"
_Model = TypeVar("_Model", bound=BaseModel)


class Recipe(Frozen):
    """A whole recipe. `load_recipe` makes its paths absolute; it keeps no path of its own."""

    name: str = Field(pattern="^[a-z0-9][a-z0-9_-]*$")
    base_model: str = Field(min_length=1, description="Hub id, local directory, or `package:module/folder`.")
    task: str = _DEFAULT_TASK
    max_length: int = Field(default=128, ge=4, le=8192, description="Longest input in tokens, special ones included.")
    labels: tuple[Name, ...] | None = Field(
        default=None, min_length=1, description="Fixes their order; else sorted. Of entities, their types."
    )
    seed: int = Field(default=42, ge=0, le=2**32 - 1)
    options: dict[str, JsonValue] = Field(default={}, description="What the task lets a recipe choose.")
    data: DataSection
    pretrain: PretrainSection = PretrainSection()
    train: TrainSection = TrainSection()
    loss: LossSection = LossSection()
    regularize: RegularizeSection = RegularizeSection()
    export: ExportSection = ExportSection()
    sweep: SweepSection | None = None

    @field_validator("task")
    @classmethod
    def _known_task(cls, task: str) -> str:
        if task not in TASKS:
            raise ValueError(f"one of {', '.join(TASKS)}")
        return task

    @property
    def task_options(self) -> BaseModel:
        """The task's options with their defaults."""
        return _parsed(TASKS[self.task].options, self.options)

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON; `Recipe.model_validate` reads them back."""
        return self.model_dump(mode="json", exclude_none=True)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe and makes its data paths and a local base model absolute.

    Args:
        path: the TOML file.
        overrides: `dotted.key=value` each, the value in TOML; a bare word is a string.

    Raises:
        RecipeError: with every problem at once, one a line: key, what was found, what was expected.
    """
    return _resolved(_validated(_read_toml(path), overrides, path), path.resolve().parent)


def recipe_of_run(checkpoint: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that a checkpoint was trained with, from its `run.json`.

    Args:
        checkpoint: the directory.
        overrides: as for `load_recipe`.

    Raises:
        CheckpointError: if the directory has no readable `run.json`, as a foreign model has none.
        RecipeError: if the overrides do not fit.
    """
    path = checkpoint / RUN_FILE
    try:
        stored = json.loads(path.read_bytes())["recipe"]
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"{checkpoint}: no {RUN_FILE} that names its data; give a recipe with [data] for this model"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not a readable record of a run: {error}") from None
    # a stored recipe has every default filled in, so that what stands in it says nothing of what was meant
    return _validated(stored, overrides, path, written=False)


def _validated(raw: dict[str, Any], overrides: Sequence[str], path: Path, *, written: bool = True) -> Recipe:
    problems = [problem for text in overrides if (problem := _override(raw, text))]
    problems += _problems(Recipe, raw) + _task_problems(raw)
    if written:
        problems += data_contradictions(raw)
        if task := TASKS.get(str(raw.get("task", _DEFAULT_TASK))):
            problems += training_contradictions(raw, task)
    if not problems:
        problems = _part_problems(_parsed(Recipe, raw).train) + _sweep_problems(raw)
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise RecipeError("\n".join([f"{path}: {count} in the recipe", *(f"  {problem}" for problem in problems)]))
    return _parsed(Recipe, raw)


def _part_problems(train: TrainSection) -> list[str]:
    batch, part = train.batch_size, train.micro_batch_size
    if part is None or batch % part == 0:
        return []
    return [f"train.micro_batch_size: found {part}; expected a divisor of train.batch_size, which is {batch}"]


def _sweep_problems(raw: dict[str, Any]) -> list[str]:
    """Keys of `[sweep.ranges]` that no recipe has, and values that it cannot take."""
    ranges = raw.get("sweep", {}).get("ranges", {})
    problems = []
    for key, one in ranges.items():
        for value in _parsed(SweepRange, one).ends():
            tried = copy.deepcopy({name: section for name, section in raw.items() if name != "sweep"})
            found = _override(tried, f"{key}={json.dumps(value)}")
            problems += [f"sweep.ranges: {line}" for line in ([found] if found else _problems(Recipe, tried))]
    return list(dict.fromkeys(problems))


def _task_problems(raw: dict[str, Any]) -> list[str]:
    task, options = TASKS.get(str(raw.get("task", _DEFAULT_TASK))), raw.get("options", {})
    if task is None:
        return []
    found = _problems(task.options, options, "options") if isinstance(options, dict) else []
    return [*found, *task_contradictions(raw, task)]


def _parsed(model: type[_Model], raw: dict[str, Any]) -> _Model:
    # JSON mode is strict about types and yet takes a list for a tuple
    return model.model_validate_json(json.dumps(raw, default=str), strict=True)


def _problems(model: type[BaseModel], raw: dict[str, Any], *section: str) -> list[str]:
    try:
        _parsed(model, raw)
    except ValidationError as error:
        return [_describe(model, detail, section) for detail in error.errors(include_url=False)]
    return []


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{path}: not a readable TOML file: {error}") from None


def _override(raw: dict[str, Any], text: str) -> str | None:
    """Puts one `dotted.key=value` into the raw recipe, or tells what is wrong with it."""
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        return f"override {text!r}: expected dotted.key=value"
    table = raw
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            return f"override {text!r}: {part} is not a section"
    table[parts[-1]] = _toml_value(value.strip())
    return None


def _toml_value(text: str) -> Any:
    try:
        values = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return values["value"] if len(values) == 1 else text


def _describe(model: type[BaseModel], detail: Any, section: Sequence[str]) -> str:
    key = ".".join(map(str, [*section, *detail["loc"]]))
    if detail["type"] == "missing":
        return f"{key}: missing; expected a value"
    found = json.dumps(detail["input"], ensure_ascii=False, default=str)
    if detail["type"] == "extra_forbidden":
        return f"{key}: unknown key (found {found}); expected one of {', '.join(_keys(model, detail['loc'][:-1]))}"
    expected = (
        detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ").removeprefix("Value should ")
    )
    return f"{key}: found {found}; expected {_EXPECTED.get(detail['type'], expected)}"


_EXPECTED = {
    "float_type": "a number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "string_type": "a string",
    "string_too_short": "a string that is not empty",
    "too_short": "at least one",
    "tuple_type": "a list",
    "dict_type": "a section",
    "model_type": "a section",
    "string_pattern_mismatch": "lower-case letters, digits, - and _, a letter or digit first",
}


def _keys(model: Any, section: Sequence[str | int]) -> list[str]:
    for part in section:
        model = model.model_fields[str(part)].annotation
    return list(model.model_fields)


def _resolved(recipe: Recipe, folder: Path) -> Recipe:
    return recipe.model_copy(
        update={
            "base_model": _resolve_base(recipe.base_model, folder),
            "data": recipe.data.model_copy(update=_resolve_data(recipe.data, folder)),
        }
    )


def _resolve_base(base: str, folder: Path) -> str:
    if base.startswith("package:"):
        return base
    looks_local = base.startswith((".", "/", "~"))
    path = folder / Path(base).expanduser()
    return str(path.resolve()) if looks_local or path.is_dir() else base


def _resolve_data(data: DataSection, folder: Path) -> dict[str, str]:
    if data.hub is not None:
        local = folder / Path(data.hub).expanduser()
        return {"hub": str(local.resolve()) if local.is_dir() else data.hub}
    files = {"train": data.train, "validation": data.validation, "test": data.test}
    return {key: str((folder / Path(file).expanduser()).resolve()) for key, file in files.items() if file is not None}
