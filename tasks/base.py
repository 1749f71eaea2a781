"""What every task is to the stages: one object that encodes, decodes, scores and compares."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from tasks.encoding import TextInput, Tokenizer, Window

__all__ = ["SCHEMA_VERSION", "Answer", "FloatArray", "Task", "TaskSpec"]

SCHEMA_VERSION = 1

FloatArray = npt.NDArray[np.float32]
Answer = dict[str, Any]
"""A decoded answer, ready for JSON."""


class TaskSpec(BaseModel):
    """What a checkpoint and a bundle must say for a task object to be made.

    `task.json` of a checkpoint holds all of it but the labels, whose only home there is `config.json`'s `id2label`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    labels: tuple[str, ...]
    max_length: int = Field(ge=1)
    options: dict[str, Any] = Field(default_factory=dict)


class Task(Protocol):
    """One task of an encoder. Implementations are frozen and hold no model.

    `outputs` below are the model's raw outputs, one float32 array a window, in the order of `windows`.
    """

    name: str
    auto_model: str
    """Name of the transformers class that loads a checkpoint of this task."""
    primary_metric: str
    """The metric that keeps the best checkpoint and that quantization is judged by; higher is better."""
    spec: TaskSpec
    parameters: type[BaseModel]
    """What a caller may ask for with each request; unknown keys are refused."""

    def encode(self, tokenizer: Tokenizer, inputs: Sequence[TextInput]) -> list[Window]:
        """Windows of the inputs, in order; `Window.row` tells which input each belongs to."""
        ...

    def decode(self, outputs: Sequence[FloatArray], windows: Sequence[Window], parameters: BaseModel) -> list[Answer]:
        """One answer per input."""
        ...

    def target(self, label: str) -> Any:
        """What the loss wants for a gold label; raises DataError for an unknown one."""
        ...

    def metrics(self, outputs: Sequence[FloatArray], targets: Sequence[Any]) -> dict[str, float]:
        """All metrics of the task over a whole split."""
        ...

    def row_scores(self, outputs: Sequence[FloatArray], targets: Sequence[Any]) -> npt.NDArray[np.float64]:
        """What each row adds to the primary metric, so that their mean is the metric; for the bootstrap."""
        ...

    def summary(self, output: FloatArray) -> str:
        """The decoded answer of one row in a few words, for reports."""
        ...

    def concerns(self, outputs: Sequence[FloatArray]) -> list[str]:
        """What a person should know about a split's outputs: collapse, labels never predicted; mostly nothing."""
        ...

    def same_answer(self, left: Sequence[FloatArray], right: Sequence[FloatArray]) -> npt.NDArray[np.bool_]:
        """Whether two models' outputs decode to the same answer, row by row."""
        ...
