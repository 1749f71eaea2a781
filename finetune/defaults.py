"""What a recipe leaves open, chosen by the base model's size and the number of rows."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from finetune.recipe import TrainSection
from tasks.errors import RecipeError

__all__ = ["Plan", "make_plan", "usual_learning_rate"]

_FEW_STEPS = 400  # fewer than this many optimizer steps fit no new head (Mosbach et al. 2021, arXiv:2006.04884)
_EPOCHS = 4
_MOST_EPOCHS = 100
_MOST_EVALUATIONS = 20
_UNUSUAL = 10
_ADAPTERS_FACTOR = 10
"""Adapters learn at about ten times the rate of all weights (Hu et al. 2022, arXiv:2106.09685, appendix D)."""
_LION_FACTOR = 0.2
"""Lion wants a third to a tenth of AdamW's rate, since all its steps are of one size (Chen et al. 2023, section 5)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how fast a training goes.

    Attributes:
        learning_rate: at its peak.
        epochs: at most.
        steps_per_epoch: optimizer steps.
        evaluate_every: steps.
        micro_batch_size: rows in memory at once.
        accumulated: micro-batches of an optimizer step, in each process.
    """

    learning_rate: float
    epochs: int
    steps_per_epoch: int
    evaluate_every: int
    micro_batch_size: int
    accumulated: int

    def in_smaller_parts(self) -> "Plan":
        """The same training with half the rows in memory at once, or one where they cannot be halved."""
        half = self.micro_batch_size // 2 if self.micro_batch_size % 2 == 0 else 1
        batch = self.micro_batch_size * self.accumulated
        return replace(self, micro_batch_size=half, accumulated=batch // half)

    def shared_by(self, processes: int) -> "Plan":
        """The same training with an equal share of every batch in each process.

        Raises:
            RecipeError: if the batch cannot be shared evenly.
        """
        batch = self.micro_batch_size * self.accumulated
        if batch % processes:
            raise RecipeError(f"train.batch_size: found {batch}; expected a multiple of the {processes} processes")
        share = batch // processes
        micro = math.gcd(self.micro_batch_size, share)
        return replace(self, micro_batch_size=micro, accumulated=share // micro)

    def remarks(self, settings: TrainSection, hidden_size: int) -> Iterator[str]:
        """Lines for people: what was chosen for them, and a learning rate that is far from the usual one."""
        if settings.epochs is None:
            total = self.epochs * self.steps_per_epoch
            yield f"train.epochs: {self.epochs} chosen, {total} steps; an evaluation every {self.evaluate_every}"
        usual = _usual_rate(settings, hidden_size)
        if settings.learning_rate is None:
            yield f"train.learning_rate: {usual:g} chosen, the base model has {hidden_size} dimensions"
        elif not usual / _UNUSUAL <= self.learning_rate <= usual * _UNUSUAL:
            yield (
                f"warning: train.learning_rate is {self.learning_rate:g}; "
                f"{usual:g} is usual for a model of {hidden_size} dimensions"
            )


def make_plan(settings: TrainSection, *, windows: int, hidden_size: int) -> Plan:
    """Fills in what the `[train]` section leaves open.

    Args:
        settings: the section.
        windows: of the training rows.
        hidden_size: of the base model.
    """
    micro = settings.micro_batch_size or settings.batch_size
    steps = math.ceil(windows / settings.batch_size)
    every = math.ceil(steps / settings.evaluations_per_epoch)
    epochs = settings.epochs
    if epochs is None:
        epochs = min(_MOST_EPOCHS, max(_EPOCHS, math.ceil(_FEW_STEPS / steps)))
        every = max(every, math.ceil(epochs * steps / _MOST_EVALUATIONS))
    rate = settings.learning_rate or _usual_rate(settings, hidden_size)
    return Plan(rate, epochs, steps, every, micro, settings.batch_size // micro)


def _usual_rate(settings: TrainSection, hidden_size: int) -> float:
    rate = usual_learning_rate(hidden_size)
    if settings.optimizer == "lion":
        rate *= _LION_FACTOR
    return rate * (_ADAPTERS_FACTOR if settings.lora_rank else 1)


def usual_learning_rate(hidden_size: int) -> float:
    """Peak learning rate that suits an encoder: 2e-5 for large ones, 3e-5 for those of BERT-base, 2e-4 for MiniLM."""
    if hidden_size >= 1024:
        return 2e-5
    return 3e-5 if hidden_size >= 512 else 2e-4
