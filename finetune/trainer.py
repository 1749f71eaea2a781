"""The Hugging Face `Trainer`, and what has to be mended around it (transformers 5.23)."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from finetune import processes
from finetune.averaging import AveragedWeights
from finetune.defaults import Plan
from finetune.first_token import train_first_token
from finetune.inference import model_inputs, raw_outputs, to_tensors
from finetune.interruption import FirstSignal
from finetune.layers import GradualUnfreezing, freeze, reinitialize
from finetune.losses import make_loss
from finetune.optimization import make_optimizer, make_schedule
from finetune.progress import Progress, StopOnSignal
from finetune.recipe import Recipe
from finetune.regularization import Adversary, PullToPretrained, drop_several_times, mix_with_pretrained
from finetune.sampler import LengthGroupedSampler
from tasks import Window
from tasks.base import Encoded, Gold, Task
from tasks.encoding import collate
from tasks.errors import DivergenceError

__all__ = ["EncodedSplit", "TrainingLog", "begin_with_bias", "last_checkpoint", "read_training_log", "train"]

_LOG_FILE = "trained.json"
_ROWS = "rows"  # of a batch, in the order of the training rows
_NAMED_ROWS = 8
_STATE_FILE = "trainer_state.json"  # Trainer writes it last into each of its checkpoints


@dataclass(frozen=True, slots=True)
class EncodedSplit:
    """The rows of a split with their windows and gold answers."""

    encoded: Encoded
    golds: Sequence[Gold]


@dataclass(frozen=True, slots=True)
class TrainingLog:
    """What training left behind.

    Attributes:
        best_checkpoint: directory of the best evaluated model.
        history: Trainer's log: loss, gradient norm, learning rate and validation metrics by step.
        steps: optimizer steps taken, those before an interruption included.
        seconds: wall time of the last run.
        resumed_at: the step at which the last run went on; 0 if it began anew.
    """

    best_checkpoint: str
    history: list[dict[str, float]]
    steps: int
    seconds: float
    resumed_at: int


def read_training_log(work: Path) -> TrainingLog | None:
    """The log of a training that came to its end in this work directory."""
    path = work / _LOG_FILE
    log = TrainingLog(**json.loads(path.read_bytes())) if path.is_file() else None
    return log if log and Path(log.best_checkpoint).is_dir() else None


def train(
    recipe: Recipe,
    plan: Plan,
    task: Task,
    *,
    model: torch.nn.Module,
    splits: tuple[EncodedSplit, EncodedSplit],
    pad_id: int,
    work: Path,
    report: Callable[[str], None],
    watch: Callable[[float], None] | None,
    trackers: Sequence[TrainerCallback] = (),
) -> TrainingLog:
    """Trains a model, going on where an earlier run in the same work directory was stopped.

    Args:
        recipe: its seed and the sections `train`, `loss` and `regularize`.
        plan: what the recipe left open.
        task: judges the validation rows.
        model: with a fresh head and the layers that it is to have; it is changed in place.
        splits: training and validation rows.
        pad_id: of the padding token.
        work: where Trainer keeps its checkpoints.
        report: takes a line for people after each evaluation.
        watch: takes the validation metric then, and raises what ends the training.
        trackers: told what Trainer logs.

    Raises:
        InterruptionError: after Ctrl-C or SIGTERM, when a checkpoint to go on from was saved.
        RecipeError: if the model has not the layers that the recipe speaks of.
        DivergenceError: if the loss is no longer a number.
    """
    training, validation = splits
    targets = task.targets(training.encoded, training.golds)
    _prepare(model, recipe, task, targets)
    signals, bar = FirstSignal(), Progress(plan.epochs, report, task.primary_metric, watch)
    trainer = _Trainer(
        recipe=recipe,
        plan=plan,
        task=task,
        validation=validation,
        pad_id=pad_id,
        model=model,
        work=work,
        windows=training.encoded.windows,
        targets=targets,
    )
    for callback in (bar, StopOnSignal(signals), *trackers):
        trainer.add_callback(callback)
    with processes.first_before_others():
        last = last_checkpoint(work)
    with ExitStack() as stack:
        stack.enter_context(signals)
        stack.callback(bar.close)
        outcome = trainer.train(resume_from_checkpoint=str(last) if last else None)
    state = trainer.state
    signals.raise_if_received(f" at step {state.global_step} of {state.max_steps}")
    log = processes.said_by_first(
        TrainingLog(
            # the path of the best is lost when the work directory was moved in between
            best_checkpoint=str(state.best_model_checkpoint or last_checkpoint(work)),
            history=state.log_history,
            steps=state.global_step,
            seconds=round(outcome.metrics["train_runtime"], 1),
            resumed_at=int(last.name.rpartition("-")[2]) if last else 0,
        )
    )
    if processes.is_first():
        (work / _LOG_FILE).write_text(json.dumps(asdict(log)), encoding="utf-8")
    return log


def _prepare(model: torch.nn.Module, recipe: Recipe, task: Task, targets: Sequence[Any]) -> None:
    """All that is done to a model before its first step; before the optimizer is made, which leaves out the frozen."""
    if recipe.train.reinitialize_layers:
        reinitialize(model, recipe.train.reinitialize_layers)
    freeze(model, recipe.train)
    if recipe.train.dropout is not None:
        _set_dropout(model, recipe.train.dropout)
    bias = task.initial_bias(targets)
    if bias is not None:
        begin_with_bias(model, bias)
    if recipe.regularize.mixout:
        mix_with_pretrained(model, recipe.regularize.mixout)
    train_first_token(model)
    if recipe.regularize.dropout_samples:
        drop_several_times(model, recipe.regularize.dropout_samples)


def _arguments(recipe: Recipe, plan: Plan, task: Task, work: Path) -> TrainingArguments:
    settings = recipe.train
    return TrainingArguments(
        output_dir=str(work),
        learning_rate=plan.learning_rate,
        num_train_epochs=plan.epochs,
        per_device_train_batch_size=plan.micro_batch_size,
        gradient_accumulation_steps=plan.accumulated,
        max_grad_norm=settings.max_grad_norm,
        neftune_noise_alpha=recipe.regularize.neftune_alpha or None,
        bf16=settings.precision == "bf16",
        # asked for by name, for bf16 is refused on a CPU that was only fallen back to
        use_cpu=not torch.cuda.is_available(),
        eval_strategy="steps",
        save_strategy="steps",
        logging_strategy="steps",
        eval_steps=plan.evaluate_every,
        save_steps=plan.evaluate_every,
        logging_steps=plan.evaluate_every,
        # the best and the last; 1 would delete the last, from which an interrupted run goes on
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model=f"eval_{task.primary_metric}",
        greater_is_better=True,
        # else the patience counter starts anew after an interruption
        restore_callback_states_from_checkpoint=True,
        seed=recipe.seed,
        dataloader_pin_memory=torch.cuda.is_available(),
        # between processes: what is frozen for a while has no gradient to wait for
        ddp_find_unused_parameters=settings.gradual_unfreezing,
        remove_unused_columns=False,
        disable_tqdm=True,
        # trackers are ours to make (finetune.trackers)
        report_to="none",
        run_name=recipe.name,
    )


class _Trainer(Trainer):
    """Trainer with our batches, losses and metrics, and a sampler that can be resumed."""

    # every part of a batch is divided by the items of the whole (transformers#47688)
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *,
        recipe: Recipe,
        plan: Plan,
        task: Task,
        validation: EncodedSplit,
        pad_id: int,
        model: torch.nn.Module,
        work: Path,
        windows: Sequence[Window],
        targets: Sequence[Any],
    ) -> None:
        self._recipe = recipe
        self._plan = plan
        self._task = task
        self._loss = make_loss(task, recipe.loss, targets)
        self._lengths = [len(window) for window in windows]
        self._validation = validation
        self._pad_id = pad_id
        self._plain_model = model
        regularize = recipe.regularize
        self._adversary = Adversary(regularize, model) if regularize.adversarial_epsilon else None
        self._average = AveragedWeights(model, regularize) if regularize.average != "none" else None
        self._inputs = model_inputs(model)
        self._loss_factor = 1.0

        def batch(rows: Sequence[int]) -> dict[str, torch.Tensor]:
            chosen = [windows[row] for row in rows]
            gold = task.collate_targets([targets[row] for row in rows], max(map(len, chosen)))
            tensors = to_tensors(collate(chosen, pad_id), self._inputs)
            named = {_ROWS: torch.tensor([windows[row].row for row in rows])}
            return tensors | named | {name: torch.from_numpy(values) for name, values in gold.items()}

        rows = list(range(len(windows)))
        # evaluation is ours, but Trainer insists on a data set for it
        super().__init__(
            model=model,
            args=_arguments(recipe, plan, task, work),
            data_collator=batch,
            train_dataset=rows,
            eval_dataset=rows,
            callbacks=list(self._callbacks(model)),
        )
        # it prints log lines over the progress bar
        self.remove_callback(PrinterCallback)

    def _callbacks(self, model: torch.nn.Module) -> Iterator[TrainerCallback]:
        settings = self._recipe.train
        if settings.early_stopping_patience:
            yield EarlyStoppingCallback(settings.early_stopping_patience)
        if settings.gradual_unfreezing:
            yield GradualUnfreezing(model)
        if self._recipe.regularize.pull_to_pretrained:
            yield PullToPretrained(model, self._recipe.regularize.pull_to_pretrained)
        if self._average is not None:
            yield self._average

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The recipe's."""
        if self.optimizer is None:
            decaying = set(self.get_decay_parameter_names(self._plain_model))
            rate = self._plan.learning_rate
            self.optimizer = make_optimizer(self._plain_model, self._recipe.train, rate, decaying)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The recipe's."""
        if self.lr_scheduler is None:
            taken: Any = optimizer or self.optimizer
            self.lr_scheduler = make_schedule(taken, self._recipe.train, num_training_steps)
            # else it is not saved
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int]:
        return LengthGroupedSampler(self, self._lengths, self._recipe.train.batch_size)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """The parts of a batch, and the items that they hold together."""
        parts = list(islice(epoch_iterator, num_batches))
        items = torch.tensor(sum(self._loss.items(part) for part in parts), device=device)
        # of all processes, whose gradients are averaged and not added
        return parts, self.accelerator.gather(items).sum() / self.args.world_size

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Forwards and backwards, as often as the recipe says."""

        def step(factor: float) -> torch.Tensor:
            self._loss_factor = factor
            return super(_Trainer, self).training_step(model, dict(inputs), num_items_in_batch)

        loss = step(1.0) if self._adversary is None else self._adversary.train_on(step)
        if not torch.isfinite(loss):
            rows = sorted({row + 1 for row in inputs[_ROWS].tolist()})
            listed = ", ".join(map(str, rows[:_NAMED_ROWS])) + (", …" if len(rows) > _NAMED_ROWS else "")
            raise DivergenceError(
                f"training diverged: the loss is {loss.item()} at step {self.state.global_step + 1}, "
                f"on training rows {listed}; lower train.learning_rate, or look at the rows"
            )
        return loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean over the items of the whole batch, of which the inputs may be a part."""
        questions = {name: inputs[name] for name in self._inputs}

        def answers() -> Sequence[torch.Tensor]:
            return raw_outputs(model(**questions)).chunk(self._recipe.regularize.dropout_samples or 1)

        outputs = answers()
        total = self._total(outputs, inputs)
        if self._recipe.regularize.r_drop:
            again = answers()
            pairs = zip(outputs, again, strict=True)
            apart = sum(self._loss.divergence(one, other, inputs) for one, other in pairs) / len(outputs)
            total = (total + self._total(again, inputs)) / 2 + self._recipe.regularize.r_drop * apart
        return total * (self._loss_factor / num_items_in_batch.clamp(min=1))

    def _total(self, outputs: Sequence[torch.Tensor], inputs: dict[str, Any]) -> Any:
        return sum(self._loss.total(one, inputs) for one in outputs) / len(outputs)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Validation metrics by the task, with thresholds tuned on these very rows, on batches of similar length."""
        encoded, golds = self._validation.encoded, self._validation.golds
        with self._average.applied() if self._average else nullcontext():
            outputs = processes.predict_together(self._plain_model, encoded.windows, self._pad_id)
        values = self._task.tuned(outputs, encoded, golds).metrics(outputs, encoded, golds)
        metrics = {f"eval_{key}": value for key, value in values.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The weights, from which training goes on, and their average beside them."""
        super().save_model(output_dir, _internal_call)
        if self._average is not None and self.args.should_save:
            self._average.save(Path(output_dir or str(self.args.output_dir)))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self._average is not None:
            self._average.load(Path(resume_from_checkpoint))


def begin_with_bias(model: torch.nn.Module, bias: npt.NDArray[np.float32]) -> None:
    """Gives a new head its bias; one that was trained before has its own and keeps it.

    Args:
        model: whose last linear layer with as many outputs as there are labels is the head's.
        bias: shape `[labels]`.
    """
    layers = (one for one in model.modules() if isinstance(one, torch.nn.Linear))
    head = [one for one in layers if one.out_features == len(bias)][-1]
    if head.bias is not None and not head.bias.any():
        with torch.no_grad():
            head.bias.copy_(torch.from_numpy(bias))


def _set_dropout(model: torch.nn.Module, share: float) -> None:
    """In the modules, not in the configuration, whose names for it differ by family and which is saved."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = share


def last_checkpoint(work: Path) -> Path | None:
    """The newest whole checkpoint; one that a killed process left half-written is removed."""
    whole = []
    for path in work.glob("checkpoint-*"):
        if (path / _STATE_FILE).is_file():
            whole.append(path)
        else:
            shutil.rmtree(path)
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
