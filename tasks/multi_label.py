"""Multi-label classification: any number of labels for a text or a pair of texts, also none."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field

from tasks.base import Answer, Encoded, Example, Fields, FloatArray, Frozen, LossName, Task, TaskSpec, options_of
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
    text_fields,
    texts_of,
)
from tasks.encoding import Texts, Tokenizer
from tasks.errors import DataError, ParitybitError
from tasks.inputs import Input, TextInput
from tasks.reading import labels_cell, sorted_labels
from tasks.thresholds import cautious_cuts, f1

__all__ = ["MultiLabel", "MultiLabelOptions", "MultiLabelParameters"]

_UNTUNED = 0.5

Share = Annotated[float, Field(ge=0, le=1)]


class MultiLabelOptions(TextOptions):
    """`[options]` of multi-label classification."""

    label_separator: str = Field(default=",", min_length=1, description="What stands between labels given as one text.")
    thresholds: dict[str, Share] = Field(
        default={}, description="Score from which on a label is given; tuned on the validation rows where missing."
    )


class MultiLabelParameters(Frozen):
    """Per-request parameters."""

    top_k: int | None = Field(
        default=None,
        ge=1,
        description="How many labels to return, whatever their scores unless there is a threshold.",
    )
    threshold: float | None = Field(
        default=None, ge=0, le=1, description="Score from which on a label is returned, in place of the tuned ones."
    )


class MultiLabel:
    """Any number of labels a text. Outputs are logits of shape `[labels]`; a gold is a sorted tuple of labels."""

    name: ClassVar[str] = "multi_label"
    auto_model: ClassVar[str] = "AutoModelForSequenceClassification"
    problem_type: ClassVar[str | None] = "multi_label_classification"
    loss: ClassVar[LossName] = "binary_cross_entropy"
    primary_metric: ClassVar[str] = "macro_f1"
    min_agreement: ClassVar[float] = 0.99
    takes_labels: ClassVar[bool] = True
    input_types: ClassVar[tuple[type, ...]] = (TextInput,)
    fields: ClassVar[tuple[Fields, ...]] = text_fields("labels")
    options: ClassVar[type[BaseModel]] = MultiLabelOptions
    parameters: ClassVar[type[BaseModel]] = MultiLabelParameters

    def __init__(self, spec: TaskSpec) -> None:
        """Keeps the specification.

        Raises:
            ParitybitError: if there is no label, one stands twice, an option is wrong, or a threshold has no label.
        """
        check_labels(spec, least=1)
        self.spec = spec
        self._options = options_of(spec, MultiLabelOptions)
        self._ids = ids_of(spec.labels)
        thresholds = self._options.thresholds
        if strangers := sorted(thresholds.keys() - self._ids.keys()):
            raise ParitybitError(f"{self.name}: options.thresholds: unknown label {strangers[0]!r}")
        self._thresholds = np.array([thresholds.get(label, _UNTUNED) for label in spec.labels])

    @classmethod
    def read_row(cls, values: Mapping[str, Any], options: Any) -> Example:
        """A text, perhaps a second one, and its labels as a list or as one text; none of them is fine."""
        return Example(read_text(values), labels_cell(values["labels"], options.label_separator))

    @classmethod
    def names(cls, gold: tuple[str, ...]) -> tuple[str, ...]:
        """The labels."""
        return gold

    @classmethod
    def group(cls, one: Input) -> Hashable | None:
        """Every row stands for itself."""
        return None

    @classmethod
    def make_spec(
        cls, golds: Sequence[tuple[str, ...]], *, labels: tuple[str, ...] | None, max_length: int, options: Any
    ) -> TaskSpec:
        """The labels of the rows, sorted, unless they are given."""
        known = labels or sorted_labels(label for gold in golds for label in gold)
        if not known:
            raise DataError("no row carries a label")
        return TaskSpec(
            task=cls.name, labels=known, max_length=max_length, options=options.model_dump(exclude_defaults=True)
        )

    def check(self, gold: tuple[str, ...]) -> None:
        """Whether the labels are known."""
        for label in gold:
            if label not in self._ids:
                raise DataError(f"unknown label {label!r}")

    def texts(self, one: Input) -> Texts:
        """The text or the pair."""
        return texts_of(one)

    def encode(self, tokenizer: Tokenizer, inputs: Sequence[Input]) -> Encoded:
        """One window an input, or several where the options say so."""
        return encode_texts(tokenizer, inputs, self._options)

    def targets(self, encoded: Encoded, golds: Sequence[tuple[str, ...]]) -> list[FloatArray]:
        """For each window 1.0 for the labels of its input, else 0.0; float32, shape `[labels]`."""
        return repeated(encoded, list(self._multi_hot(golds).astype(np.float32)))

    def initial_bias(self, targets: Sequence[FloatArray]) -> FloatArray:
        """How often each label is given, as log-odds (Lin et al. 2017, Focal Loss for Dense Object Detection, 4.1).

        From even odds the encoder first learns to say no to everything, and hardly comes back from there.
        """
        given = np.sum(targets, axis=0) + 1
        log_odds: FloatArray = np.log(given / (len(targets) + 2 - given)).astype(np.float32)
        return log_odds

    def collate_targets(self, targets: Sequence[FloatArray], length: int) -> dict[str, npt.NDArray[Any]]:
        """`labels`, float32, shape `[batch, labels]`."""
        return collated(targets, np.float32)

    def decode(self, outputs: Sequence[FloatArray], encoded: Encoded, parameters: Any) -> list[Answer]:
        """Labels over their thresholds: `{"labels": [{"label": str, "score": float}, …], "truncated": bool}`.

        They stand by falling score; there may be none.
        """
        if not encoded.inputs:
            return []
        logits = averaged(outputs, encoded)
        scores = sigmoid(logits)
        given = scores >= self._asked_thresholds(parameters)
        order = np.argsort(-logits, axis=1, kind="stable")
        chosen = (ranked[row[ranked]][: parameters.top_k] for ranked, row in zip(order, given, strict=True))
        return labelled(encoded, self.spec.labels, scores, chosen)

    def summary(self, answer: Answer) -> str:
        """The labels by name: `joy, love`."""
        return self.gold_summary(sorted_labels(entry["label"] for entry in answer["labels"]))

    def gold_summary(self, gold: tuple[str, ...]) -> str:
        """The labels by name."""
        return ", ".join(gold) or "no label"

    def same_answer(
        self, left: Sequence[FloatArray], right: Sequence[FloatArray], encoded: Encoded
    ) -> npt.NDArray[np.bool_]:
        """Whether the same labels are over their thresholds."""
        return np.asarray((self._given(left, encoded) == self._given(right, encoded)).all(axis=1))

    def metrics(
        self, outputs: Sequence[FloatArray], encoded: Encoded, golds: Sequence[tuple[str, ...]]
    ) -> dict[str, float]:
        """Macro-F1 over all labels, micro-F1, mean average precision of the labels that occur, subset accuracy.

        All as scikit-learn defines them, with 0 for the F1 of a label that neither occurs nor is predicted.
        """
        from sklearn.metrics import average_precision_score

        gold, given = self._multi_hot(golds), self._given(outputs, encoded)
        scores, occurs = averaged(outputs, encoded), gold.any(axis=0)
        precisions = [average_precision_score(gold[:, label], scores[:, label]) for label in np.flatnonzero(occurs)]
        return {
            "macro_f1": self.score(self.statistics(outputs, encoded, golds)),
            "micro_f1": f1(np.count_nonzero(gold & given), np.count_nonzero(gold) + np.count_nonzero(given)),
            "map": float(np.mean(precisions)) if precisions else 0.0,
            "subset_accuracy": float((gold == given).all(axis=1).mean()),
        }

    def statistics(
        self, outputs: Sequence[FloatArray], encoded: Encoded, golds: Sequence[tuple[str, ...]]
    ) -> npt.NDArray[np.float64]:
        """For each label whether it is rightly given, then how often it is gold or given; `[inputs, 2 * labels]`."""
        gold, given = self._multi_hot(golds), self._given(outputs, encoded)
        return np.hstack([gold & given, gold.astype(np.float64) + given])

    def score(self, statistics: npt.NDArray[np.float64]) -> float:
        """Macro-F1."""
        hits, marks = np.split(statistics.sum(axis=0), 2)
        return float(f1(hits, marks).mean())

    def confidences(
        self, outputs: Sequence[FloatArray], encoded: Encoded, golds: Sequence[tuple[str, ...]]
    ) -> npt.NDArray[np.float64] | None:
        """The score of every label of every input, and whether the input carries that label."""
        scores = sigmoid(averaged(outputs, encoded))
        return np.column_stack([scores.ravel(), self._multi_hot(golds).ravel()])

    def tuned(self, outputs: Sequence[FloatArray], encoded: Encoded, golds: Sequence[tuple[str, ...]]) -> Task:
        """The task with a threshold of good F1 for each label that has none yet; see `cautious_cuts`."""
        cuts = cautious_cuts(averaged(outputs, encoded), self._multi_hot(golds))
        thresholds = dict(zip(self.spec.labels, sigmoid(cuts).tolist(), strict=True)) | self._options.thresholds
        return MultiLabel(self.spec.model_copy(update={"options": self.spec.options | {"thresholds": thresholds}}))

    def concerns(self, outputs: Sequence[FloatArray], encoded: Encoded) -> list[str]:
        """Whether nothing at all is predicted, or some labels never are."""
        predicted = np.asarray(self._given(outputs, encoded).any(axis=0))
        if not predicted.any():
            return ["the model collapsed: no label is ever over its threshold"]
        return never_predicted(self.spec.labels, predicted)

    def _asked_thresholds(self, parameters: MultiLabelParameters) -> Scores | float:
        if parameters.threshold is not None:
            return parameters.threshold
        return self._thresholds if parameters.top_k is None else 0.0

    def _given(self, outputs: Sequence[FloatArray], encoded: Encoded) -> npt.NDArray[np.bool_]:
        return np.asarray(sigmoid(averaged(outputs, encoded)) >= self._thresholds)

    def _multi_hot(self, golds: Sequence[tuple[str, ...]]) -> npt.NDArray[np.bool_]:
        hot = np.zeros((len(golds), len(self.spec.labels)), dtype=np.bool_)
        for row, gold in zip(hot, golds, strict=True):
            row[[self._ids[label] for label in gold]] = True
        return hot
