"""Masked-language-model training of the base model on the task's own texts, before its labels are learnt.

Gururangan et al. 2020 (arXiv:2004.10964) call it task-adaptive pre-training; it helps most where labels are few and the
texts are unlike what the base model read.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from finetune import processes
from finetune.defaults import Plan
from finetune.inference import model_inputs
from finetune.interruption import FirstSignal
from finetune.progress import StepBar, StopOnSignal
from finetune.recipe import Recipe
from finetune.sampler import LengthGroupedSampler
from finetune.trainer import last_checkpoint
from tasks.directory import publish_directory
from tasks.encoding import Window
from tasks.errors import ParitybitError, RecipeError
from tasks.token_classification import IGNORED

__all__ = ["pretrain"]

_FOLDER, _MARKER = "pretrained", "config.json"
_WARM_UP = 0.06  # as RoBERTa's, which Gururangan et al. go on from


def pretrain(
    recipe: Recipe,
    plan: Plan,
    *,
    location: str,
    tokenizer: Any,
    windows: Sequence[Window],
    work: Path,
    report: Callable[[str], None],
) -> str:
    """Trains, or takes what an earlier run in the same work directory has trained.

    Args:
        recipe: its seed and `[pretrain]`.
        plan: its batches.
        location: of the base model, a directory or a hub id.
        tokenizer: of the base model, transformers' own.
        windows: of the training rows; labels play no part.
        work: keeps Trainer's checkpoint, and the result.
        report: takes a line for people at the end.

    Returns:
        The directory of the base model with the new weights. What masked language modelling does not train, a pooler,
        is as it was.

    Raises:
        InterruptionError: after Ctrl-C or SIGTERM; the next call goes on from there.
        RecipeError: if the base model is of a type without a head for it, or its tokenizer has no mask.
    """
    target = work / _FOLDER
    if not (target / _MARKER).is_file():
        encoder, loss, steps = _trained(recipe, plan, location, tokenizer, windows, work)
        if processes.is_first():
            _publish(encoder, location, target)
        report(f"pretraining: {steps} steps, loss {loss:.4f}")
    processes.wait()
    return str(target)


def _trained(
    recipe: Recipe, plan: Plan, location: str, tokenizer: Any, windows: Sequence[Window], work: Path
) -> tuple[torch.nn.Module, float, int]:
    if tokenizer.mask_token is None:
        raise RecipeError("pretrain.epochs: found with a base model whose tokenizer has no mask; expected one with")
    set_seed(recipe.seed)
    try:
        model = AutoModelForMaskedLM.from_pretrained(location, dtype=torch.float32, trust_remote_code=False)
    except ValueError as error:
        reason = str(error).partition("\n")[0]
        raise RecipeError(f"pretrain.epochs: this base model has no head for masked language: {reason}") from None
    signals, bar, folder = FirstSignal(), StepBar("pretraining"), work / f"{_FOLDER}-steps"
    trainer = _Trainer(recipe, plan, model, tokenizer, windows, folder)
    with processes.first_before_others():
        last = last_checkpoint(folder)
    for callback in (bar, StopOnSignal(signals)):
        trainer.add_callback(callback)
    with ExitStack() as stack:
        stack.enter_context(signals)
        stack.callback(bar.close)
        try:
            outcome = trainer.train(resume_from_checkpoint=str(last) if last else None)
        except torch.OutOfMemoryError:
            raise ParitybitError("out of memory in pretraining: lower train.micro_batch_size or max_length") from None
    state = trainer.state
    signals.raise_if_received(f" in pretraining, at step {state.global_step} of {state.max_steps}")
    return model.base_model, outcome.training_loss, state.global_step


def _publish(encoder: torch.nn.Module, location: str, target: Path) -> None:
    base = AutoModel.from_pretrained(location, dtype=torch.float32, trust_remote_code=False)
    base.load_state_dict(encoder.state_dict(), strict=False)
    with publish_directory(target, _MARKER) as draft:
        base.save_pretrained(draft)


class _Trainer(Trainer):
    """Trainer with rows of similar length in a batch, in the order that `[train]` has them in, too."""

    def __init__(
        self, recipe: Recipe, plan: Plan, model: Any, tokenizer: Any, windows: Sequence[Window], folder: Path
    ) -> None:
        settings = recipe.pretrain
        self._lengths = [len(window) for window in windows]
        self._batch_size = recipe.train.batch_size
        arguments = TrainingArguments(
            output_dir=str(folder),
            learning_rate=settings.learning_rate,
            num_train_epochs=settings.epochs,
            per_device_train_batch_size=plan.micro_batch_size,
            gradient_accumulation_steps=plan.accumulated,
            warmup_steps=_WARM_UP,
            weight_decay=0.01,
            adam_epsilon=1e-6,
            bf16=recipe.train.precision == "bf16",
            use_cpu=not torch.cuda.is_available(),
            save_strategy="epoch",
            save_total_limit=1,
            logging_strategy="epoch",
            seed=recipe.seed,
            dataloader_pin_memory=torch.cuda.is_available(),
            remove_unused_columns=False,
            disable_tqdm=True,
            report_to="none",
        )
        self._masking = DataCollatorForLanguageModeling(tokenizer, mlm=True, mlm_probability=settings.masked_share)
        self._special = torch.tensor(tokenizer.all_special_ids)
        names = set(model_inputs(model)) - {"attention_mask"}  # which padding brings
        rows = [{name: getattr(window, name) for name in names} for window in windows]
        super().__init__(
            model=model, args=arguments, data_collator=DataCollatorWithPadding(tokenizer), train_dataset=rows
        )
        self.remove_callback(PrinterCallback)

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int]:
        return LengthGroupedSampler(self, self._lengths, self._batch_size)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *others: Any, **more: Any) -> Any:
        """Of tokens that are masked only now: batches are fetched ahead, and a resumed run would mask others."""
        ids = inputs["input_ids"]
        plain = ids.cpu()
        masked, labels = self._masking.torch_mask_tokens(plain.clone(), torch.isin(plain, self._special))
        asked = {**inputs, "input_ids": masked.to(ids.device)}
        if bool((labels == IGNORED).all()):
            # none of so few tokens was drawn, and a mean over nothing is no number
            return model(**asked).logits.sum() * 0
        return super().compute_loss(model, {**asked, "labels": labels.to(ids.device)}, *others, **more)
