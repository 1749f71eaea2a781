"""Single-label classification of a text or a pair of texts."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from tasks.base import Answer, FloatArray, TaskSpec
from tasks.encoding import TextInput, Tokenizer, Window
from tasks.errors import DataError, ParitybitError

__all__ = ["SingleLabel", "SingleLabelParameters"]


class SingleLabelParameters(BaseModel):
    """Per-request parameters; the names are those of the Hugging Face inference form."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    top_k: int | None = Field(default=None, ge=1, description="How many labels to return; all when missing.")
    function_to_apply: Literal["softmax", "sigmoid", "none"] = Field(
        default="softmax", description="What turns logits into scores."
    )


class SingleLabel:
    """Exactly one label a text. Model outputs are logits of shape `[labels]`."""

    name = "single_label"
    auto_model = "AutoModelForSequenceClassification"
    primary_metric = "accuracy"
    parameters: type[BaseModel] = SingleLabelParameters

    def __init__(self, spec: TaskSpec) -> None:
        """Keeps the specification.

        Raises:
            ParitybitError: if there are fewer than two labels or one stands twice.
        """
        if len(spec.labels) < 2:
            raise ParitybitError(f"{self.name} needs at least two labels, got {list(spec.labels)}")
        if len(set(spec.labels)) != len(spec.labels):
            raise ParitybitError(f"{self.name}: a label stands twice among {list(spec.labels)}")
        self.spec = spec
        self._ids = {label: index for index, label in enumerate(spec.labels)}

    def encode(self, tokenizer: Tokenizer, inputs: Sequence[TextInput]) -> list[Window]:
        """One window per input, cut at the tokenizer's max_length."""
        return tokenizer.encode(inputs)

    def decode(self, outputs: Sequence[FloatArray], windows: Sequence[Window], parameters: BaseModel) -> list[Answer]:
        """Labels by falling score: `{"labels": [{"label": str, "score": float}, …], "truncated": bool}`."""
        assert isinstance(parameters, SingleLabelParameters)
        if not windows:
            return []
        scores = _SCORES[parameters.function_to_apply](np.stack(outputs).astype(np.float64))
        top = min(parameters.top_k or len(self.spec.labels), len(self.spec.labels))
        order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
        labels = self.spec.labels
        return [
            {
                "labels": [{"label": labels[index], "score": float(row[index])} for index in best],
                "truncated": window.truncated,
            }
            for row, best, window in zip(scores, order, windows, strict=True)
        ]

    def target(self, label: str) -> int:
        """The id of a label.

        Raises:
            DataError: if the label is unknown.
        """
        if label not in self._ids:
            raise DataError(f"unknown label {label!r}")
        return self._ids[label]

    def metrics(self, outputs: Sequence[FloatArray], targets: Sequence[int]) -> dict[str, float]:
        """Accuracy, macro-F1 over the labels that occur, and Matthews correlation (scikit-learn's definitions)."""
        from sklearn.metrics import f1_score, matthews_corrcoef

        predicted = self._labels(outputs)
        gold = np.asarray(targets)
        return {
            "accuracy": float((predicted == gold).mean()),
            "macro_f1": float(f1_score(gold, predicted, average="macro", zero_division=0.0)),
            "mcc": float(matthews_corrcoef(gold, predicted)),
        }

    def row_scores(self, outputs: Sequence[FloatArray], targets: Sequence[int]) -> npt.NDArray[np.float64]:
        """1.0 where the label is right, else 0.0; shape `[rows]`."""
        return np.asarray(self._labels(outputs) == np.asarray(targets), dtype=np.float64)

    def summary(self, output: FloatArray) -> str:
        """The best label."""
        return self.spec.labels[int(output.argmax())]

    def concerns(self, outputs: Sequence[FloatArray]) -> list[str]:
        """Whether one label is always predicted, or some never are."""
        predicted = set(self._labels(outputs).tolist())
        never = [label for index, label in enumerate(self.spec.labels) if index not in predicted]
        if len(predicted) == 1:
            return [f"the model collapsed: it always predicts {self.spec.labels[predicted.pop()]!r}"]
        if never:
            listed = ", ".join(never[:5]) + (", …" if len(never) > 5 else "")
            return [f"{len(never)} of {len(self.spec.labels)} labels are never predicted: {listed}"]
        return []

    def same_answer(self, left: Sequence[FloatArray], right: Sequence[FloatArray]) -> npt.NDArray[np.bool_]:
        """Whether the best label is the same; shape `[rows]`."""
        return np.asarray(self._labels(left) == self._labels(right))

    @staticmethod
    def _labels(outputs: Sequence[FloatArray]) -> npt.NDArray[np.intp]:
        return np.asarray(np.stack(outputs).argmax(axis=1))


def _softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _sigmoid(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    # exp(-|x|) cannot overflow, whatever the sign
    small = np.exp(-np.abs(logits))
    scores: npt.NDArray[np.float64] = np.where(logits >= 0, 1 / (1 + small), small / (1 + small))
    return scores


def _unchanged(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return logits


_SCORES = {"softmax": _softmax, "sigmoid": _sigmoid, "none": _unchanged}
