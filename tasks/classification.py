"""What the tasks that judge a text as a whole have in common."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from tasks.base import Answer, Encoded, Fields, FloatArray, Frozen, IntArray, TaskSpec
from tasks.encoding import Texts, Tokenizer
from tasks.errors import ParitybitError
from tasks.inputs import Input, TextInput
from tasks.reading import text_cell
from tasks.windows import Truncation, choose_cut

__all__ = [
    "Scores",
    "TextOptions",
    "averaged",
    "check_labels",
    "collated",
    "encode_texts",
    "ids_of",
    "labelled",
    "never_predicted",
    "read_text",
    "repeated",
    "sigmoid",
    "softmax",
    "text_fields",
    "texts_of",
    "truncated",
]

Scores = npt.NDArray[np.float64]

_COUNTS = {1: "one label", 2: "two labels"}


class TextOptions(Frozen):
    """`[options]` of the tasks that judge a whole text."""

    truncation: Truncation = Field(
        default="head",
        description="Of what is too long: the beginning, both ends (Sun et al. 2019), or all in windows.",
    )
    stride: int | None = Field(
        default=None, ge=0, description="Tokens that neighbouring windows share; a quarter of max_length when missing."
    )


def text_fields(label: str) -> tuple[Fields, ...]:
    """A text, perhaps with a second one, and a label."""
    return (Fields(required=("text", label), optional=("text_pair",)),)


def read_text(values: Mapping[str, Any]) -> TextInput:
    """The texts of a row; the second one is expected where the data has a column for it.

    Raises:
        DataError: if a text is missing, empty or not a text.
    """
    return TextInput(text_cell(values, "text"), text_cell(values, "text_pair") if "text_pair" in values else None)


def texts_of(one: Input) -> Texts:
    """The text and the second text of an input."""
    assert isinstance(one, TextInput)
    return one.text, one.text_pair


def encode_texts(tokenizer: Tokenizer, inputs: Sequence[Input], options: TextOptions) -> Encoded:
    """Windows by the truncation that the options name."""
    stride = tokenizer.max_length // 4 if options.stride is None else options.stride
    cut = choose_cut(options.truncation, stride)
    return Encoded(inputs, tokenizer.encode([texts_of(one) for one in inputs], cut))


def averaged(outputs: Sequence[FloatArray], encoded: Encoded) -> Scores:
    """The mean of the windows' logits for each input, float64, shape `[inputs, labels]`."""
    logits = np.stack(outputs).astype(np.float64)
    if len(encoded.windows) == len(encoded):
        return logits
    return np.stack([logits[span].mean(axis=0) for span in encoded.spans()])


def repeated(encoded: Encoded, targets: Sequence[Any]) -> list[Any]:
    """The target of each window: that of its input."""
    return [targets[window.row] for window in encoded.windows]


def softmax(logits: Scores) -> Scores:
    """Along the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def sigmoid(logits: Scores) -> Scores:
    """Element by element."""
    # exp(-|x|) cannot overflow, whatever the sign
    small = np.exp(-np.abs(logits))
    return np.asarray(np.where(logits >= 0, 1 / (1 + small), small / (1 + small)))


def check_labels(spec: TaskSpec, least: int) -> None:
    """Raises ParitybitError if there are too few labels or one stands twice."""
    if len(spec.labels) < least:
        raise ParitybitError(f"{spec.task} needs at least {_COUNTS[least]}, got {list(spec.labels)}")
    if len(set(spec.labels)) != len(spec.labels):
        raise ParitybitError(f"{spec.task}: a label stands twice among {list(spec.labels)}")


def labelled(encoded: Encoded, labels: Sequence[str], scores: Scores, chosen: Iterable[Sequence[int]]) -> list[Answer]:
    """For each input its chosen labels, best first, with their scores, and whether the input was cut."""
    return [
        {"labels": [{"label": labels[index], "score": float(row[index])} for index in best], "truncated": cut}
        for row, best, cut in zip(scores, chosen, truncated(encoded), strict=True)
    ]


def truncated(encoded: Encoded) -> list[bool]:
    """For each input, whether some of its tokens stand in no window."""
    return [encoded.windows[span.start].truncated for span in encoded.spans()]


def never_predicted(labels: Sequence[str], predicted: npt.NDArray[np.bool_]) -> list[str]:
    """A line that names the labels that no input is given, if there are some.

    Args:
        labels: all of them.
        predicted: whether any input is given the label, shape `[labels]`.
    """
    never = [label for label, some in zip(labels, predicted, strict=True) if not some]
    if not never:
        return []
    listed = ", ".join(never[:5]) + (", …" if len(never) > 5 else "")
    return [f"{len(never)} of {len(labels)} labels are never predicted: {listed}"]


def ids_of(labels: Sequence[str]) -> dict[str, int]:
    """Each label's place."""
    return {label: index for index, label in enumerate(labels)}


def collated(targets: Sequence[Any], dtype: type) -> dict[str, IntArray]:
    """The targets of sequence classification under the name that the models' loss expects."""
    return {"labels": np.asarray(targets, dtype=dtype)}
