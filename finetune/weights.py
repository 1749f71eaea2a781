"""A model's weights: which files hold them, which of these may be read, and how they are loaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tasks.errors import CheckpointError

__all__ = ["fetch_model", "load_model", "weight_files"]

_SAFE = ("*.safetensors", "model.safetensors.index.json")
_PICKLED = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
_REFUSAL = "no safetensors weights; pickled ones (pytorch_model.bin) are read with --allow-pickle only"


def weight_files(directory: Path) -> list[str]:
    """Names of the files that the weights are read from: safetensors, else pickles."""
    return _matching(directory, _SAFE) or _matching(directory, _PICKLED)


def fetch_model(location: str, allow_pickle: bool) -> Path:
    """The cached snapshot of a hub model; what it lacks is downloaded.

    Raises:
        CheckpointError: if the hub has no such model, is out of reach, or has pickled weights only, which are not
            allowed.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    def download(*patterns: str) -> Path:
        return Path(snapshot_download(location, allow_patterns=list(patterns), ignore_patterns=["*/*"]))

    try:
        directory = download("*.json", *_SAFE, "*.txt", "*.model")
        # only then, since most repositories hold the same weights in both forms
        if allow_pickle and not _matching(directory, _SAFE):
            directory = download(*_PICKLED)
    except HFValidationError:
        raise CheckpointError(f"{location}: no such checkpoint directory") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = _first_line(error)
        raise CheckpointError(f"{location}: neither a directory nor a hub model within reach: {reason}") from None
    if not allow_pickle and not _matching(directory, _SAFE):
        raise CheckpointError(f"{location}: {_REFUSAL}")
    return directory


def load_model(directory: Path, auto_model: str, allow_pickle: bool) -> Any:
    """A model in evaluation mode, float32, on the CPU.

    Args:
        directory: where configuration and weights lie.
        auto_model: name of the transformers class.
        allow_pickle: whether pickled weights may be read where there are no others.

    Raises:
        CheckpointError: if the weights are missing, damaged, not all there, or pickled and not allowed.
    """
    import transformers

    if not allow_pickle and _matching(directory, _PICKLED) and not _matching(directory, _SAFE):
        raise CheckpointError(f"{directory}: {_REFUSAL}")
    try:
        model, info = getattr(transformers, auto_model).from_pretrained(
            directory,
            dtype=torch.float32,
            # None takes safetensors where there are any
            use_safetensors=None if allow_pickle else True,
            weights_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # safetensors, the unpickler and transformers raise several unrelated types
        raise CheckpointError(f"{directory}: the weights cannot be loaded: {_first_line(error)}") from None
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise CheckpointError(f"{directory}: weights are missing ({missing}); expected a model fine-tuned for its task")
    return model.eval()


def _matching(directory: Path, patterns: Sequence[str]) -> list[str]:
    return sorted(path.name for pattern in patterns for path in directory.glob(pattern))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
