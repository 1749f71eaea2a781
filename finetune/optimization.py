"""Optimizer and schedule: what a recipe's `[train]` says of how weights move."""

import math
from collections.abc import Collection
from functools import partial

import torch
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from finetune.layers import depths
from finetune.recipe import TrainSection
from tasks.errors import RecipeError

__all__ = ["learning_rate_factor", "make_optimizer", "make_schedule"]

_BETAS = (0.9, 0.999)


def make_optimizer(
    model: torch.nn.Module, settings: TrainSection, learning_rate: float, decaying: Collection[str]
) -> Optimizer:
    """The optimizer of all parameters that are not frozen.

    Args:
        model: frozen where it is to stay frozen.
        settings: the `[train]` section.
        learning_rate: of the head; layers below it have less where `layer_decay` is below 1.
        decaying: names of the parameters that weight decay pulls on.

    Raises:
        RecipeError: if the optimizer needs a package that is not there, or the model has no layers for `layer_decay`.
    """
    groups: dict[tuple[int, bool], list[torch.nn.Parameter]] = {}
    by_depth = depths(model, "train.layer_decay") if settings.layer_decay < 1 else {}
    top = max(by_depth.values(), default=0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            below = top - by_depth.get(name, top)
            groups.setdefault((below, name in decaying), []).append(parameter)
    listed = [
        {
            "params": parameters,
            "lr": learning_rate * settings.layer_decay**below,
            "weight_decay": settings.weight_decay if decays else 0.0,
        }
        for (below, decays), parameters in groups.items()
    ]
    if settings.optimizer == "adafactor":
        # transformers' rather than torch's, which steps in the unit of each weight's own size
        from transformers import Adafactor

        return Adafactor(  # type: ignore[no-untyped-call]
            listed, lr=learning_rate, scale_parameter=False, relative_step=False
        )
    if settings.optimizer == "lion":
        try:
            from pytorch_optimizer import Lion
        except ImportError:
            raise RecipeError('train.optimizer: "lion" needs the package pytorch-optimizer') from None
        return Lion(listed, lr=learning_rate)
    if settings.optimizer == "adamw_8bit":
        try:
            from bitsandbytes.optim import AdamW8bit  # type: ignore[import-not-found, unused-ignore]
        except ImportError:
            raise RecipeError('train.optimizer: "adamw_8bit" needs the package bitsandbytes') from None
        return AdamW8bit(listed, lr=learning_rate, betas=_BETAS, eps=settings.adam_epsilon)  # type: ignore[no-any-return]
    return AdamW(listed, lr=learning_rate, betas=_BETAS, eps=settings.adam_epsilon, fused=True)


def make_schedule(optimizer: Optimizer, settings: TrainSection, steps: int) -> LambdaLR:
    """The schedule of the learning rate over all steps, warm-up first."""
    return LambdaLR(optimizer, partial(learning_rate_factor, settings=settings, steps=steps))


def learning_rate_factor(step: int, *, settings: TrainSection, steps: int) -> float:
    """What the learning rate is multiplied with.

    Without bias correction also what Adam's steps are then too large by, at most 6.6 (Zhang et al. 2021,
    arXiv:2006.05987, appendix): the optimizer of the first BERT, for studies of its instability.

    Args:
        step: optimizer steps taken so far.
        settings: the `[train]` section.
        steps: of the whole training.
    """
    warmup = math.ceil(settings.warmup_ratio * steps)
    left = max(0.0, (steps - step) / max(1, steps - warmup))
    if step < warmup:
        factor = step / warmup
    else:
        factor = {
            "linear": left,
            "cosine": (1 - math.cos(math.pi * left)) / 2,
            "polynomial": left**2,
            "constant": 1.0,
        }[settings.schedule]
    if settings.bias_correction:
        return factor
    first, second = (1 - beta ** (step + 1) for beta in _BETAS)
    return factor * first / math.sqrt(second)
