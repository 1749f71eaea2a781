"""The recipe: one TOML file that says what is trained, on what, how, and how strictly its export is judged.

Nothing heavy is imported here, so that `--help` and a recipe's errors come at once.
"""

import copy
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, Field, JsonValue, ValidationError, field_validator, model_validator

from finetune.contradictions import data_contradictions, task_contradictions, training_contradictions
from tasks.base import Frozen
from tasks.catalogue import TASKS
from tasks.checkpoint import RUN_FILE
from tasks.errors import CheckpointError, RecipeError

__all__ = [
    "DataSection",
    "ExportSection",
    "Format",
    "LossSection",
    "Recipe",
    "RegularizeSection",
    "SweepRange",
    "SweepSection",
    "TrainSection",
    "load_recipe",
    "recipe_of_run",
]

Format = Literal["csv", "tsv", "jsonl", "parquet", "conll", "squad"]
Name = Annotated[str, Field(min_length=1)]
Ratio = Annotated[float, Field(ge=0, lt=1)]

_DEFAULT_TASK = "single_label"
_Model = TypeVar("_Model", bound=BaseModel)


class DataSection(Frozen):
    """`[data]`: where the rows stand and which columns matter."""

    hub: str | None = Field(default=None, description="Id of a hub data set, or a local directory of one.")
    hub_config: str | None = Field(default=None, description="Configuration of the hub data set.")
    train: str = Field(min_length=1, description="File, relative to the recipe; with `hub`, the name of a split.")
    validation: str | None = Field(default=None, min_length=1, description="As `train`; cut from it when missing.")
    test: str = Field(min_length=1, description="As `train`; used once, at the end, and for the parity check.")
    format: Format | None = Field(default=None, description="Of the files; told from their suffix when missing.")
    columns: dict[str, Name] = Field(
        default={},
        description="The column of each field of the task that does not bear the field's name; optional fields are "
        "read only when named here.",
    )
    validation_fraction: float = Field(
        default=0.1, gt=0, lt=1, description="Share of the training rows, stratified, when `validation` is missing."
    )


class TrainSection(Frozen):
    """`[train]`: the defaults are Mosbach et al. 2021 (arXiv:2006.04884), shortened."""

    learning_rate: float | None = Field(
        default=None, gt=0, le=1, description="Peak; chosen by the base model's width when missing: 2e-4, 3e-5 or 2e-5."
    )
    epochs: int | None = Field(
        default=None, ge=1, description="Chosen when missing: 4, or with few rows as many as make 400 steps."
    )
    batch_size: int = Field(default=32, ge=1, description="Rows of an optimizer step.")
    micro_batch_size: int | None = Field(
        default=None, ge=1, description="Rows in memory at once; a divisor of `batch_size`, which it is when missing."
    )
    optimizer: Literal["adamw", "adafactor", "adamw_8bit"] = Field(
        default="adamw", description="8 bit is for CUDA and needs bitsandbytes."
    )
    bias_correction: bool = Field(default=True, description="Without it Adam is that of the first BERT, and unstable.")
    schedule: Literal["linear", "cosine", "polynomial", "constant"] = Field(
        default="linear", description="Of the learning rate after the warm-up; down to 0 but for constant."
    )
    warmup_ratio: Ratio = Field(default=0.1, description="Share of all steps.")
    weight_decay: Ratio = Field(default=0.01, description="Not on biases and norms.")
    adam_epsilon: float = Field(default=1e-6, gt=0, le=1)
    max_grad_norm: float = Field(default=1.0, ge=0, description="Gradients are clipped to this norm; 0 clips nothing.")
    evaluations_per_epoch: int = Field(
        default=1, ge=1, description="The best evaluated checkpoint is kept. At most 20 in all where epochs are chosen."
    )
    early_stopping_patience: int = Field(
        default=3, ge=0, description="Evaluations without a better one after which training stops; 0 never stops."
    )
    dropout: Ratio | None = Field(
        default=None, description="Of every layer in training; the base model's own when missing. 0 learns fastest."
    )
    freeze_embeddings: bool = Field(default=False, description="Keeps the embeddings as pre-trained; saves time.")
    freeze_layers: int = Field(
        default=0, ge=0, description="That many of the lowest layers stay as pre-trained, with the embeddings."
    )
    freeze_encoder: bool = Field(default=False, description="Trains the head alone.")
    biases_only: bool = Field(
        default=False,
        description="Trains the head and all biases (BitFit, Ben Zaken et al. 2022), at a higher rate.",
    )
    gradual_unfreezing: bool = Field(
        default=False, description="The head alone at first, one layer more with each epoch (Howard & Ruder 2018)."
    )
    layer_decay: float = Field(
        default=1.0, gt=0, le=1, description="Learning rate of a layer over that of the layer above (Sun et al. 2019)."
    )
    reinitialize_layers: int = Field(
        default=0, ge=0, description="That many of the top layers, and the pooler, drawn anew (Zhang et al. 2021)."
    )
    keep_layers: int | None = Field(
        default=None, ge=1, description="Leaves out the layers above: smaller and faster (Sajjad et al. 2020)."
    )
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="bf16 autocast is meant for GPUs.")


class LossSection(Frozen):
    """`[loss]`: changes to what the task minimises. A key that it has no use for is refused."""

    label_smoothing: Ratio = Field(default=0.0, description="Share of each target given to all labels alike.")
    class_weights: Literal["none", "inverse", "sqrt_inverse", "effective_number"] = Field(
        default="none", description="Rare labels count for more (Cui et al. 2019); not together with smoothing."
    )
    focal_gamma: float = Field(
        default=0.0, ge=0, description="What is right already counts for less (Lin et al. 2017); 2 is usual."
    )
    max_positive_weight: float = Field(
        default=1.0, ge=1, description="Of several labels: a label on a text counts by its rarity, up to this."
    )
    negative_gamma: float | None = Field(
        default=None, ge=0, description="`focal_gamma` of labels that a text has not (Ridnik et al. 2021); 4 is usual."
    )
    probability_margin: Ratio = Field(
        default=0.0, description="Labels that a text has not and that are less probable count nothing; .05 is usual."
    )


class RegularizeSection(Frozen):
    """`[regularize]`: all off by default."""

    r_drop: float = Field(
        default=0.0,
        ge=0,
        description="Weight of how far two passes with dropout differ (Liang et al. 2021); 1 to 5.",
    )
    adversarial_epsilon: float = Field(
        default=0.0, ge=0, description="Length by which word embeddings are moved to where the loss rises; 1 is usual."
    )
    adversarial_steps: int = Field(
        default=1, ge=1, description="1 is FGM (Miyato et al. 2017), more is FreeLB (Zhu et al. 2020)."
    )
    neftune_alpha: float = Field(
        default=0.0, ge=0, description="Noise on word embeddings (Jain et al. 2023); 5 is usual."
    )
    mixout: Ratio = Field(
        default=0.0, description="Share of weights replaced by pre-trained ones at each step (Lee et al. 2020); .1."
    )
    pull_to_pretrained: Ratio = Field(
        default=0.0, description="Weight decay towards the pre-trained weights (L2-SP, Li et al. 2018)."
    )
    average: Literal["none", "ema", "swa"] = Field(
        default="none", description="Which average of the weights is evaluated and published."
    )
    ema_decay: Ratio = Field(default=0.999, description="Of the exponential average.")
    swa_share: float = Field(default=0.25, gt=0, le=1, description="Last part of training, of the equal average.")


class SweepRange(Frozen):
    """What a key is searched in: from `low` to `high`, both included, or among `choices`."""

    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    choices: tuple[bool | int | float | str, ...] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.choices is None) == (self.low is None) or (self.low is None) != (self.high is None):
            raise ValueError("low and high, or choices")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError("a low that is less than high")
        if self.log and (self.low is None or self.low <= 0):
            raise ValueError("log with a low above 0")
        return self

    def ends(self) -> tuple[bool | int | float | str, ...]:
        """Values that a recipe must be able to take."""
        return self.choices or tuple(one for one in (self.low, self.high) if one is not None)


class SweepSection(Frozen):
    """`[sweep]`: what `paritybit sweep` searches."""

    trials: int = Field(default=20, ge=1, description="Trainings, those that are given up early included.")
    ranges: dict[str, SweepRange] = Field(
        min_length=1,
        description="By key: `{ low = 1e-5, high = 1e-3, log = true }` or `{ choices = [16, 32] }`.",
    )


class ExportSection(Frozen):
    """`[export]`: what is built from the checkpoint and the gates it must pass."""

    variants: tuple[Literal["fp32", "int8-dynamic", "int8-static", "fp16"], ...] = Field(
        default=("fp32", "int8-dynamic", "int8-static"),
        min_length=1,
        description="What may be published; fp16 is for ONNX Runtime on CUDA, slow on processors.",
    )
    objective: Literal["balanced", "latency", "throughput", "size"] = Field(
        default="balanced",
        description="What the published variant is best at: texts alone, in batches, both, or bytes.",
    )
    calibration_rows: int = Field(default=256, ge=1, description="Training rows that set the static int8 scales.")
    int8_embeddings: bool = Field(
        default=False,
        description="Also the word embeddings of int8 variants; where the objective is size, they are tried anyway.",
    )
    rehearsal_rows: int = Field(
        default=500, ge=1, description="Validation rows that ways to quantize are tried on before one is judged."
    )
    max_logit_delta: float = Field(default=1e-4, gt=0, description="fp32 against PyTorch.")
    min_agreement: float | None = Field(
        default=None, ge=0, le=1, description="Same answers, int8 against PyTorch; the task's own limit when missing."
    )
    max_metric_loss: float = Field(default=0.005, ge=0, le=1, description="Of the task's metric, int8.")
    max_batch_delta: float = Field(default=1e-6, ge=0, description="Of a text's logits, whatever the company.")
    opset: int = Field(default=20, ge=18, le=23)
    golden_rows: int = Field(default=16, ge=1)


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
