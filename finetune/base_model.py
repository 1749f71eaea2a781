"""Where a base model lies, what it is made of, and its tokenizer."""

import hashlib
import importlib.util
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.directory import digest_of
from tasks.encoding import Tokenizer
from tasks.errors import RecipeError

__all__ = [
    "BaseModelFiles",
    "digest_of_model",
    "length_limit",
    "load_tokenizer",
    "open_base_model",
    "quiet_transformers",
    "resolve_base_model",
]

_MODEL_FILES = ("*.json", "*.safetensors", "*.bin", "*.txt", "*.model")

_OFFSET_POSITIONS = {
    "camembert",
    "data2vec-text",
    "ibert",
    "longformer",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
}
"""Families that number positions from pad_token_id + 1, so that many of max_position_embeddings hold no token."""


@dataclass(frozen=True, slots=True)
class BaseModelFiles:
    """A base model, opened but without its weights.

    Attributes:
        location: local directory or hub id, as `from_pretrained` takes it.
        config: the transformers configuration.
        hf_tokenizer: the transformers tokenizer, to be saved with the checkpoint.
        tokenizer: the same tokenizer, as paritybit uses it everywhere.
        tokenizer_json: the bytes of its `tokenizer.json`.
        digest: of what the location holds.
    """

    location: str
    config: Any
    hf_tokenizer: Any
    tokenizer: Tokenizer
    tokenizer_json: bytes
    digest: str


def resolve_base_model(base: str) -> str:
    """The local directory or hub id that a recipe's `base_model` means.

    A package is found without being imported.

    Raises:
        RecipeError: if the package, the folder in it, or the local directory is missing.
    """
    if base.startswith("package:"):
        return str(_in_package(base))
    path = Path(base)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise RecipeError(f"base_model: {base} holds no config.json; expected a Hugging Face model directory")
        return str(path)
    if path.is_absolute() or base.startswith("."):
        raise RecipeError(f"base_model: {base}: no such directory")
    return base


def digest_of_model(location: str) -> str:
    """A digest of a model's configuration, weights and tokenizer.

    A hub model is known by its id and the commit that the local cache holds, so nothing large is read; while nothing
    is cached, by its id alone.
    """
    directory = Path(location)
    if directory.is_dir():
        names = {path.name for pattern in _MODEL_FILES for path in directory.glob(pattern)}
        return digest_of(directory, sorted(names))
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(location, "config.json")
    commit = Path(cached).parent.name if isinstance(cached, str) else ""
    return hashlib.sha256(f"{location}@{commit}".encode()).hexdigest() if commit else location


def open_base_model(base: str, max_length: int) -> BaseModelFiles:
    """Opens a recipe's base model: everything but the weights. A hub model is downloaded where it is not cached.

    Raises:
        RecipeError: if it is missing, has no fast tokenizer, or takes fewer than `max_length` tokens.
    """
    from transformers import AutoConfig

    location = resolve_base_model(base)
    with quiet_transformers():
        try:
            config = AutoConfig.from_pretrained(location, trust_remote_code=False)
            hf_tokenizer, tokenizer, tokenizer_json = load_tokenizer(location, max_length)
        except (OSError, ValueError, KeyError) as error:
            raise RecipeError(f"base_model: {base} cannot be opened: {_first_line(error)}") from None
    limit = length_limit(config, hf_tokenizer)
    if max_length > limit:
        raise RecipeError(f"max_length: found {max_length}; expected at most {limit}, the limit of {base}")
    return BaseModelFiles(location, config, hf_tokenizer, tokenizer, tokenizer_json, digest_of_model(location))


def load_tokenizer(location: str, max_length: int) -> tuple[Any, Tokenizer, bytes]:
    """The transformers tokenizer of a model, the same as a `Tokenizer`, and its `tokenizer.json`.

    Raises:
        ValueError: if the model has no fast tokenizer, no vocabulary or no padding token.
        OSError: if the model cannot be found.
    """
    from transformers import AutoTokenizer

    hf_tokenizer = AutoTokenizer.from_pretrained(location, trust_remote_code=False)
    # where the files are missing, transformers 5 makes up a tokenizer of special tokens alone
    if len(hf_tokenizer) <= len(hf_tokenizer.all_special_ids):
        raise ValueError("its tokenizer has no vocabulary")
    if hf_tokenizer.pad_token_id is None:
        raise ValueError("its tokenizer has no padding token")
    with tempfile.TemporaryDirectory() as folder:
        hf_tokenizer.save_pretrained(folder)
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise ValueError("it has no fast tokenizer (tokenizer.json)")
        return hf_tokenizer, Tokenizer(path, max_length, hf_tokenizer.pad_token_id), path.read_bytes()


def length_limit(config: Any, hf_tokenizer: Any) -> int:
    """The most tokens, special ones included, that a model takes, as its configuration and tokenizer say."""
    positions = getattr(config, "max_position_embeddings", None) or 10**9
    if config.model_type in _OFFSET_POSITIONS:
        positions -= (config.pad_token_id or 0) + 1
    return min(int(positions), int(hf_tokenizer.model_max_length))


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps transformers' progress bars and everything below an error off the screen, for a while."""
    from transformers.utils import logging as hf_logging

    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    accelerate = logging.getLogger("accelerate")
    level = accelerate.level
    hf_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    accelerate.setLevel(logging.ERROR)
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        accelerate.setLevel(level)
        if bars:
            hf_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _in_package(base: str) -> Path:
    module, _, folder = base.removeprefix("package:").partition("/")
    try:
        # only the top package: find_spec imports the parents of a dotted name
        spec = importlib.util.find_spec(module) if module and "." not in module else None
    except ValueError:
        spec = None
    if spec is None or not spec.submodule_search_locations:
        hint = module.replace("_", "-")
        raise RecipeError(f"base_model: the package {module!r} is not installed; expected: pip install {hint}")
    path = Path(spec.submodule_search_locations[0]) / folder
    if not (path / "config.json").is_file():
        raise RecipeError(f"base_model: the package {module!r} holds no model in {folder!r} ({path}/config.json)")
    return path


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
