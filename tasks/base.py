"""What every task is to the stages: one object that reads rows, encodes, decodes, scores and compares."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.encoding import FloatArray, IntArray, Texts, Tokenizer, Window
from tasks.errors import ParitybitError
from tasks.inputs import Input

__all__ = [
    "SCHEMA_VERSION",
    "Answer",
    "Encoded",
    "Example",
    "Fields",
    "FloatArray",
    "Frozen",
    "Gold",
    "IntArray",
    "LossName",
    "Task",
    "TaskSpec",
    "options_of",
]

SCHEMA_VERSION = 1

Answer = dict[str, Any]
"""A decoded answer, ready for JSON."""

Gold = Any
"""What a labelled row says, as the task's `read_row` gives it: hashable, and plain for JSON by `dataclasses.asdict`."""

LossName = Literal["cross_entropy", "binary_cross_entropy", "squared_error"]
"""What training minimises."""


class Frozen(BaseModel):
    """A frozen model that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TaskSpec(Frozen):
    """What a checkpoint and a bundle must say for a task object to be made.

    `task.json` of a checkpoint holds all of it but the labels, whose only home there is `config.json`'s `id2label`.
    """

    task: str
    labels: tuple[str, ...]
    max_length: int = Field(ge=1)
    options: dict[str, Any] = Field(default_factory=dict)


Options = TypeVar("Options", bound=BaseModel)


def options_of(spec: TaskSpec, kind: type[Options]) -> Options:
    """The options of a specification as a task's model of them.

    Raises:
        ParitybitError: naming the option that is unknown or does not make sense.
    """
    try:
        return kind.model_validate(spec.options)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, ("options", *first["loc"])))
        raise ParitybitError(f"{spec.task}: {place}: {first['msg']}") from None


@dataclass(frozen=True, slots=True)
class Fields:
    """Fields of a row of data, each by the name that its column has unless a recipe says otherwise."""

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Example:
    """A labelled row."""

    input: Input
    gold: Gold


@dataclass(frozen=True, slots=True)
class Encoded:
    """Inputs with their windows; `Window.row` is a position in `inputs`, the windows of an input stand together."""

    inputs: Sequence[Input]
    windows: Sequence[Window]

    def __len__(self) -> int:
        return len(self.inputs)

    def spans(self) -> list[slice]:
        """For each input, where its windows stand."""
        rows = [window.row for window in self.windows]
        begins = np.searchsorted(rows, np.arange(len(self.inputs) + 1))
        return [slice(int(begin), int(end)) for begin, end in pairwise(begins)]

    def lengths(self) -> list[int]:
        """Tokens of each input, over all its windows."""
        return [sum(map(len, self.windows[span])) for span in self.spans()]

    def part(self, rows: Sequence[int]) -> "tuple[Encoded, list[int]]":
        """Some of the inputs, and where their windows stand here, which is where their outputs do."""
        spans = self.spans()
        places = [place for row in rows for place in range(*spans[row].indices(len(self.windows)))]
        number = {row: place for place, row in enumerate(rows)}
        windows = [replace(self.windows[place], row=number[self.windows[place].row]) for place in places]
        return Encoded([self.inputs[row] for row in rows], windows), places


class Task(Protocol):
    """One task of an encoder. Implementations are frozen and hold no model.

    `outputs` below are a model's raw outputs, one float32 array a window, in the order of `encoded.windows`: of shape
    `[labels]`, or `[tokens, labels]` where the model answers each token. `golds` stand in the order of
    `encoded.inputs`.
    """

    name: ClassVar[str]
    auto_model: ClassVar[str]
    """Name of the transformers class that loads a checkpoint of this task."""
    problem_type: ClassVar[str | None]
    """What the configuration of a sequence classifier calls it."""
    loss: ClassVar[LossName]
    """Of the outputs and the arrays of `collate_targets`."""
    primary_metric: ClassVar[str]
    """The metric that keeps the best checkpoint and that quantization is judged by; higher is better."""
    min_agreement: ClassVar[float]
    """Share of the inputs that an int8 model must answer as PyTorch does, unless a recipe says otherwise."""
    takes_labels: ClassVar[bool]
    """Whether a recipe may name the labels and fix their order."""
    input_types: ClassVar[tuple[type, ...]]
    """What can be asked, the usual kind first."""
    fields: ClassVar[tuple[Fields, ...]]
    """The forms that a labelled row may have, the usual one first."""
    options: ClassVar[type[BaseModel]]
    """What a recipe may choose in `[options]`, and what training adds to it; `TaskSpec.options` holds its values."""
    parameters: ClassVar[type[BaseModel]]
    """What a caller may ask for with each request; unknown keys are refused."""

    spec: TaskSpec

    def __init__(self, spec: TaskSpec) -> None:
        """Raises ParitybitError if labels or options do not make sense."""

    # rows of data

    @classmethod
    def read_row(cls, values: Mapping[str, Any], options: Any) -> Example:
        """One labelled row.

        Args:
            values: by the names of one of `fields`; None where the row has none.
            options: an instance of `options`.

        Raises:
            DataError: saying what is wrong with the row, without its place.
        """
        ...

    @classmethod
    def names(cls, gold: Gold) -> tuple[str, ...]:
        """The labels that a row carries, for counting and for stratified splits; may be none."""
        ...

    @classmethod
    def group(cls, one: Input) -> Hashable | None:
        """Rows of an equal group must not be split between training and validation; None for a row of its own."""
        ...

    @classmethod
    def make_spec(
        cls, golds: Sequence[Gold], *, labels: tuple[str, ...] | None, max_length: int, options: Any
    ) -> TaskSpec:
        """The specification that training rows ask for: labels, and options that are learnt from the rows.

        Args:
            golds: of the training rows.
            labels: what the recipe fixes; read from the rows when None.
            max_length: of a window, in tokens.
            options: an instance of `options`.

        Raises:
            DataError: if the rows do not suffice.
        """
        ...

    def check(self, gold: Gold) -> None:
        """Raises DataError, without a place, for a gold label that the specification does not know."""
        ...

    # text to arrays

    def texts(self, one: Input) -> Texts:
        """What the tokenizer reads."""
        ...

    def encode(self, tokenizer: Tokenizer, inputs: Sequence[Input]) -> Encoded:
        """The inputs with their windows.

        Raises:
            InputError: naming the input by its position.
        """
        ...

    def targets(self, encoded: Encoded, golds: Sequence[Gold]) -> list[Any]:
        """What the loss wants of each window, in order."""
        ...

    def initial_bias(self, targets: Sequence[Any]) -> FloatArray | None:
        """What a new head says of every window before it has seen one: float32, shape `[labels]`.

        None where zeros say it well enough.

        Args:
            targets: of the training rows.
        """
        ...

    def collate_targets(self, targets: Sequence[Any], length: int) -> dict[str, npt.NDArray[Any]]:
        """Targets of a batch by the names of the model's arguments.

        Args:
            targets: of the windows of a batch.
            length: tokens of its longest window.

        Returns:
            int64 or float32 arrays, the first axis of length `batch`.
        """
        ...

    # arrays to answers

    def decode(self, outputs: Sequence[FloatArray], encoded: Encoded, parameters: Any) -> list[Answer]:
        """One answer per input."""
        ...

    def summary(self, answer: Answer) -> str:
        """What an answer of default parameters decides, in a few words, for reports."""
        ...

    def gold_summary(self, gold: Gold) -> str:
        """The right answer in the words of `summary`."""
        ...

    def same_answer(
        self, left: Sequence[FloatArray], right: Sequence[FloatArray], encoded: Encoded
    ) -> npt.NDArray[np.bool_]:
        """Whether two models' outputs decode to the same decision, input by input; shape `[inputs]`."""
        ...

    # quality

    def metrics(self, outputs: Sequence[FloatArray], encoded: Encoded, golds: Sequence[Gold]) -> dict[str, float]:
        """All metrics of the task over a whole split, `primary_metric` among them."""
        ...

    def statistics(
        self, outputs: Sequence[FloatArray], encoded: Encoded, golds: Sequence[Gold]
    ) -> npt.NDArray[np.float64]:
        """What `score` needs of each input, so that the primary metric can be had of any resample; `[inputs, k]`."""
        ...

    def score(self, statistics: npt.NDArray[np.float64]) -> float:
        """The primary metric of some rows of `statistics`."""
        ...

    def confidences(
        self, outputs: Sequence[FloatArray], encoded: Encoded, golds: Sequence[Gold]
    ) -> npt.NDArray[np.float64] | None:
        """How sure the model was of each thing it said, and whether that was so: what a calibration error is made of.

        Returns:
            float64, shape `[things, 2]`: the confidence, within 0 and 1, and 1.0 where it was right, else 0.0; None
            for a task whose answers carry no probability.
        """
        ...

    def tuned(self, outputs: Sequence[FloatArray], encoded: Encoded, golds: Sequence[Gold]) -> "Task":
        """The task with the thresholds that are best for these outputs; itself, where it has none."""
        ...

    def concerns(self, outputs: Sequence[FloatArray], encoded: Encoded) -> list[str]:
        """What a person should know about a split's outputs: collapse, labels never predicted; mostly nothing."""
        ...
