"""What keeps a training from learning its rows by heart: the keys of `[regularize]` that act on model and gradients."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from transformers import TrainerCallback

from finetune.layers import encoder
from finetune.recipe import RegularizeSection

__all__ = ["Adversary", "PullToPretrained", "drop_several_times", "mix_with_pretrained"]

_SAMPLED_DROPOUT = 0.5


class Adversary:
    """Moves word embeddings to where the loss rises, and trains on that too.

    With one step it is the fast gradient method of Miyato et al. 2017 (arXiv:1605.07725): the gradient of the moved
    batch comes on top of that of the batch. With more it is FreeLB (Zhu et al. 2020, arXiv:1909.11764): from a random
    move within the same bound, the mean of the gradients of all steps.

    Args:
        settings: the `[regularize]` section.
        model: whose word embeddings are moved.
    """

    def __init__(self, settings: RegularizeSection, model: torch.nn.Module) -> None:
        self._epsilon = settings.adversarial_epsilon
        self._steps = settings.adversarial_steps
        self._move: torch.Tensor | None = None
        self._watching = False
        model.get_input_embeddings().register_forward_hook(self._moved)  # type: ignore[operator]

    def train_on(self, step: Callable[[float], torch.Tensor]) -> torch.Tensor:
        """Runs all steps of a batch.

        Args:
            step: runs the batch forwards and backwards, its loss multiplied with what is given; returns that loss.

        Returns:
            The loss of the first step, unmultiplied: that of the batch as it is, or after FreeLB's random move.
        """
        share = 1.0 if self._steps == 1 else 1 / self._steps
        rounds = 2 if self._steps == 1 else self._steps
        self._move, self._watching = None, True
        try:
            first = step(share) / share
            for _ in range(rounds - 1):
                self._climb()
                step(share)
        finally:
            self._move, self._watching = None, False
        return first

    def _moved(self, module: torch.nn.Module, inputs: Any, embedded: torch.Tensor) -> torch.Tensor:
        if not self._watching:
            return embedded
        if self._move is None:
            self._move = torch.zeros_like(embedded)
            if self._steps > 1:
                # of a random length up to the bound, whatever the number of tokens
                self._move = self._bounded(torch.empty_like(embedded).uniform_(-1, 1))
            self._move.requires_grad_()
        return embedded + self._move

    def _climb(self) -> None:
        assert self._move is not None and self._move.grad is not None
        gradient = self._move.grad
        norm = gradient.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None]
        self._move = self._bounded(self._move.detach() + self._epsilon * gradient / norm).requires_grad_()

    def _bounded(self, move: torch.Tensor) -> torch.Tensor:
        """Each text's move, no longer than epsilon."""
        norm = move.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None]
        bounded: torch.Tensor = move * (self._epsilon / norm).clamp(max=1)
        return bounded


class PullToPretrained(TrainerCallback):
    """Decays weights towards where pre-training left them, and not to zero (L2-SP, Li et al. 2018, arXiv:1802.01483).

    As decoupled as AdamW's weight decay. The head is new and is not pulled.

    Args:
        model: with its pre-trained weights.
        strength: share of the learning rate.
    """

    def __init__(self, model: torch.nn.Module, strength: float) -> None:
        self._strength = strength
        self._start = [(one, one.detach().clone()) for one in encoder(model).parameters() if one.requires_grad]

    @torch.no_grad()
    def on_optimizer_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """After the optimizer's own step."""
        rates = {id(one): group["lr"] for group in more["optimizer"].param_groups for one in group["params"]}
        for parameter, start in self._start:
            parameter.lerp_(start, self._strength * rates[id(parameter)])


def mix_with_pretrained(model: torch.nn.Module, share: float) -> None:
    """In training, replaces a random share of the encoder's weights by the pre-trained ones at each step.

    Mixout (Lee et al. 2020, arXiv:1909.11299), on linear layers. The names and values of the weights stay as they are.

    Args:
        model: with its pre-trained weights.
        share: probability that a weight is replaced.
    """
    for module in encoder(model).modules():
        if type(module) is torch.nn.Linear:
            module.register_buffer("pretrained", module.weight.detach().clone(), persistent=False)
            module.mixed_share = share  # type: ignore[assignment]
            module.__class__ = _MixedLinear


class _MixedLinear(torch.nn.Linear):
    pretrained: torch.Tensor
    mixed_share: float

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(inputs)
        # dropout of the difference: zero where the pre-trained weight stands, and larger elsewhere, so that the mean
        # over masks is the weight itself
        difference = functional.dropout(self.weight - self.pretrained, self.mixed_share)
        return functional.linear(inputs, self.pretrained + difference, self.bias)


def drop_several_times(model: torch.nn.Module, samples: int) -> None:
    """In training, several answers to each row, each with another half of what the head's last layer is given.

    Multi-sample dropout (Inoue 2019, arXiv:1905.09788): all but the last layer is computed once.

    Args:
        model: whose last linear layer is the head's; it then answers `samples` times the rows, those of one dropout
            after those of another.
        samples: dropouts.
    """

    def dropped(head: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
        if not head.training:
            return None
        return (torch.cat([functional.dropout(inputs[0], _SAMPLED_DROPOUT) for _ in range(samples)]),)

    head = [one for one in model.modules() if isinstance(one, torch.nn.Linear)][-1]
    head.register_forward_pre_hook(dropped)
