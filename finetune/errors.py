"""Where a trained model errs, as a page: what it takes for what, and the rows that it finds hardest.

Of the validation rows, so that the test rows stay unseen by whoever mends the data after reading it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import numpy.typing as npt
import torch

from finetune.html import page, table
from finetune.losses import make_loss
from finetune.recipe import LossSection
from tasks.base import Encoded, FloatArray, Gold, Task
from tasks.inputs import Input

__all__ = ["ErrorReport", "HardRow", "error_page", "error_report", "row_losses", "row_text"]

_HARDEST = 50
_MISTAKES = 30
_LONGEST_TEXT = 300


@dataclass(frozen=True, slots=True)
class HardRow:
    """A row with much of the loss.

    Attributes:
        row: its number in the split, from 1.
        loss: summed over what the row asks: its label, its tokens, or an answer's two ends.
        wrong: whether the answer is not the row's.
    """

    row: int
    loss: float
    text: str
    expected: str
    said: str
    wrong: bool


@dataclass(frozen=True, slots=True)
class ErrorReport:
    """What went wrong on a split.

    Attributes:
        rows: of the split.
        wrong: of these, answered otherwise than the row says.
        mistakes: what is expected, what was said instead, and how often, most frequent first.
        labels: of a task of one label a row, each label with its rows, and the shares of these that were found (recall)
            and of those that were given it that bear it (precision; None where it was given to none).
        confusion: of such a task, rows by expected and by given label, int64, shape `[labels, labels]`.
        hardest: the rows with the largest loss, largest first.
    """

    rows: int
    wrong: int
    mistakes: tuple[tuple[str, str, int], ...]
    labels: tuple[tuple[str, int, float, float | None], ...]
    confusion: npt.NDArray[np.int64] | None
    hardest: tuple[HardRow, ...]


def error_report(task: Task, outputs: Sequence[FloatArray], encoded: Encoded, golds: Sequence[Gold]) -> ErrorReport:
    """Finds it out.

    Args:
        task: with its thresholds tuned.
        outputs: raw, of each window.
        encoded: the split.
        golds: what is right.
    """
    said = [task.summary(answer) for answer in task.decode(outputs, encoded, task.parameters())]
    expected = [task.gold_summary(gold) for gold in golds]
    losses = row_losses(task, outputs, encoded, golds)
    pairs = Counter((right, given) for right, given in zip(expected, said, strict=True) if right != given)
    confusion = _confusion(task, expected, said)
    return ErrorReport(
        rows=len(encoded),
        wrong=pairs.total(),
        mistakes=tuple(
            (right, given, count)
            # by name among equals, so that two runs give the same list
            for (right, given), count in sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:_MISTAKES]
            if count > 1
        ),
        labels=() if confusion is None else tuple(_of_labels(task.spec.labels, confusion)),
        confusion=confusion,
        hardest=tuple(
            HardRow(
                row=row + 1,
                loss=float(losses[row]),
                text=row_text(task, encoded.inputs[row]),
                expected=expected[row],
                said=said[row],
                wrong=said[row] != expected[row],
            )
            for row in np.argsort(-losses, kind="stable")[:_HARDEST].tolist()
        ),
    )


def row_text(task: Task, one: Input) -> str:
    """What a row asks about, its parts in one line of text."""
    return " | ".join(part for part in task.texts(one) if part is not None)


def row_losses(
    task: Task, outputs: Sequence[FloatArray], encoded: Encoded, golds: Sequence[Gold]
) -> npt.NDArray[np.float64]:
    """The task's own loss of each row, without any key of `[loss]`, summed over what the row asks; shape `[rows]`."""
    targets = task.targets(encoded, golds)
    loss = make_loss(task, LossSection(), targets)
    losses = np.zeros(len(encoded))
    for window, output, target in zip(encoded.windows, outputs, targets, strict=True):
        arrays = task.collate_targets([target], len(window))
        batch = {name: torch.from_numpy(values) for name, values in arrays.items()}
        batch["attention_mask"] = torch.ones(1, len(window), dtype=torch.int64)
        losses[window.row] += float(loss.total(torch.from_numpy(output)[None], batch))
    return losses


def error_page(report: ErrorReport, name: str) -> str:
    """The report as one HTML file."""
    parts = [
        f"<h1>Where {escape(name)} errs</h1>",
        f"<p>{report.wrong:,} of {report.rows:,} validation rows were answered otherwise than they say.</p>",
    ]
    if report.mistakes:
        rows = [[escape(right), escape(said), f"{count:,}"] for right, said, count in report.mistakes]
        parts += ["<h2>What is taken for what</h2>", table(["expected", "said", "rows"], rows)]
    if report.labels:
        rows = [
            [escape(label), f"{count:,}", f"{recall:.3f}" if count else "", "" if precise is None else f"{precise:.3f}"]
            for label, count, recall, precise in sorted(report.labels, key=lambda one: one[2])
        ]
        parts += ["<h2>Label by label</h2>", table(["label", "rows", "recall", "precision"], rows)]
    rows = [
        [
            str(one.row),
            f"{one.loss:.2f}",
            *map(escape, (_shortened(one.text), one.expected, one.said)),
            "wrong" if one.wrong else "",
        ]
        for one in report.hardest
    ]
    parts += [
        "<h2>The hardest rows</h2>",
        "<p>By loss. Among those that are wrong by far, some often have a wrong label.</p>",
        table(["row", "loss", "text", "expected", "said", ""], rows),
    ]
    return page(f"Where {name} errs", "\n".join(parts))


def _confusion(task: Task, expected: Sequence[str], said: Sequence[str]) -> npt.NDArray[np.int64] | None:
    numbers = {label: number for number, label in enumerate(task.spec.labels)}
    if task.name != "single_label":
        return None
    counts = np.zeros((len(numbers), len(numbers)), dtype=np.int64)
    for right, given in zip(expected, said, strict=True):
        counts[numbers[right], numbers[given]] += 1
    return counts


def _of_labels(labels: Sequence[str], confusion: npt.NDArray[np.int64]) -> list[tuple[str, int, float, float | None]]:
    found, rows, given = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    return [
        (label, int(rows[at]), float(found[at] / max(rows[at], 1)), float(found[at] / given[at]) if given[at] else None)
        for at, label in enumerate(labels)
    ]


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"
