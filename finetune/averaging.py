"""The average of the weights that a training passes through, which is evaluated and published in their place."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from finetune.recipe import RegularizeSection

__all__ = ["AveragedWeights", "load_averaged"]

_FILE = "averaged.safetensors"
_COUNT = "steps"


class AveragedWeights(TrainerCallback):
    """Averages the weights after each step.

    Exponentially (`ema`), with a decay that begins low, so that the first weights are soon forgotten; or equally over
    the last part of the training (`swa`, Izmailov et al. 2018, arXiv:1803.05407).

    Args:
        model: whose trained weights are averaged.
        settings: the `[regularize]` section.
    """

    def __init__(self, model: torch.nn.Module, settings: RegularizeSection) -> None:
        self._settings = settings
        self._parameters = {name: one for name, one in model.named_parameters() if one.requires_grad}
        self._average = {name: one.detach().clone() for name, one in self._parameters.items()}
        self._steps = 0

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Takes the new weights in."""
        if self._settings.average == "swa" and state.global_step <= state.max_steps * (1 - self._settings.swa_share):
            return
        self._steps += 1
        if self._settings.average == "swa":
            share = 1 / self._steps
        else:
            share = 1 - min(self._settings.ema_decay, self._steps / (10 + self._steps))
        for name, parameter in self._parameters.items():
            self._average[name].lerp_(parameter, share)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the average for its weights; as long as nothing was averaged, its own."""
        if not self._steps:
            yield
            return
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def save(self, folder: Path) -> None:
        """Writes the average beside the weights of a checkpoint."""
        tensors = {name: one.contiguous() for name, one in self._average.items()} if self._steps else {}
        save_file(tensors, folder / _FILE, metadata={_COUNT: str(self._steps)})

    def load(self, folder: Path) -> None:
        """Goes on from the average of a checkpoint."""
        with safe_open(folder / _FILE, framework="pt") as file:
            self._steps = int(file.metadata()[_COUNT])
            for name in file.keys():  # noqa: SIM118 - not a mapping
                self._average[name].copy_(file.get_tensor(name))

    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            parameter.data, self._average[name] = self._average[name], parameter.data


def load_averaged(model: torch.nn.Module, folder: Path) -> None:
    """Gives a model the averaged weights of a checkpoint, where it has any."""
    path = folder / _FILE
    if path.is_file():
        model.load_state_dict(load_file(path), strict=False)
