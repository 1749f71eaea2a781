"""Low-rank adapters (LoRA, Hu et al. 2022, arXiv:2106.09685) through peft, merged before a checkpoint is written."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tasks.errors import RecipeError

__all__ = ["adapt", "load_adapted", "merge"]


def adapt(model: Any, rank: int, alpha: int) -> None:
    """Gives every product of the encoder an adapter; from then on adapters and head are trained, and nothing else.

    Args:
        model: of transformers, with any head; changed in place.
        rank: of the adapters.
        alpha: over the rank, what the adapters' outputs are multiplied with.

    Raises:
        RecipeError: if peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise RecipeError(
            "train.lora_rank: adapters need the package peft; pip install 'paritybit[finetune,lora]'"
        ) from None
    head = [parameter for name, parameter in model.named_parameters() if not _is_of_encoder(name, model)]
    targets = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and _is_of_encoder(name, model)
    ]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=targets), model)
    for parameter in head:
        parameter.requires_grad = True


def load_adapted(model: Any, checkpoint: Path) -> None:
    """Loads the weights that Trainer wrote of an adapted model."""
    model.load_state_dict(load_file(checkpoint / "model.safetensors"))


@torch.no_grad()
def merge(model: Any) -> None:
    """Adds the adapters to the weights that they stand beside, which leaves the model that there was."""
    from peft.tuners.lora import LoraLayer

    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, LoraLayer):
                child.merge()
                setattr(parent, name, child.get_base_layer())
    for parameter in model.parameters():
        parameter.requires_grad = True
    if hasattr(model, "peft_config"):
        del model.peft_config


def _is_of_encoder(name: str, model: Any) -> bool:
    """Whether a module or parameter is of the encoder; its pooler counts as the head's."""
    return name.startswith(f"{model.base_model_prefix}.") and ".pooler." not in f"{name}."
