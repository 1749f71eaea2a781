"""Combinations in a recipe that make no sense, each as `key: found …; expected …`.

They are looked for in what was read from the file, which may have any other problem too.
"""

import json
from collections.abc import Iterator
from typing import Any

from finetune.rows import Columns
from tasks.base import Task

__all__ = ["data_contradictions", "task_contradictions", "training_contradictions"]

_FOR_LABELS = ("label_smoothing", "class_weights", "focal_gamma")
_FOR_SEVERAL_LABELS = ("focal_gamma", "max_positive_weight", "negative_gamma", "probability_margin")


def data_contradictions(raw: dict[str, Any]) -> Iterator[str]:
    """Keys of `[data]` that exclude each other. Not for a stored recipe, which has every default filled in."""
    data = _section(raw, "data")
    if "hub" in data and "format" in data:
        yield "data.format: found together with data.hub; expected without it, a hub data set knows its format"
    if "hub_config" in data and "hub" not in data:
        yield "data.hub_config: found without data.hub; expected together with it"
    if "validation" in data and "validation_fraction" in data:
        yield "data.validation_fraction: found together with data.validation; expected one of the two"
    for left, right in [("train", "test"), ("train", "validation"), ("validation", "test")]:
        if left in data and data[left] == data.get(right):
            yield f"data.{right}: found the same as data.{left}; expected other rows"


def task_contradictions(raw: dict[str, Any], task: type[Task]) -> Iterator[str]:
    """Labels and columns that the task cannot have."""
    yield from _of_labels(raw.get("labels"), task)
    named = _section(_section(raw, "data"), "columns")
    yield from _of_columns({field: column for field, column in named.items() if isinstance(column, str)}, task)


def training_contradictions(raw: dict[str, Any], task: type[Task]) -> Iterator[str]:
    """Keys of `[train]`, `[loss]` and `[regularize]` that exclude or need each other, or that the task cannot use.

    Not for a stored recipe, which has every default filled in.
    """
    train, loss, regularize = (_section(raw, name) for name in ("train", "loss", "regularize"))
    if train.get("gradual_unfreezing") and train.get("freeze_encoder"):
        yield "train.gradual_unfreezing: found together with train.freeze_encoder; expected one of the two"
    if "lora_alpha" in train and not train.get("lora_rank"):
        yield "train.lora_alpha: found without train.lora_rank; expected together with it"
    if train.get("lora_rank"):
        yield from _with_adapters(train, regularize)
    if loss.get("label_smoothing") and loss.get("class_weights", "none") != "none":
        yield "loss.label_smoothing: found together with loss.class_weights; expected one of the two"
    usable = _usable_loss_keys(task)
    for key in loss:
        if key not in usable and key in (*_FOR_LABELS, *_FOR_SEVERAL_LABELS):
            expected = ", ".join(usable) or "none"
            yield f"loss.{key}: found with the task {task.name}, which has no use for it; expected {expected}"
    if "adversarial_steps" in regularize and not regularize.get("adversarial_epsilon"):
        yield "regularize.adversarial_steps: found without regularize.adversarial_epsilon; expected together with it"
    for key, average in (("ema_decay", "ema"), ("swa_share", "swa")):
        if key in regularize and regularize.get("average") != average:
            yield f'regularize.{key}: found without regularize.average = "{average}"; expected together with it'
    # a layer drawn anew has no pre-trained weights to go back to
    for key in ("mixout", "pull_to_pretrained"):
        if regularize.get(key) and train.get("reinitialize_layers"):
            yield f"regularize.{key}: found with train.reinitialize_layers; expected one of the two"
    if regularize.get("r_drop") and train.get("dropout") == 0:
        yield "regularize.r_drop: found with train.dropout = 0; expected some dropout, by which two passes differ"


def _with_adapters(train: dict[str, Any], regularize: dict[str, Any]) -> Iterator[str]:
    """What would train, draw or pull weights that adapters leave as they are."""
    for key in ("freeze_encoder", "biases_only", "reinitialize_layers"):
        if train.get(key):
            yield f"train.{key}: found together with train.lora_rank; expected one of the two"
    for key in ("mixout", "pull_to_pretrained"):
        if regularize.get(key):
            yield f"regularize.{key}: found together with train.lora_rank; expected one of the two"


def _usable_loss_keys(task: type[Task]) -> tuple[str, ...]:
    if task.loss == "binary_cross_entropy":
        return _FOR_SEVERAL_LABELS
    # what a span chooses among are places, which are neither rare nor alike
    return _FOR_LABELS if task.loss == "cross_entropy" and task.takes_labels else ()


def _of_labels(labels: Any, task: type[Task]) -> Iterator[str]:
    if not isinstance(labels, list):
        return
    if not task.takes_labels:
        found = json.dumps(labels, ensure_ascii=False)
        yield f"labels: found {found}; expected none, {task.name} has no labels to name"
    repeated = sorted({str(label) for label in labels if labels.count(label) > 1})
    if repeated:
        yield f"labels: found {', '.join(repeated)} more than once; expected each label once"


def _of_columns(named: dict[str, str], task: type[Task]) -> Iterator[str]:
    kinds = [(*form.required, *form.optional) for form in task.fields]
    fields = list(dict.fromkeys(field for kind in kinds for field in kind))
    unknown = [field for field in named if field not in fields]
    for field in unknown:
        yield f"data.columns.{field}: unknown field (found {named[field]!r}); expected one of {', '.join(fields)}"
    columns = Columns(task.fields, named)
    if not unknown and not columns.possible:
        expected = "; or ".join(", ".join(kind) for kind in kinds)
        yield f"data.columns: found {', '.join(named)}; expected fields of one kind of row: {expected}"
    if shared := columns.clash():
        yield f"data.columns: found the column {shared!r} for two fields; expected a column of its own for each"


def _section(raw: dict[str, Any], name: str) -> dict[str, Any]:
    section = raw.get(name)
    return section if isinstance(section, dict) else {}
