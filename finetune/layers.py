"""The layers of an encoder: left out, drawn anew, frozen, thawed one after the other, or given slower rates."""

from typing import Any

import torch
from transformers import TrainerCallback

from finetune.recipe import TrainSection
from tasks.errors import RecipeError

__all__ = ["GradualUnfreezing", "depths", "encoder", "freeze", "keep_layers", "reinitialize"]


def encoder(model: torch.nn.Module) -> torch.nn.Module:
    """The model without its head."""
    return getattr(model, model.base_model_prefix, model)  # type: ignore[call-overload, no-any-return]


def keep_layers(model: torch.nn.Module, count: int) -> None:
    """Leaves out all but the lowest layers (Sajjad et al. 2020, arXiv:2004.03844).

    Raises:
        RecipeError: if there are not as many.
    """
    del _layers(model, "train.keep_layers", count)[count:]
    config: Any = model.config
    config.num_hidden_layers = count
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:count]


def reinitialize(model: torch.nn.Module, count: int) -> None:
    """Draws the top layers and the pooler anew (Zhang et al. 2021, arXiv:2006.05987).

    Raises:
        RecipeError: if there are not as many.
    """
    layers = _layers(model, "train.reinitialize_layers", count)
    pooler = getattr(encoder(model), "pooler", None)
    for part in [*layers[len(layers) - count :], *([pooler] if pooler is not None else [])]:
        for parameter in part.parameters():
            # else transformers takes it for loaded, and leaves it alone
            parameter._is_hf_initialized = False
        for module in part.modules():
            model._init_weights(module)  # type: ignore[operator]


def freeze(model: torch.nn.Module, settings: TrainSection) -> None:
    """Freezes what the recipe says; before the optimizer is made, for frozen parameters that are in it may decay.

    Raises:
        RecipeError: if there are not as many layers.
    """
    if settings.freeze_encoder:
        for parameter in encoder(model).parameters():
            parameter.requires_grad = False
        return
    if settings.biases_only:
        for name, parameter in encoder(model).named_parameters():
            parameter.requires_grad = name.endswith("bias")
    if settings.freeze_embeddings or settings.freeze_layers:
        for parameter in _embeddings(model).parameters():
            parameter.requires_grad = False
    if settings.freeze_layers:
        for layer in _layers(model, "train.freeze_layers", settings.freeze_layers)[: settings.freeze_layers]:
            for parameter in layer.parameters():
                parameter.requires_grad = False


def depths(model: torch.nn.Module, key: str) -> dict[str, int]:
    """For each parameter by its name: 0 for embeddings, 1 for the lowest layer, …, one more than layers for the rest.

    Args:
        model: with any head.
        key: the recipe's key that needs them, for the error.

    Raises:
        RecipeError: for a model whose layers share their weights.
    """
    layers = _layers(model, key)
    known = {id(parameter): 0 for parameter in _embeddings(model).parameters()}
    for number, layer in enumerate(layers, start=1):
        known |= {id(parameter): number for parameter in layer.parameters()}
    return {name: known.get(id(parameter), len(layers) + 1) for name, parameter in model.named_parameters()}


class GradualUnfreezing(TrainerCallback):
    """Trains the head alone at first, and one layer more with each epoch, from the top (Howard & Ruder 2018).

    Every parameter has to be in the optimizer, which leaves alone those without a gradient; Trainer would drop those
    that are frozen when it makes the optimizer.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        by_depth = depths(model, "train.gradual_unfreezing")
        self._top = max(by_depth.values())
        # what is frozen for good stays so
        self._parameters = [(one, by_depth[name]) for name, one in model.named_parameters() if one.requires_grad]

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Freezes what the epoch does not train yet."""
        lowest = self._top - int(state.epoch)
        for parameter, depth in self._parameters:
            parameter.requires_grad = depth >= lowest


def _layers(model: torch.nn.Module, key: str, least: int = 0) -> torch.nn.ModuleList:
    """The layers of an encoder, the lowest first; the recipe's key that needs them is named in errors."""
    config: Any = model.config
    count = config.num_hidden_layers
    if least > count:
        raise RecipeError(f"{key}: found {least}; expected at most {count}, the layers of the base model")
    for module in encoder(model).modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return module
    # ALBERT's
    kind = config.model_type
    raise RecipeError(f"{key}: found with a base model of the type {kind}, whose layers share their weights")


def _embeddings(model: torch.nn.Module) -> torch.nn.Module:
    base: Any = encoder(model)
    return getattr(base, "embeddings", None) or base.get_input_embeddings()  # type: ignore[no-any-return]
