"""The tasks that this version knows."""

from collections.abc import Callable

from tasks.base import Task, TaskSpec
from tasks.errors import ParitybitError
from tasks.single_label import SingleLabel

__all__ = ["TASKS", "load_task"]

TASKS: dict[str, Callable[[TaskSpec], Task]] = {SingleLabel.name: SingleLabel}
"""By the name that `task.json` and a manifest give them."""


def load_task(spec: TaskSpec) -> Task:
    """The task object of a specification.

    Raises:
        ParitybitError: if the task is unknown to this version.
    """
    if spec.task not in TASKS:
        raise ParitybitError(f"unknown task {spec.task!r}; this version knows: {', '.join(TASKS)}")
    return TASKS[spec.task](spec)
