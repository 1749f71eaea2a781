"""The tasks that this version knows."""

from tasks.base import Task, TaskSpec
from tasks.errors import ParitybitError
from tasks.multi_label import MultiLabel
from tasks.question_answering import QuestionAnswering
from tasks.regression import Regression
from tasks.single_label import SingleLabel
from tasks.token_classification import TokenClassification

__all__ = ["TASKS", "load_task"]

_CLASSES: tuple[type[Task], ...] = (SingleLabel, MultiLabel, Regression, TokenClassification, QuestionAnswering)

TASKS: dict[str, type[Task]] = {task.name: task for task in _CLASSES}
"""By the name that `task.json` and a manifest give them."""


def load_task(spec: TaskSpec) -> Task:
    """The task object of a specification.

    Raises:
        ParitybitError: if the task is unknown to this version.
    """
    if spec.task not in TASKS:
        raise ParitybitError(f"unknown task {spec.task!r}; this version knows: {', '.join(TASKS)}")
    return TASKS[spec.task](spec)
