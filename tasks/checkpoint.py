"""Contract 1: the checkpoint directory, and whether one is finished."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.base import SCHEMA_VERSION, TaskSpec
from tasks.errors import CheckpointError

__all__ = ["METRICS_FILE", "RUN_FILE", "TASK_FILE", "TaskFile", "is_finished", "labels_of_config", "read_task_spec"]

TASK_FILE = "task.json"
RUN_FILE = "run.json"
METRICS_FILE = "metrics.json"


class TaskFile(BaseModel):
    """`task.json`: written last, so a directory without it is an unfinished one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    task: str
    max_length: int = Field(ge=1)
    options: dict[str, Any] = Field(default_factory=dict)


def is_finished(directory: Path) -> bool:
    """Whether training wrote everything that belongs to this checkpoint."""
    return (directory / TASK_FILE).is_file()


def read_task_spec(directory: Path) -> TaskSpec:
    """The task of a checkpoint that paritybit trained.

    Raises:
        CheckpointError: if the directory is missing, unfinished, or of an unknown schema.
    """
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such checkpoint directory")
    if not is_finished(directory):
        raise CheckpointError(f"{directory}: unfinished checkpoint ({TASK_FILE} is missing); run finetune again")
    try:
        task_file = TaskFile.model_validate_json((directory / TASK_FILE).read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{directory / TASK_FILE}: {key}: {first['msg']}") from None
    if task_file.schema_version != SCHEMA_VERSION:
        raise CheckpointError(
            f"{directory / TASK_FILE}: schema_version {task_file.schema_version}; this version reads {SCHEMA_VERSION}"
        )
    return TaskSpec(
        task=task_file.task,
        labels=labels_of_config(directory / "config.json"),
        max_length=task_file.max_length,
        options=task_file.options,
    )


def labels_of_config(path: Path) -> tuple[str, ...]:
    """The labels of a Hugging Face `config.json`, by id.

    Raises:
        CheckpointError: if the file is missing, malformed, or its ids are not 0 … n-1.
    """
    try:
        id2label: dict[str, str] = json.loads(path.read_bytes())["id2label"]
        ids: Sequence[int] = sorted(map(int, id2label))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing") from None
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: id2label is not readable: {error}") from None
    if list(ids) != list(range(len(ids))):
        raise CheckpointError(f"{path}: the ids of id2label are {list(ids)[:5]}…, expected 0 to {len(ids) - 1}")
    return tuple(id2label[str(index)] for index in ids)
