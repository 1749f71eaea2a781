"""Numeric parity: what two models say of the same rows, alone and in company."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from bundle.batching import plan_batches
from finetune.inference import raw_outputs
from tasks import Encoded, Task, Window, collate
from tasks.base import FloatArray
from tasks.encoding import without_padding

__all__ = [
    "Batch",
    "Engine",
    "Parity",
    "batch_deltas",
    "compare",
    "edge_cases",
    "logits_of",
    "torch_engine",
]

Batch = Mapping[str, npt.NDArray[np.int64]]
Engine = Callable[[Batch], FloatArray]
"""A collated batch to its raw outputs, float32, shape `[batch, labels]` or `[batch, tokens, labels]`."""


@dataclass(frozen=True, slots=True)
class Parity:
    """How far a candidate's outputs are from the reference's.

    Attributes:
        deltas: largest |Δlogit| of each input, over all its windows and tokens, shape `[inputs]`.
        mean_delta: mean |Δlogit| over all windows, tokens and labels.
        same: whether the decoded answer is the same, input by input, shape `[inputs]`.
    """

    deltas: npt.NDArray[np.float64]
    mean_delta: float
    same: npt.NDArray[np.bool_]

    @property
    def max_delta(self) -> float:
        """Largest |Δlogit| of all."""
        return float(self.deltas.max())

    @property
    def agreement(self) -> float:
        """Share of rows with the same answer."""
        return float(self.same.mean())

    def worst_rows(self, count: int) -> list[int]:
        """Rows with changed answers first, then by falling |Δlogit|."""
        order = np.lexsort((-self.deltas, self.same))
        return [int(row) for row in order[:count]]


def torch_engine(model: PreTrainedModel) -> Engine:
    """A PyTorch model as an engine; inputs that it does not take are left out."""
    import inspect

    accepted = set(inspect.signature(model.forward).parameters)

    @torch.inference_mode()
    def run(batch: Batch) -> FloatArray:
        inputs = {name: torch.from_numpy(values) for name, values in batch.items() if name in accepted}
        return np.asarray(raw_outputs(model(**inputs)).float().numpy())

    return run


def logits_of(
    engine: Engine,
    windows: Sequence[Window],
    pad_id: int,
    progress: Callable[[list[list[int]]], Iterable[list[int]]] = iter,
) -> list[FloatArray]:
    """Raw outputs of every window, in order, run in micro-batches of similar length."""
    outputs: list[FloatArray] = [np.empty(0, dtype=np.float32)] * len(windows)
    for rows in progress(plan_batches([len(window) for window in windows])):
        chosen = [windows[row] for row in rows]
        for row, output in zip(rows, without_padding(engine(collate(chosen, pad_id)), chosen), strict=True):
            outputs[row] = output
    return outputs


def compare(task: Task, reference: Sequence[FloatArray], candidate: Sequence[FloatArray], encoded: Encoded) -> Parity:
    """Parity of two models' outputs over the same inputs."""
    differences = [np.abs(a.astype(np.float64) - b) for a, b in zip(reference, candidate, strict=True)]
    largest = [float(difference.max()) for difference in differences]
    return Parity(
        deltas=np.array([max(largest[span]) for span in encoded.spans()]),
        mean_delta=float(np.mean([difference.mean() for difference in differences])),
        same=task.same_answer(reference, candidate, encoded),
    )


def edge_cases(
    vocab_size: int, max_length: int, distinguishes_texts: bool, seed: int
) -> list[dict[str, npt.NDArray[np.int64]]]:
    """Batches that real rows do not give: random ids, random masks with holes, one token, max_length, 1 and 33 rows.

    Args:
        vocab_size: ids are drawn below it.
        max_length: of the model, in tokens.
        distinguishes_texts: whether token types 0 and 1 occur.
        seed: of the draw.

    Returns:
        Collated batches, int64, shape `[batch, tokens]`; every row attends to at least its first token.
    """
    generator = np.random.default_rng(seed)
    lengths = sorted({1, min(2, max_length), min(17, max_length), max_length})
    batches = []
    for rows in (1, 33):
        for length in lengths:
            for mask in ("full", "ragged", "holes"):
                attention = _mask(mask, rows, length, generator)
                types = (np.arange(length) > length // 2).astype(np.int64) * distinguishes_texts
                batches.append(
                    {
                        "input_ids": generator.integers(0, vocab_size, (rows, length), dtype=np.int64),
                        "attention_mask": attention,
                        "token_type_ids": np.tile(types, (rows, 1)),
                    }
                )
    return batches


def batch_deltas(
    engine: Engine,
    windows: Sequence[Window],
    pad_id: int,
    company: int = 4,
    group_rows: int = 12,
    progress: Callable[[range], Iterable[int]] = iter,
) -> npt.NDArray[np.float64]:
    """Largest |Δlogit| of each window between running alone and running among short, and among longer neighbours.

    The longer ones stand, group by group, at a quarter, half, three quarters and the end of the way from the group to
    the longest: a kernel's order of summing may follow from the padded length, and then any one length can hide it.

    Args:
        engine: what to test.
        windows: what to run; some of them are also the company.
        pad_id: id of the padding token.
        company: how many neighbours.
        group_rows: how many rows of similar length run together, beside the neighbours.
        progress: wraps the iteration over the groups, for a progress bar.

    Returns:
        Shape `[rows]`, rows by rising length.
    """
    rows = sorted(windows, key=len)
    deltas = np.zeros(len(rows))
    for start in progress(range(0, len(rows), group_rows)):
        group = rows[start : start + group_rows]
        alone = [engine(collate([row], pad_id))[0] for row in group]
        way = max(0, len(rows) - company - start)
        longer = start + way - way * (start // group_rows % 4) // 4
        for neighbours in (rows[:company], rows[longer : longer + company]):
            company_and_group = [*neighbours, *group]
            outputs = without_padding(engine(collate(company_and_group, pad_id)), company_and_group)
            for row, output in enumerate(outputs[len(neighbours) :]):
                deltas[start + row] = max(deltas[start + row], float(np.abs(output - alone[row]).max()))
    return deltas


def _mask(kind: str, rows: int, length: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    if kind == "full":
        return np.ones((rows, length), dtype=np.int64)
    if kind == "ragged":
        kept = generator.integers(1, length + 1, (rows, 1))
        return (np.arange(length) < kept).astype(np.int64)
    mask = generator.integers(0, 2, (rows, length), dtype=np.int64)
    mask[:, 0] = 1
    return mask
