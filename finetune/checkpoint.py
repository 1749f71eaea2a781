"""A checkpoint, ready for export and comparison: one that paritybit trained, or anybody's Hugging Face model."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from finetune.base_model import length_limit, load_tokenizer, quiet_transformers
from tasks.base import TaskSpec
from tasks.catalogue import TASKS, load_task
from tasks.checkpoint import RUN_FILE, TASK_FILE, is_finished, read_task_spec
from tasks.directory import digest_of
from tasks.encoding import Tokenizer
from tasks.errors import CheckpointError

__all__ = ["Checkpoint", "load_checkpoint"]

_LONGEST = 512
"""Of a foreign checkpoint, whose configuration may allow more than anybody wants to serve."""

_DIGESTED = ("config.json", "*.safetensors", "model.safetensors.index.json", "tokenizer.json", TASK_FILE)


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        model: in evaluation mode, float32, on the CPU.
        spec: its task and labels.
        tokenizer: cuts at the task's max_length.
        tokenizer_json: the bytes of its `tokenizer.json`, for the bundle.
        pad_token_id: of the padding token.
        directory: where it lies; of a hub model, the cached snapshot.
        run: what `run.json` holds; None for a foreign one.
        digest: over configuration, weights, tokenizer and task.
    """

    model: Any
    spec: TaskSpec
    tokenizer: Tokenizer
    tokenizer_json: bytes
    pad_token_id: int
    directory: Path
    run: dict[str, Any] | None
    digest: str


def load_checkpoint(location: str | Path) -> Checkpoint:
    """Loads a checkpoint that paritybit trained, a foreign Hugging Face directory, or a hub model.

    Weights are read from safetensors only; code that a model brings along is never run.

    Raises:
        CheckpointError: if it is missing, unfinished, damaged, or made for a task that this version does not know.
    """
    directory = Path(location)
    if not directory.is_dir():
        directory = _hub_snapshot(str(location))
    if _is_unfinished(directory):
        raise CheckpointError(f"{directory}: unfinished checkpoint ({TASK_FILE} is missing); run finetune again")
    with quiet_transformers():
        return _load_own(directory) if is_finished(directory) else _load_foreign(directory)


def _load_own(directory: Path) -> Checkpoint:
    spec = read_task_spec(directory)
    try:
        tokenizer_json = (directory / "tokenizer.json").read_bytes()
        run = json.loads((directory / RUN_FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory}: damaged checkpoint: {error}") from None
    model = _load_model(directory, load_task(spec).auto_model)
    pad_id = model.config.pad_token_id
    tokenizer = Tokenizer(directory / "tokenizer.json", spec.max_length, pad_id)
    return Checkpoint(model, spec, tokenizer, tokenizer_json, pad_id, directory, run, _digest(directory))


def _load_foreign(directory: Path) -> Checkpoint:
    config = _read_config(directory)
    task, labels = _task_of(directory, config), _labels_of(config)
    try:
        hf_tokenizer, _, _ = load_tokenizer(str(directory), _LONGEST)
        max_length = min(length_limit(config, hf_tokenizer), _LONGEST)
        _, tokenizer, tokenizer_json = load_tokenizer(str(directory), max_length)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{directory}: its tokenizer cannot be used: {_first_line(error)}") from None
    spec = TaskSpec(task=task, labels=labels, max_length=max_length)
    model = _load_model(directory, load_task(spec).auto_model)
    return Checkpoint(model, spec, tokenizer, tokenizer_json, tokenizer.pad_id, directory, None, _digest(directory))


def _load_model(directory: Path, auto_model: str) -> Any:
    import transformers

    try:
        model, info = getattr(transformers, auto_model).from_pretrained(
            directory, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # safetensors and transformers raise several unrelated types
        raise CheckpointError(f"{directory}: the weights cannot be loaded: {_first_line(error)}") from None
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise CheckpointError(f"{directory}: weights are missing ({missing}); expected a model fine-tuned for its task")
    return model.eval()


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
    for name, task in TASKS.items():
        is_head = any(one.endswith(task.auto_model.removeprefix("AutoModel")) for one in architectures)
        if is_head and task.problem_type in (None, problem):
            return name
    found = ", ".join(architectures) or "no architecture"
    raise CheckpointError(f"{directory}: found {found}; this version knows: {', '.join(TASKS)}")


def _labels_of(config: Any) -> tuple[str, ...]:
    return tuple(str(config.id2label[index]) for index in range(config.num_labels))


def _hub_snapshot(location: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model"]
    try:
        return Path(snapshot_download(location, allow_patterns=patterns, ignore_patterns=["*/*"]))
    except HFValidationError:
        raise CheckpointError(f"{location}: no such checkpoint directory") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = _first_line(error)
        raise CheckpointError(f"{location}: neither a directory nor a hub model within reach: {reason}") from None


def _digest(directory: Path) -> str:
    return digest_of(directory, sorted({path.name for pattern in _DIGESTED for path in directory.glob(pattern)}))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
