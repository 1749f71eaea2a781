"""Single-label classification of a text or a pair of texts."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field

from tasks.base import Answer, Encoded, Example, Fields, FloatArray, Frozen, LossName, Task, TaskSpec, options_of
from tasks.calibration import best_temperature
from tasks.classification import (
    Scores,
    TextOptions,
    averaged,
    check_labels,
    collated,
    encode_texts,
    ids_of,
    labelled,
    never_predicted,
    read_text,
    repeated,
    sigmoid,
    softmax,
    text_fields,
    texts_of,
)
from tasks.encoding import Texts, Tokenizer
from tasks.errors import DataError
from tasks.inputs import Input, TextInput
from tasks.reading import label_cell, sorted_labels

__all__ = ["SingleLabel", "SingleLabelOptions", "SingleLabelParameters"]


class SingleLabelParameters(Frozen):
    """Per-request parameters; the names are those of the Hugging Face inference form."""

    top_k: int | None = Field(default=None, ge=1, description="How many labels to return; all when missing.")
    function_to_apply: Literal["softmax", "sigmoid", "none"] = Field(
        default="softmax", description="What turns logits into scores; the temperature is softmax's alone."
    )


class SingleLabelOptions(TextOptions):
    """`[options]` of single-label classification."""

    temperature: float | None = Field(
        default=None, gt=0, description="Divides logits before the softmax; tuned on the validation rows where missing."
    )


class SingleLabel:
    """Exactly one label a text. Model outputs are logits of shape `[labels]`; a gold is the label's name."""

    name: ClassVar[str] = "single_label"
    auto_model: ClassVar[str] = "AutoModelForSequenceClassification"
    problem_type: ClassVar[str | None] = "single_label_classification"
    loss: ClassVar[LossName] = "cross_entropy"
    primary_metric: ClassVar[str] = "accuracy"
    min_agreement: ClassVar[float] = 0.99
    takes_labels: ClassVar[bool] = True
    input_types: ClassVar[tuple[type, ...]] = (TextInput,)
    fields: ClassVar[tuple[Fields, ...]] = text_fields("label")
    options: ClassVar[type[BaseModel]] = SingleLabelOptions
    parameters: ClassVar[type[BaseModel]] = SingleLabelParameters

    def __init__(self, spec: TaskSpec) -> None:
        """Keeps the specification.

        Raises:
            ParitybitError: if there are fewer than two labels, one stands twice, or an option is wrong.
        """
        check_labels(spec, least=2)
        self.spec = spec
        self._options = options_of(spec, SingleLabelOptions)
        self._temperature = self._options.temperature or 1.0
        self._ids = ids_of(spec.labels)

    @classmethod
    def read_row(cls, values: Mapping[str, Any], options: Any) -> Example:
        """A text, perhaps a second one, and a label given as a string or a number."""
        return Example(read_text(values), label_cell(values["label"]))

    @classmethod
    def names(cls, gold: str) -> tuple[str, ...]:
        """The label."""
        return (gold,)

    @classmethod
    def group(cls, one: Input) -> Hashable | None:
        """Every row stands for itself."""
        return None

    @classmethod
    def make_spec(
        cls, golds: Sequence[str], *, labels: tuple[str, ...] | None, max_length: int, options: Any
    ) -> TaskSpec:
        """The labels of the rows, sorted, unless they are given."""
        known = labels or sorted_labels(golds)
        if len(known) < 2:
            raise DataError(f"one label only, {known[0]!r}; expected at least two")
        return TaskSpec(
            task=cls.name, labels=known, max_length=max_length, options=options.model_dump(exclude_defaults=True)
        )

    def check(self, gold: str) -> None:
        """Whether the label is known."""
        if gold not in self._ids:
            raise DataError(f"unknown label {gold!r}")

    def texts(self, one: Input) -> Texts:
        """The text or the pair."""
        return texts_of(one)

    def encode(self, tokenizer: Tokenizer, inputs: Sequence[Input]) -> Encoded:
        """One window an input, or several where the options say so."""
        return encode_texts(tokenizer, inputs, self._options)

    def targets(self, encoded: Encoded, golds: Sequence[str]) -> list[int]:
        """Label ids."""
        return repeated(encoded, [self._ids[gold] for gold in golds])

    def initial_bias(self, targets: Sequence[int]) -> FloatArray | None:
        """None."""
        return None

    def collate_targets(self, targets: Sequence[int], length: int) -> dict[str, npt.NDArray[Any]]:
        """`labels`, int64, shape `[batch]`."""
        return collated(targets, np.int64)

    def decode(self, outputs: Sequence[FloatArray], encoded: Encoded, parameters: Any) -> list[Answer]:
        """Labels by falling score: `{"labels": [{"label": str, "score": float}, …], "truncated": bool}`."""
        if not encoded.inputs:
            return []
        logits = averaged(outputs, encoded)
        # by logits: the scores of far ones are all 1.0
        order = np.argsort(-logits, axis=1, kind="stable")[:, : parameters.top_k]
        scores = self._scores(logits, parameters.function_to_apply)
        return labelled(encoded, self.spec.labels, scores, order)

    def summary(self, answer: Answer) -> str:
        """The best label."""
        return str(answer["labels"][0]["label"])

    def gold_summary(self, gold: str) -> str:
        """The label."""
        return gold

    def same_answer(
        self, left: Sequence[FloatArray], right: Sequence[FloatArray], encoded: Encoded
    ) -> npt.NDArray[np.bool_]:
        """Whether the best label is the same."""
        return np.asarray(_best(left, encoded) == _best(right, encoded))

    def metrics(self, outputs: Sequence[FloatArray], encoded: Encoded, golds: Sequence[str]) -> dict[str, float]:
        """Accuracy, macro-F1 over the labels that occur, and Matthews correlation (scikit-learn's definitions).

        The correlation is 0.0 where a single label is all that occurs.
        """
        from sklearn.metrics import f1_score, matthews_corrcoef

        predicted = _best(outputs, encoded)
        gold = np.array([self._ids[one] for one in golds])
        # scikit-learn says so too, but warns
        is_constant = len({*gold.tolist(), *predicted.tolist()}) == 1
        return {
            "accuracy": float((predicted == gold).mean()),
            "macro_f1": float(f1_score(gold, predicted, average="macro", zero_division=0.0)),
            "mcc": 0.0 if is_constant else float(matthews_corrcoef(gold, predicted)),
        }

    def statistics(
        self, outputs: Sequence[FloatArray], encoded: Encoded, golds: Sequence[str]
    ) -> npt.NDArray[np.float64]:
        """1.0 where the label is right, else 0.0; shape `[inputs, 1]`."""
        right = _best(outputs, encoded) == np.array([self._ids[one] for one in golds])
        return np.asarray(right.astype(np.float64)[:, None])

    def score(self, statistics: npt.NDArray[np.float64]) -> float:
        """Accuracy."""
        return float(statistics.mean())

    def confidences(
        self, outputs: Sequence[FloatArray], encoded: Encoded, golds: Sequence[str]
    ) -> npt.NDArray[np.float64] | None:
        """The score of each input's best label, and whether that label is right (Guo et al. 2017, arXiv:1706.04599)."""
        scores = self._scores(averaged(outputs, encoded), "softmax").max(axis=1)
        return np.column_stack([scores, self.statistics(outputs, encoded, golds)])

    def tuned(self, outputs: Sequence[FloatArray], encoded: Encoded, golds: Sequence[str]) -> Task:
        """The task with the temperature that makes scores probabilities, unless the options have one."""
        if self._options.temperature is not None:
            return self
        ids = np.array([self._ids[gold] for gold in golds])
        tuned = {"temperature": best_temperature(averaged(outputs, encoded), ids)}
        return SingleLabel(self.spec.model_copy(update={"options": self.spec.options | tuned}))

    def concerns(self, outputs: Sequence[FloatArray], encoded: Encoded) -> list[str]:
        """Whether one label is always predicted, or some never are."""
        counts = np.bincount(_best(outputs, encoded), minlength=len(self.spec.labels))
        if np.count_nonzero(counts) == 1:
            return [f"the model collapsed: it always predicts {self.spec.labels[counts.argmax()]!r}"]
        return never_predicted(self.spec.labels, counts > 0)

    def _scores(self, logits: Scores, function: str) -> Scores:
        if function == "softmax":
            return softmax(logits / self._temperature)
        return sigmoid(logits) if function == "sigmoid" else logits


def _best(outputs: Sequence[FloatArray], encoded: Encoded) -> npt.NDArray[np.intp]:
    return np.asarray(averaged(outputs, encoded).argmax(axis=1))
