"""What a run leaves for later readers: versions, hardware, and the digest of all that went in."""

import hashlib
import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

from finetune.recipe import Recipe

__all__ = ["hardware", "inputs_digest", "versions", "write_json"]

_PACKAGES = ("paritybit", "torch", "transformers", "tokenizers", "datasets", "accelerate", "numpy")


def versions() -> dict[str, str]:
    """Of Python and the libraries that a training's outcome depends on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _PACKAGES}


def hardware() -> dict[str, Any]:
    """Processor, threads and instruction set as PyTorch uses them, and the device that it trains on."""
    import torch

    return {
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def inputs_digest(recipe: Recipe, data_fingerprint: str, base_digest: str) -> str:
    """Hex SHA-256 of all that decides a training's outcome.

    Not the recipe's sections `export` and `sweep`, and of rows and base model not where they lie, but what they are.
    """
    trained_by = {
        name: version for name, version in versions().items() if name in ("paritybit", "torch", "transformers")
    }
    content = {
        "recipe": recipe.model_dump(mode="json", exclude={"export", "data", "base_model", "sweep"}),
        "data": data_fingerprint,
        "base_model": base_digest,
        "versions": trained_by,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Writes JSON through a sibling and a rename, so that the name never holds half of it."""
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    draft.replace(path)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
