"""A checkpoint, ready for export and comparison: one that paritybit trained, or anybody's Hugging Face model."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.base_model import length_limit, load_tokenizer, quiet_transformers
from finetune.recipe import Recipe
from finetune.weights import fetch_model, load_model, weight_files
from tasks.base import TaskSpec
from tasks.catalogue import TASKS, load_task
from tasks.checkpoint import RUN_FILE, TASK_FILE, is_finished, read_task_spec
from tasks.directory import digest_of
from tasks.encoding import Tokenizer
from tasks.errors import CheckpointError, RecipeError

__all__ = ["Checkpoint", "load_checkpoint"]

_LONGEST = 512
"""Of a foreign checkpoint, whose configuration may allow more than anybody wants to serve."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        model: in evaluation mode, float32, on the CPU.
        spec: its task and labels.
        tokenizer: cuts at the task's max_length.
        tokenizer_json: the bytes of its `tokenizer.json`, for the bundle.
        config_json: the bytes of its `config.json`, for the bundle, with the labels of `spec`.
        pad_token_id: of the padding token.
        directory: where it lies; of a hub model, the cached snapshot.
        run: what `run.json` holds; None for a foreign one.
        digest: over configuration, weights, tokenizer and task.
    """

    model: Any
    spec: TaskSpec
    tokenizer: Tokenizer
    tokenizer_json: bytes
    config_json: bytes
    pad_token_id: int
    directory: Path
    run: dict[str, Any] | None
    digest: str


def load_checkpoint(
    location: str | Path,
    *,
    recipe: Recipe | None = None,
    allow_pickle: bool = False,
    report: Callable[[str], None] = lambda _: None,
) -> Checkpoint:
    """Loads a checkpoint that paritybit trained, a foreign Hugging Face directory, or a hub model.

    Code that a model brings along is never run. Pickled weights are unpickled as tensors and nothing else
    (`torch.load(weights_only=True)`), but an unpickler is more to trust than a reader of safetensors.

    Args:
        location: directory or hub id.
        recipe: what the checkpoint is to be exported by. Its task must be the checkpoint's; its labels name those of a
            foreign model that has none, in the order of the model's outputs.
        allow_pickle: whether `pytorch_model.bin` may be read where no safetensors weights are.
        report: told in a line what a person should know.

    Raises:
        CheckpointError: if it is missing, unfinished, damaged, made for a task that this version does not know, or has
            pickled weights only.
        RecipeError: if the recipe is for another task, or names too few or too many labels.
    """
    directory = Path(location)
    if not directory.is_dir():
        directory = fetch_model(str(location), allow_pickle)
    if _is_unfinished(directory):
        raise CheckpointError(f"{directory}: unfinished checkpoint ({TASK_FILE} is missing); run finetune again")
    with quiet_transformers():
        if is_finished(directory):
            return _load_own(directory, recipe)
        return _load_foreign(directory, recipe, allow_pickle, report)


def _load_own(directory: Path, recipe: Recipe | None) -> Checkpoint:
    spec = read_task_spec(directory)
    _check_task(directory, spec.task, recipe)
    try:
        tokenizer_json = (directory / "tokenizer.json").read_bytes()
        config_json = (directory / "config.json").read_bytes()
        run = json.loads((directory / RUN_FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory}: damaged checkpoint: {error}") from None
    model = load_model(directory, load_task(spec).auto_model, allow_pickle=False)
    pad_id = model.config.pad_token_id
    tokenizer = Tokenizer(directory / "tokenizer.json", spec.max_length, pad_id)
    digest = _digest(directory)
    return Checkpoint(model, spec, tokenizer, tokenizer_json, config_json, pad_id, directory, run, digest)


def _load_foreign(
    directory: Path, recipe: Recipe | None, allow_pickle: bool, report: Callable[[str], None]
) -> Checkpoint:
    config = _read_config(directory)
    task = _task_of(directory, config)
    _check_task(directory, task, recipe)
    labels, config_json = _labels_of(config), (directory / "config.json").read_bytes()
    has_no_names = TASKS[task].takes_labels and labels == _generic_labels(len(labels))
    if has_no_names and (given := _given_labels(directory, labels, recipe, report)):
        labels, config_json = given, _relabelled(directory, given)
    try:
        hf_tokenizer, _, _ = load_tokenizer(str(directory), _LONGEST)
        max_length = min(length_limit(config, hf_tokenizer), _LONGEST)
        _, tokenizer, tokenizer_json = load_tokenizer(str(directory), max_length)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{directory}: its tokenizer cannot be used: {_first_line(error)}") from None
    spec = TaskSpec(task=task, labels=labels, max_length=max_length)
    model = load_model(directory, load_task(spec).auto_model, allow_pickle)
    digest = _digest(directory)
    return Checkpoint(model, spec, tokenizer, tokenizer_json, config_json, tokenizer.pad_id, directory, None, digest)


def _check_task(directory: Path, task: str, recipe: Recipe | None) -> None:
    if recipe is not None and recipe.task != task:
        raise RecipeError(f"task: found {recipe.task}; expected {task}, the task of {directory}")


def _is_unfinished(directory: Path) -> bool:
    """Whether training left this behind without having come to its end."""
    is_trainers = directory.absolute().parent.parent.name.endswith(".training")
    return not is_finished(directory) and ((directory / RUN_FILE).is_file() or is_trainers)


def _read_config(directory: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(directory, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{directory}: not a checkpoint: {_first_line(error)}") from None


def _task_of(directory: Path, config: Any) -> str:
    """By the class that the model was saved from; transformers tells sequence classifiers apart in the same way."""
    architectures = config.architectures or []
    problem = config.problem_type or ("regression" if config.num_labels == 1 else "single_label_classification")
    heads = {_head_of(one) for one in architectures} - {None}
    for name, task in TASKS.items():
        if _head_of(task.auto_model) in heads and task.problem_type in (None, problem):
            return name
    found = ", ".join(architectures) or "no architecture"
    raise CheckpointError(f"{directory}: found {found}; this version knows: {', '.join(TASKS)}")


def _head_of(architecture: str) -> str | None:
    """What optimum's task manager says a class of transformers is for, such as `text-classification`, or None."""
    import transformers
    from optimum.exporters.tasks import TasksManager

    known = getattr(transformers, architecture, None)
    try:
        return None if known is None else str(TasksManager.infer_task_from_model(known))
    except ValueError:  # one that has no task
        return None


def _labels_of(config: Any) -> tuple[str, ...]:
    return tuple(str(config.id2label[index]) for index in range(config.num_labels))


def _generic_labels(count: int) -> tuple[str, ...]:
    """What transformers calls labels that nobody named."""
    return tuple(f"LABEL_{index}" for index in range(count))


def _given_labels(
    directory: Path, generic: tuple[str, ...], recipe: Recipe | None, report: Callable[[str], None]
) -> tuple[str, ...] | None:
    """The recipe's labels for a model whose own say nothing; where it has none, a person is told."""
    if recipe is None or recipe.labels is None:
        report(
            f"warning: {directory}: its labels have no names ({generic[0]} to {generic[-1]}); give them in a recipe, "
            "labels = [...] in the order of the model's outputs, and the recipe as --recipe"
        )
        return None
    if len(recipe.labels) != len(generic):
        raise RecipeError(f"labels: found {len(recipe.labels)}; expected {len(generic)}, the outputs of {directory}")
    return recipe.labels


def _relabelled(directory: Path, labels: Sequence[str]) -> bytes:
    config = json.loads((directory / "config.json").read_bytes())
    config["id2label"] = {str(index): label for index, label in enumerate(labels)}
    config["label2id"] = {label: index for index, label in enumerate(labels)}
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()


def _digest(directory: Path) -> str:
    others = [name for name in ("config.json", "tokenizer.json", TASK_FILE) if (directory / name).is_file()]
    return digest_of(directory, sorted([*others, *weight_files(directory)]))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
