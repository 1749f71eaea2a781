"""From recipe to checkpoint directory."""

import errno
import fcntl
import gc
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune import processes
from finetune.base_model import BaseModelFiles, open_base_model, quiet_transformers
from finetune.data import LabelledData, Split, load_data
from finetune.defaults import Plan, make_plan
from finetune.recipe import Recipe
from finetune.record import hardware, inputs_digest, versions, write_json
from finetune.report import DataReport, data_report
from finetune.trackers import check_trackers, make_trackers
from tasks.base import Task, TaskSpec
from tasks.catalogue import load_task
from tasks.checkpoint import METRICS_FILE, RUN_FILE, TASK_FILE, TaskFile, is_finished
from tasks.directory import check_replaceable, publish_directory
from tasks.encoding import Window
from tasks.errors import DataError, InputError, ParitybitError

if TYPE_CHECKING:
    from finetune.measuring import Measured

__all__ = ["CONFUSION_FILE", "CURVES_FILE", "ERRORS_FILE", "FinetuneResult", "finetune"]

CURVES_FILE, CONFUSION_FILE = "learning_curves.png", "confusion.png"
"""In the checkpoint, where matplotlib is installed; confusion of a task of one label a row alone."""
ERRORS_FILE = "errors.html"

_log = logging.getLogger(__name__)

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TORCH_WRITERS = ("PytorchStreamWriter", "inline_container")  # in whose name torch.save complains


@dataclass(frozen=True, slots=True)
class FinetuneResult:
    """A finished checkpoint.

    Attributes:
        checkpoint: its directory.
        metrics: what `metrics.json` holds: `primary_metric`, and `validation` and `test` with all metrics of the task.
        reused: whether it was there already, made from the same inputs.
    """

    checkpoint: Path
    metrics: dict[str, Any]
    reused: bool


@dataclass(frozen=True, slots=True)
class _Inputs:
    recipe: Recipe
    data: LabelledData
    base: BaseModelFiles
    task: Task
    digest: str


def finetune(
    recipe: Recipe,
    output: Path,
    *,
    force: bool = False,
    report: Callable[[str], None] = _log.info,
    watch: Callable[[float], None] | None = None,
    report_to: Sequence[str] = (),
) -> FinetuneResult:
    """Trains what a recipe says and publishes the checkpoint directory, whole or not at all.

    Training goes on in a work directory beside `output`; stopped by Ctrl-C or SIGTERM, the same call goes on from
    there. A finished checkpoint made from the same inputs is taken as it is. Of several processes that a launcher
    started (`finetune.processes`), each trains on its share of every batch, and the first one publishes.

    Args:
        recipe: with absolute paths, as `load_recipe` returns it.
        output: the checkpoint directory; an older checkpoint of that name is replaced at the end.
        force: trains even if nothing changed, from the beginning.
        report: takes lines for people, in the first process.
        watch: takes the validation metric after each evaluation, and raises what ends the training.
        report_to: experiment trackers, of `finetune.trackers.TRACKERS`; they are told nothing where nothing is trained.

    Raises:
        RecipeError: if the base model is missing or does not fit.
        DataError: if the data is missing or holds bad rows.
        InterruptionError: after Ctrl-C or SIGTERM in training.
        DivergenceError: if the loss is no longer a number.
        ParitybitError: if `output` is somebody else's directory, another run is at work on it, a tracker's package is
            missing, or the disk is full.
    """
    output = output.absolute()
    check_replaceable(output, TASK_FILE)
    check_trackers(report_to)
    if not processes.is_first():
        report = _nobody
    if hazard := processes.restart_hazard():
        report(hazard)
    inputs = _open(recipe)
    if not force and (reused := _reuse(inputs, output)):
        return reused
    with _disk_errors_told(output), _work_directory(output, inputs.digest, anew=force) as work:
        metrics = _train_and_publish(inputs, work, output, report, watch, report_to)
    return FinetuneResult(output, metrics, reused=False)


def _nobody(_: str) -> None:
    """Hears the lines of all processes but the first."""


def _open(recipe: Recipe) -> _Inputs:
    data = load_data(recipe)
    base = open_base_model(recipe.base_model, recipe.max_length)
    return _Inputs(recipe, data, base, load_task(data.spec), inputs_digest(recipe, data.fingerprint, base.digest))


def _reuse(inputs: _Inputs, output: Path) -> FinetuneResult | None:
    """The finished checkpoint, if the same inputs made it; its record then takes over today's export section."""
    if not is_finished(output):
        return None
    try:
        run = json.loads((output / RUN_FILE).read_bytes())
        metrics = json.loads((output / METRICS_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    if run.get("inputs_digest") != inputs.digest:
        return None
    recipe = inputs.recipe.to_json()
    if run.get("recipe") != recipe and processes.is_first():
        write_json(output / RUN_FILE, run | {"recipe": recipe})
    return FinetuneResult(output, metrics, reused=True)


def _train_and_publish(
    inputs: _Inputs,
    work: Path,
    output: Path,
    report: Callable[[str], None],
    watch: Callable[[float], None] | None,
    report_to: Sequence[str],
) -> dict[str, dict[str, float]]:
    from finetune.errors import error_page
    from finetune.measuring import measure
    from finetune.trainer import read_training_log

    began = time.perf_counter()
    summary = data_report(inputs.data, inputs.task, inputs.base.tokenizer)
    report(summary.to_text())
    with quiet_transformers():
        log = read_training_log(work)
        splits = _encoded(inputs, inputs.data.train), _encoded(inputs, inputs.data.validation)
        width = inputs.base.config.hidden_size
        plan = make_plan(inputs.recipe.train, windows=len(splits[0].encoded.windows), hidden_size=width)
        plan = plan.shared_by(processes.count())
        base = _base_model(inputs, plan, splits[0].encoded.windows, work, report)
        if log is None:
            for line in plan.remarks(inputs.recipe.train, width):
                report(line)
            trackers = make_trackers(report_to, output.parent)
            plan, log = _train_in_memory(inputs, plan, splits, base, work, report, watch, trackers)
        trained = time.perf_counter()
        model = _trained_model(inputs, base, Path(log.best_checkpoint))
        measured = measure(
            inputs.task,
            model,
            validation=splits[1],
            test=_encoded(inputs, inputs.data.test),
            pad_id=inputs.base.tokenizer.pad_id,
            report=report,
        )
        timings = {
            "training_seconds": log.seconds,
            "measuring_seconds": round(time.perf_counter() - trained, 1),
            "total_seconds": round(time.perf_counter() - began, 1),
        }
        record = _record(inputs, summary) | {"timings": timings, "plan": asdict(plan)} | measured.findings
        record["training"] = asdict(log) | {"best_checkpoint": Path(log.best_checkpoint).name}
        if processes.is_first():
            with publish_directory(output, TASK_FILE) as draft:
                _draw(draft, log.history, measured, report)
                (draft / ERRORS_FILE).write_text(error_page(measured.errors, inputs.recipe.name), encoding="utf-8")
                _write(draft, inputs, measured.task.spec, model, record, measured.metrics)
    return measured.metrics


def _base_model(
    inputs: _Inputs, plan: Plan, windows: Sequence[Window], work: Path, report: Callable[[str], None]
) -> str:
    """Where the weights lie that training begins with: the base model's, or what pre-training made of them."""
    if not inputs.recipe.pretrain.epochs:
        return inputs.base.location
    from finetune.pretraining import pretrain

    return pretrain(
        inputs.recipe,
        plan,
        location=inputs.base.location,
        tokenizer=inputs.base.hf_tokenizer,
        windows=windows,
        work=work,
        report=report,
    )


def _train_in_memory(
    inputs: _Inputs,
    plan: Plan,
    splits: tuple[Any, Any],
    base: str,
    work: Path,
    report: Callable[[str], None],
    watch: Callable[[float], None] | None,
    trackers: Sequence[Any],
) -> tuple[Plan, Any]:
    """Trains, with half the rows in memory at once each time that they do not fit; what is learnt stays the same."""
    import torch

    from finetune.trainer import train

    while True:
        try:
            return plan, train(
                inputs.recipe,
                plan,
                inputs.task,
                model=_fresh_model(inputs, base),
                splits=splits,
                pad_id=inputs.base.tokenizer.pad_id,
                work=work,
                report=report,
                watch=watch,
                trackers=trackers,
            )
        except torch.OutOfMemoryError:
            longest = max(map(len, splits[0].encoded.windows))
            fits_not = f"{plan.micro_batch_size} rows of up to {longest} tokens do not fit into the device's memory"
            if plan.micro_batch_size == 1:
                raise ParitybitError(f"out of memory: {fits_not}; lower max_length, or take a smaller model") from None
            if processes.count() > 1:
                # the others know nothing of it
                raise ParitybitError(f"out of memory: {fits_not}; lower train.micro_batch_size") from None
        plan = plan.in_smaller_parts()
        report(f"warning: {fits_not}; going on with train.micro_batch_size = {plan.micro_batch_size}")
        # only now is the model that did not fit nobody's any more
        gc.collect()
        torch.cuda.empty_cache()


def _fresh_model(inputs: _Inputs, base: str) -> Any:
    from transformers import set_seed

    from finetune.layers import keep_layers

    # Trainer seeds too, but only after the head was drawn
    set_seed(inputs.recipe.seed)
    model = _load_model(inputs, base)
    if inputs.recipe.train.keep_layers is not None:
        keep_layers(model, inputs.recipe.train.keep_layers)
    if inputs.recipe.train.lora_rank:
        from finetune.lora import adapt

        adapt(model, inputs.recipe.train.lora_rank, inputs.recipe.train.lora_alpha)
    return model


def _trained_model(inputs: _Inputs, base: str, checkpoint: Path) -> Any:
    """With the weights that Trainer kept, or their average where the recipe says so; adapters are merged."""
    from finetune.averaging import load_averaged

    if not inputs.recipe.train.lora_rank:
        model = _load_model(inputs, str(checkpoint))
        load_averaged(model, checkpoint)
        return model
    from finetune.lora import load_adapted, merge

    model = _fresh_model(inputs, base)
    load_adapted(model, checkpoint)
    load_averaged(model, checkpoint)
    merge(model)
    return model


def _load_model(inputs: _Inputs, location: str) -> Any:
    import torch
    import transformers

    labels = dict(enumerate(inputs.task.spec.labels))
    problem = {"problem_type": inputs.task.problem_type} if inputs.task.problem_type else {}
    try:
        model = getattr(transformers, inputs.task.auto_model).from_pretrained(
            location,
            num_labels=len(labels),
            id2label=labels,
            label2id={label: index for index, label in labels.items()},
            **problem,
            # an old head of another size is no reason to stop
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
            trust_remote_code=False,
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ParitybitError(f"base_model: the weights of {location} cannot be loaded: {reason}") from None
    model.config.pad_token_id = inputs.base.tokenizer.pad_id
    return model.to("cuda") if torch.cuda.is_available() else model


def _encoded(inputs: _Inputs, split: Split) -> Any:
    from finetune.trainer import EncodedSplit

    try:
        return EncodedSplit(inputs.task.encode(inputs.base.tokenizer, split.inputs), split.golds)
    except InputError as error:
        raise DataError(f"{split.name} rows: {error}") from None


def _draw(draft: Path, history: Any, measured: "Measured", report: Callable[[str], None]) -> None:
    try:
        from finetune.curves import draw_confusion, draw_curves
    except ImportError:
        report(f"no {CURVES_FILE}: matplotlib is not installed")
    else:
        draw_curves(history, measured.task.primary_metric, draft / CURVES_FILE)
        draw_confusion(measured.errors, measured.task.spec.labels, draft / CONFUSION_FILE)


def _record(inputs: _Inputs, summary: DataReport) -> dict[str, Any]:
    return {
        "recipe": inputs.recipe.to_json(),
        "seed": inputs.recipe.seed,
        "inputs_digest": inputs.digest,
        "data_fingerprint": inputs.data.fingerprint,
        "base_model": {"name": inputs.recipe.base_model, "digest": inputs.base.digest},
        "data_report": summary.to_json(),
        "versions": versions(),
        "hardware": hardware(),
    }


def _write(
    draft: Path, inputs: _Inputs, spec: TaskSpec, model: Any, record: dict[str, Any], metrics: dict[str, Any]
) -> None:
    model.save_pretrained(draft)
    inputs.base.hf_tokenizer.save_pretrained(draft)
    # byte for byte what was trained on
    (draft / "tokenizer.json").write_bytes(inputs.base.tokenizer_json)
    write_json(draft / RUN_FILE, record)
    write_json(draft / METRICS_FILE, metrics)
    task_file = TaskFile(task=spec.task, max_length=spec.max_length, options=spec.options)
    write_json(draft / TASK_FILE, task_file.model_dump(mode="json"))


@contextmanager
def _disk_errors_told(output: Path) -> Iterator[None]:
    """A full disk as one line: safetensors and torch have errors of their own for it."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if not (
            isinstance(error, SafetensorError)
            or getattr(error, "errno", None) in _NO_ROOM
            or any(name in str(error) for name in _TORCH_WRITERS)
        ):
            raise
        reason = str(error).strip().partition("\n")[0]
        raise ParitybitError(f"{output}: the checkpoint cannot be written: {reason}") from error


@contextmanager
def _work_directory(output: Path, digest: str, anew: bool) -> Iterator[Path]:
    """Where training keeps its checkpoints; it stays when the block raises and goes when it ends well.

    What a run with other inputs left is removed, so that only the same inputs resume. Of several processes the first
    keeps it for all.
    """
    parent = output.parent / f".{output.name}.training"
    processes.join()
    if not processes.is_first():
        processes.wait()
        yield parent / digest[:16]
        return
    parent.mkdir(parents=True, exist_ok=True)
    with (parent / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ParitybitError(f"{output}: another fine-tuning is at work on it") from None
        work = parent / digest[:16]
        for other in parent.iterdir():
            if other.is_dir() and (anew or other != work):
                shutil.rmtree(other)
        work.mkdir(exist_ok=True)
        processes.wait()
        yield work
        shutil.rmtree(parent)
