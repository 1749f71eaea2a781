"""Experiment trackers beside the record: what Trainer logs, told to TensorBoard, MLflow or Weights & Biases as well."""

import importlib.util
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.errors import ParitybitError

__all__ = ["TRACKERS", "check_trackers", "make_trackers"]

TRACKERS = {"tensorboard": ("tensorboard", "tensorboardX"), "mlflow": ("mlflow",), "wandb": ("wandb",)}
"""By name, the packages of which one is needed."""


def check_trackers(names: Sequence[str]) -> None:
    """Raises ParitybitError if a tracker's package is not installed."""
    for name in names:
        if not any(map(importlib.util.find_spec, TRACKERS[name])):
            raise ParitybitError(f"--report-to {name}: needs the package {' or '.join(TRACKERS[name])}")


def make_trackers(names: Sequence[str], folder: Path) -> list[Any]:
    """Callbacks of transformers for the trackers.

    Args:
        names: of `TRACKERS`; where they send to and as whom is theirs to ask, in their own environment variables.
        folder: TensorBoard's logs go into a folder in it that is named by the time, unless `TENSORBOARD_LOGGING_DIR`
            names another.
    """
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    made = [INTEGRATION_TO_CALLBACK[name]() for name in names]
    for name, callback in zip(names, made, strict=True):
        if name == "tensorboard" and callback.logging_dir is None:
            callback.logging_dir = str(folder / "tensorboard" / time.strftime("%Y%m%d-%H%M%S"))
    return made
