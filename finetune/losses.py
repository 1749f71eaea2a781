"""What training minimises: one loss for each kind of target, and the keys of `[loss]` that change it."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from finetune.recipe import LossSection
from tasks.base import Task
from tasks.token_classification import IGNORED

__all__ = ["Loss", "class_weights", "make_loss", "positive_weights"]

_BETA = 0.999  # of the effective number of samples, as Cui et al. found best for sets of this kind

Batch = Mapping[str, torch.Tensor]


class Loss(Protocol):
    """A loss of raw outputs, as `finetune.inference.raw_outputs` gives them, and the targets of a batch."""

    def items(self, batch: Batch) -> int:
        """How many things the batch asks: what the loss is a mean over."""
        ...

    def total(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The loss summed over the items of a batch: a scalar.

        A sum, for parts of a batch that are run one after the other must weigh by their items and not by their number.
        """
        ...

    def divergence(self, left: torch.Tensor, right: torch.Tensor, batch: Batch) -> torch.Tensor:
        """How far two answers to the same batch are apart, both ways averaged and summed over the items: a scalar."""
        ...


def make_loss(task: Task, settings: LossSection, targets: Sequence[Any]) -> Loss:
    """The loss of a task.

    Args:
        task: names the kind of loss.
        settings: the `[loss]` section of the recipe.
        targets: of the training rows, for the weights of labels.
    """
    if task.loss == "binary_cross_entropy":
        return _BinaryCrossEntropy(settings, targets)
    return _CrossEntropy(settings, targets, len(task.spec.labels)) if task.loss == "cross_entropy" else _SquaredError()


class _CrossEntropy:
    """Of one label a text or a token, and of a span's start and end, each a choice among the tokens."""

    def __init__(self, settings: LossSection, targets: Sequence[Any], labels: int) -> None:
        self._smoothing = settings.label_smoothing
        self._gamma = settings.focal_gamma
        self._weights: torch.Tensor | None = None
        if settings.class_weights != "none":
            ids = np.concatenate([np.atleast_1d(np.asarray(one)) for one in targets])
            self._weights = torch.from_numpy(class_weights(ids[ids != IGNORED], settings.class_weights, labels))

    def items(self, batch: Batch) -> int:
        if "labels" in batch:
            return int((batch["labels"] != IGNORED).sum())
        return 2 * len(batch["start_positions"])

    def total(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        logits, ids = self._choices(outputs, batch)
        weights = None if self._weights is None else self._weights.to(logits)
        losses = functional.cross_entropy(
            logits, ids, weight=weights, label_smoothing=self._smoothing, reduction="none"
        )
        if self._gamma:
            chosen = functional.softmax(logits, dim=-1).gather(-1, ids[:, None])[:, 0]
            losses = losses * _power(1 - chosen, self._gamma)
        return losses.sum()

    def divergence(self, left: torch.Tensor, right: torch.Tensor, batch: Batch) -> torch.Tensor:
        first = functional.log_softmax(self._choices(left, batch)[0], dim=-1)
        second = functional.log_softmax(self._choices(right, batch)[0], dim=-1)
        # KL(p|q) + KL(q|p), of which the terms go together
        return ((first.exp() - second.exp()) * (first - second)).sum() / 2

    def _choices(self, outputs: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits `[items, choices]` and the right choices, int64, `[items]`."""
        if "labels" in batch:
            ids = batch["labels"].flatten()
            kept = ids != IGNORED
            return outputs.flatten(0, -2)[kept], ids[kept]
        # transformers' heads let padding take part, so that a text's loss depends on how long its company is
        padding = batch["attention_mask"] == 0
        logits = outputs.masked_fill(padding[..., None], torch.finfo(outputs.dtype).min)
        starts_then_ends = torch.cat([logits[..., 0], logits[..., 1]])
        return starts_then_ends, torch.cat([batch["start_positions"], batch["end_positions"]])


class _BinaryCrossEntropy:
    """Of each label of a text for itself.

    Weighted as in the asymmetric loss of Ridnik et al. 2021 (arXiv:2009.14119), of which focal loss (Lin et al. 2017,
    arXiv:1708.02002) is the case of equal exponents.
    """

    def __init__(self, settings: LossSection, targets: Sequence[Any]) -> None:
        self._gamma = settings.focal_gamma
        self._negative_gamma = settings.focal_gamma if settings.negative_gamma is None else settings.negative_gamma
        self._margin = settings.probability_margin
        weights = positive_weights(np.stack(targets), settings.max_positive_weight)
        self._positive_weights = torch.from_numpy(weights)

    def items(self, batch: Batch) -> int:
        return batch["labels"].numel()

    def total(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        logits, labels = outputs.float(), batch["labels"]
        given = torch.sigmoid(logits)
        positive = self._positive_weights.to(logits) * _power(1 - given, self._gamma) * functional.logsigmoid(logits)
        if self._margin:
            given = (given - self._margin).clamp(min=0)
            not_given = torch.log1p(-given)
        else:
            not_given = functional.logsigmoid(-logits)
        negative = _power(given, self._negative_gamma) * not_given
        return -(labels * positive + (1 - labels) * negative).sum()

    def divergence(self, left: torch.Tensor, right: torch.Tensor, batch: Batch) -> torch.Tensor:
        # the log-odds are the difference of the two logarithms
        return ((torch.sigmoid(left) - torch.sigmoid(right)) * (left - right)).sum() / 2


class _SquaredError:
    """Of one number a text."""

    def items(self, batch: Batch) -> int:
        return batch["labels"].numel()

    def total(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        return functional.mse_loss(outputs.flatten(), batch["labels"].flatten(), reduction="sum")

    def divergence(self, left: torch.Tensor, right: torch.Tensor, batch: Batch) -> torch.Tensor:
        return functional.mse_loss(left, right, reduction="sum")


def _power(base: torch.Tensor, exponent: float) -> torch.Tensor:
    """A power whose gradient is a number at 0 too, even for exponents below 1."""
    return base.clamp(min=1e-8) ** exponent if exponent else torch.ones_like(base)


def class_weights(ids: npt.NDArray[np.int64], kind: str, labels: int) -> npt.NDArray[np.float32]:
    """A weight for each label, so that rare ones count for more; 1.0 on average over the items.

    Args:
        ids: of the training items, shape `[items]`.
        labels: how many there are; one that no item bears weighs as much as one that a single item bears.
        kind: `inverse` of a label's count, `sqrt_inverse`, or `effective_number` (Cui et al. 2019, arXiv:1901.05555).

    Returns:
        float32, shape `[labels]`.
    """
    counts = np.bincount(ids, minlength=labels)
    at_least_one = np.maximum(counts, 1)
    weights = {
        "inverse": 1 / at_least_one,
        "sqrt_inverse": at_least_one**-0.5,
        "effective_number": (1 - _BETA) / (1 - _BETA**at_least_one),
    }[kind]
    return np.asarray(weights * counts.sum() / (weights * counts).sum(), dtype=np.float32)


def positive_weights(labels: npt.NDArray[np.float32], limit: float) -> npt.NDArray[np.float32]:
    """For each label, texts without it over texts with it, between 1 and a limit.

    Args:
        labels: 1.0 where a text has the label, shape `[texts, labels]`.
        limit: 1 weighs nothing.

    Returns:
        float32, shape `[labels]`.
    """
    given = labels.sum(axis=0)
    return np.asarray(np.clip((len(labels) - given) / np.maximum(given, 1), 1, limit), dtype=np.float32)
