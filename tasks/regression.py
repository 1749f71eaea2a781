"""Regression: one number for a text, or for how alike two texts are."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field

from tasks.base import Answer, Encoded, Example, Fields, FloatArray, Frozen, LossName, Task, TaskSpec, options_of
from tasks.classification import (
    Scores,
    TextOptions,
    averaged,
    collated,
    encode_texts,
    read_text,
    repeated,
    text_fields,
    texts_of,
    truncated,
)
from tasks.encoding import Texts, Tokenizer
from tasks.errors import DataError, ParitybitError
from tasks.inputs import Input, TextInput
from tasks.reading import number_cell

__all__ = ["Regression", "RegressionOptions", "RegressionParameters", "correlation", "ranks"]

_SAME = 0.2
"""Standard deviations of the training numbers that two answers may differ by and still say the same: what Cohen (1988)
calls a small effect."""

_COLLAPSED = 0.05
"""Standard deviations of the training numbers; predictions that spread less tell the inputs not apart."""


class RegressionOptions(TextOptions):
    """`[options]` of regression. The model learns `(number - mean) / std`."""

    mean: float = Field(default=0.0, description="Of the numbers; that of the training rows when missing.")
    std: float = Field(default=1.0, gt=0, description="Standard deviation; that of the training rows when missing.")


class RegressionParameters(Frozen):
    """Per-request parameters: there are none."""


class Regression:
    """One number a text. Outputs are standardised numbers of shape `[1]`; a gold is a float in the data's unit."""

    name: ClassVar[str] = "regression"
    auto_model: ClassVar[str] = "AutoModelForSequenceClassification"
    problem_type: ClassVar[str | None] = "regression"
    loss: ClassVar[LossName] = "squared_error"
    primary_metric: ClassVar[str] = "spearman"
    min_agreement: ClassVar[float] = 0.98
    takes_labels: ClassVar[bool] = False
    input_types: ClassVar[tuple[type, ...]] = (TextInput,)
    fields: ClassVar[tuple[Fields, ...]] = text_fields("label")
    options: ClassVar[type[BaseModel]] = RegressionOptions
    parameters: ClassVar[type[BaseModel]] = RegressionParameters

    def __init__(self, spec: TaskSpec) -> None:
        """Keeps the specification.

        Raises:
            ParitybitError: if there is not exactly one output, or an option is wrong.
        """
        if len(spec.labels) != 1:
            raise ParitybitError(f"{self.name} has one output, got {list(spec.labels)}")
        self.spec = spec
        self._options = options_of(spec, RegressionOptions)

    @classmethod
    def read_row(cls, values: Mapping[str, Any], options: Any) -> Example:
        """A text, perhaps a second one, and a number."""
        return Example(read_text(values), number_cell(values["label"]))

    @classmethod
    def names(cls, gold: float) -> tuple[str, ...]:
        """None: a number names nothing."""
        return ()

    @classmethod
    def group(cls, one: Input) -> Hashable | None:
        """Every row stands for itself."""
        return None

    @classmethod
    def make_spec(
        cls, golds: Sequence[float], *, labels: tuple[str, ...] | None, max_length: int, options: Any
    ) -> TaskSpec:
        """One output, named `score` unless a name is given, and the scale of the rows unless it is given."""
        if len(set(golds)) < 2:
            raise DataError(f"every row says {golds[0]:g}; expected different numbers")
        learnt = {"mean": float(np.mean(golds)), "std": float(np.std(golds))}
        missing = {name: value for name, value in learnt.items() if name not in options.model_fields_set}
        return TaskSpec(
            task=cls.name,
            labels=labels or ("score",),
            max_length=max_length,
            options=options.model_copy(update=missing).model_dump(exclude_defaults=True),
        )

    def check(self, gold: float) -> None:
        """Every number is known."""

    def texts(self, one: Input) -> Texts:
        """The text or the pair."""
        return texts_of(one)

    def encode(self, tokenizer: Tokenizer, inputs: Sequence[Input]) -> Encoded:
        """One window an input, or several where the options say so."""
        return encode_texts(tokenizer, inputs, self._options)

    def targets(self, encoded: Encoded, golds: Sequence[float]) -> list[float]:
        """Standardised numbers."""
        return repeated(encoded, [(gold - self._options.mean) / self._options.std for gold in golds])

    def initial_bias(self, targets: Sequence[float]) -> FloatArray | None:
        """None."""
        return None

    def collate_targets(self, targets: Sequence[float], length: int) -> dict[str, npt.NDArray[Any]]:
        """`labels`, float32, shape `[batch]`."""
        return collated(targets, np.float32)

    def decode(self, outputs: Sequence[FloatArray], encoded: Encoded, parameters: Any) -> list[Answer]:
        """`{"score": float, "truncated": bool}`, the score in the unit of the data."""
        if not encoded.inputs:
            return []
        scores = self._predictions(outputs, encoded).tolist()
        return [{"score": score, "truncated": cut} for score, cut in zip(scores, truncated(encoded), strict=True)]

    def summary(self, answer: Answer) -> str:
        """The number, to four digits."""
        return self.gold_summary(answer["score"])

    def gold_summary(self, gold: float) -> str:
        """The number, to four digits."""
        return f"{gold:.4g}"

    def same_answer(
        self, left: Sequence[FloatArray], right: Sequence[FloatArray], encoded: Encoded
    ) -> npt.NDArray[np.bool_]:
        """Whether the numbers differ by at most a fifth of the standard deviation of the training rows."""
        return np.asarray(np.abs(averaged(left, encoded) - averaged(right, encoded))[:, 0] <= _SAME)

    def metrics(self, outputs: Sequence[FloatArray], encoded: Encoded, golds: Sequence[float]) -> dict[str, float]:
        """Pearson and Spearman correlation, mean squared and mean absolute error in the unit of the data."""
        predicted, gold = self._predictions(outputs, encoded), np.array(golds)
        return {
            "pearson": correlation(predicted, gold),
            "spearman": self.score(self.statistics(outputs, encoded, golds)),
            "mse": float(np.square(predicted - gold).mean()),
            "mae": float(np.abs(predicted - gold).mean()),
        }

    def statistics(
        self, outputs: Sequence[FloatArray], encoded: Encoded, golds: Sequence[float]
    ) -> npt.NDArray[np.float64]:
        """Prediction and gold number; shape `[inputs, 2]`."""
        return np.column_stack([self._predictions(outputs, encoded), golds])

    def score(self, statistics: npt.NDArray[np.float64]) -> float:
        """Spearman correlation."""
        return correlation(ranks(statistics[:, 0]), ranks(statistics[:, 1]))

    def confidences(
        self, outputs: Sequence[FloatArray], encoded: Encoded, golds: Sequence[Any]
    ) -> npt.NDArray[np.float64] | None:
        """None: a number comes without a probability."""
        return None

    def tuned(self, outputs: Sequence[FloatArray], encoded: Encoded, golds: Sequence[float]) -> Task:
        """Itself: a number needs no threshold."""
        return self

    def concerns(self, outputs: Sequence[FloatArray], encoded: Encoded) -> list[str]:
        """Whether the predictions are all about the same."""
        if averaged(outputs, encoded).std() >= _COLLAPSED:
            return []
        return [f"the model collapsed: it always predicts about {self._predictions(outputs, encoded).mean():.4g}"]

    def _predictions(self, outputs: Sequence[FloatArray], encoded: Encoded) -> Scores:
        return averaged(outputs, encoded)[:, 0] * self._options.std + self._options.mean


def correlation(left: Scores, right: Scores) -> float:
    """Pearson correlation; 0 where one side is constant.

    Args:
        left: float64, shape `[rows]`.
        right: the same.
    """
    if np.ptp(left) == 0 or np.ptp(right) == 0:
        return 0.0
    left, right = left - left.mean(), right - right.mean()
    return float(left @ right / np.sqrt((left @ left) * (right @ right)))


def ranks(values: Scores) -> Scores:
    """Ranks from 1, equal values sharing the mean of theirs; float64, shape `[rows]`."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((counts.cumsum() - (counts - 1) / 2)[place])
