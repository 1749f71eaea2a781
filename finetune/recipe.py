"""The recipe: one TOML file that says what is trained, on what, how, and how strictly its export is judged.

Nothing heavy is imported here, so that `--help` and a recipe's errors come at once.
"""

import json
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tasks.catalogue import TASKS
from tasks.checkpoint import RUN_FILE
from tasks.errors import CheckpointError, RecipeError

__all__ = ["DataSection", "ExportSection", "Format", "Recipe", "TrainSection", "load_recipe", "recipe_of_run"]

Format = Literal["csv", "tsv", "jsonl", "parquet"]
Label = Annotated[str, Field(min_length=1)]
Ratio = Annotated[float, Field(ge=0, lt=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataSection(_Section):
    """`[data]`: where the rows stand and which columns matter."""

    hub: str | None = Field(default=None, description="Id of a hub data set, or a local directory of one.")
    hub_config: str | None = Field(default=None, description="Configuration of the hub data set.")
    train: str = Field(min_length=1, description="File, relative to the recipe; with `hub`, the name of a split.")
    validation: str | None = Field(default=None, min_length=1, description="As `train`; cut from it when missing.")
    test: str = Field(min_length=1, description="As `train`; used once, at the end, and for the parity check.")
    format: Format | None = Field(default=None, description="Of the files; told from their suffix when missing.")
    text_column: str = Field(default="text", min_length=1)
    text_pair_column: str | None = Field(default=None, min_length=1)
    label_column: str = Field(default="label", min_length=1)
    validation_fraction: float = Field(
        default=0.1, gt=0, lt=1, description="Share of the training rows, stratified, when `validation` is missing."
    )


class TrainSection(_Section):
    """`[train]`: the defaults are Mosbach et al. 2021 (arXiv:2006.04884), shortened, for a model of BERT-base size."""

    learning_rate: float = Field(default=3e-5, gt=0, le=1, description="Peak; linear warm-up, then linear decay to 0.")
    epochs: int = Field(default=4, ge=1)
    batch_size: int = Field(default=32, ge=1)
    warmup_ratio: Ratio = Field(default=0.1, description="Share of all steps.")
    weight_decay: Ratio = Field(default=0.01, description="Not on biases and norms.")
    adam_epsilon: float = Field(default=1e-6, gt=0, le=1)
    max_grad_norm: float = Field(default=1.0, ge=0, description="Gradients are clipped to this norm; 0 clips nothing.")
    evaluations_per_epoch: int = Field(default=1, ge=1, description="The best evaluated checkpoint is kept.")
    early_stopping_patience: int = Field(
        default=3, ge=0, description="Evaluations without a better one after which training stops; 0 never stops."
    )
    dropout: Ratio | None = Field(
        default=None, description="Of every layer in training; the base model's own when missing. 0 learns fastest."
    )
    freeze_embeddings: bool = Field(default=False, description="Keeps the embeddings as pre-trained; saves time.")
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="bf16 autocast is meant for GPUs.")


class ExportSection(_Section):
    """`[export]`: what is built from the checkpoint and the gates it must pass."""

    variants: tuple[Literal["fp32", "int8-dynamic", "int8-static"], ...] = Field(
        default=("fp32", "int8-dynamic", "int8-static"), min_length=1
    )
    calibration_rows: int = Field(default=256, ge=1, description="Training rows that set the static int8 scales.")
    max_logit_delta: float = Field(default=1e-4, gt=0, description="fp32 against PyTorch.")
    min_agreement: float = Field(default=0.985, ge=0, le=1, description="Same answers, int8 against PyTorch.")
    max_metric_loss: float = Field(default=0.005, ge=0, le=1, description="Of the task's metric, int8.")
    max_batch_delta: float = Field(default=1e-6, ge=0, description="Of a text's logits, whatever the company.")
    opset: int = Field(default=20, ge=18, le=23)
    golden_rows: int = Field(default=16, ge=1)


class Recipe(_Section):
    """A whole recipe. `load_recipe` makes its paths absolute; it keeps no path of its own."""

    name: str = Field(pattern="^[a-z0-9][a-z0-9_-]*$")
    base_model: str = Field(min_length=1, description="Hub id, local directory, or `package:module/folder`.")
    task: str = "single_label"
    max_length: int = Field(default=128, ge=4, le=8192, description="Longest input in tokens, special ones included.")
    labels: tuple[Label, ...] | None = Field(default=None, description="Fixes their order; else sorted.")
    seed: int = Field(default=42, ge=0, le=2**32 - 1)
    data: DataSection
    train: TrainSection = TrainSection()
    export: ExportSection = ExportSection()

    @field_validator("task")
    @classmethod
    def _known_task(cls, task: str) -> str:
        if task not in TASKS:
            raise ValueError(f"one of {', '.join(TASKS)}")
        return task

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
    recipe: Recipe | None = None
    try:
        # JSON mode is strict about types and yet takes a list for a tuple
        recipe = Recipe.model_validate_json(json.dumps(raw, default=str), strict=True)
    except ValidationError as error:
        problems += [_describe(detail) for detail in error.errors(include_url=False)]
    if written:
        problems += _contradictions(raw)
    if problems or recipe is None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise RecipeError("\n".join([f"{path}: {count} in the recipe", *(f"  {problem}" for problem in problems)]))
    return recipe


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


def _describe(detail: Any) -> str:
    key = ".".join(map(str, detail["loc"]))
    if detail["type"] == "missing":
        return f"{key}: missing; expected a value"
    found = json.dumps(detail["input"], ensure_ascii=False, default=str)
    if detail["type"] == "extra_forbidden":
        return f"{key}: unknown key (found {found}); expected one of {', '.join(_keys(detail['loc'][:-1]))}"
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
    "tuple_type": "a list",
    "model_type": "a section",
    "string_pattern_mismatch": "lower-case letters, digits, - and _, a letter or digit first",
}


def _keys(section: Sequence[str | int]) -> list[str]:
    model: Any = Recipe
    for part in section:
        model = model.model_fields[str(part)].annotation
    return list(model.model_fields)


def _contradictions(raw: dict[str, Any]) -> Iterator[str]:
    """Combinations that make no sense, in a recipe that may have other problems too."""
    section = raw.get("data")
    data: dict[str, Any] = section if isinstance(section, dict) else {}
    if "hub" in data and "format" in data:
        yield "data.format: found together with data.hub; expected without it, a hub data set knows its format"
    if "hub_config" in data and "hub" not in data:
        yield "data.hub_config: found without data.hub; expected together with it"
    if "validation" in data and "validation_fraction" in data:
        yield "data.validation_fraction: found together with data.validation; expected one of the two"
    for left, right in [("train", "test"), ("train", "validation"), ("validation", "test")]:
        if left in data and data[left] == data.get(right):
            yield f"data.{right}: found the same as data.{left}; expected other rows"
    columns = [data.get("text_column", "text"), data.get("text_pair_column"), data.get("label_column", "label")]
    named = [str(column) for column in columns if column is not None]
    if len(set(named)) < len(named):
        yield f"data: found the columns {', '.join(named)}; expected a column of its own for each"
    yield from _label_contradictions(raw.get("labels"))


def _label_contradictions(labels: Any) -> Iterator[str]:
    if not isinstance(labels, list):
        return
    if len(labels) < 2:
        yield f"labels: found {labels}; expected at least two"
    repeated = sorted({str(label) for label in labels if labels.count(label) > 1})
    if repeated:
        yield f"labels: found {', '.join(repeated)} more than once; expected each label once"


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
