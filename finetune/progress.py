"""What is seen of a training while it runs, and how a signal ends it."""

import math
from collections.abc import Callable
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

from finetune import processes
from finetune.interruption import FirstSignal

__all__ = ["Progress", "StepBar", "StopOnSignal"]


class StopOnSignal(TrainerCallback):
    """Turns a signal into a checkpoint and an orderly end."""

    def __init__(self, signals: FirstSignal) -> None:
        self._signals = signals

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After each optimizer step."""
        # all together: who trained on alone would wait for the others for ever
        number = processes.largest(self._signals.received or 0)
        if number:
            self._signals.received = number
            control.should_save = True
            control.should_training_stop = True


class StepBar(TrainerCallback):
    """One bar over all steps, on a terminal."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._bar: tqdm[Any] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Opens the bar where the training stands."""
        self._bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc=self._name,
            unit="step",
            disable=None if processes.is_first() else True,
            leave=False,
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Moves the bar by one step."""
        if self._bar is not None:
            self._bar.update(1)

    def close(self) -> None:
        """Takes the bar away, also after an error."""
        if self._bar is not None:
            self._bar.close()


class Progress(StepBar):
    """The bar, and one line after each evaluation, everywhere."""

    def __init__(
        self, epochs: int, report: Callable[[str], None], metric: str, watch: Callable[[float], None] | None
    ) -> None:
        super().__init__("training")
        self._epochs = epochs
        self._watch = watch
        self._report = report
        self._metric = metric
        self._loss = math.nan

    def on_log(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Remembers the loss for the next line."""
        logs: dict[str, float] = more["logs"]
        if "loss" in logs:
            self._loss = logs["loss"]

    def on_evaluate(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Tells the metric to people, and to whoever watches."""
        value = more["metrics"][f"eval_{self._metric}"]
        with tqdm.external_write_mode():
            self._report(
                f"epoch {state.epoch:.2f} of {self._epochs}: loss {self._loss:.4f}, "
                f"validation {self._metric} {value:.4f}"
            )
        if self._watch is not None:
            self._watch(value)
