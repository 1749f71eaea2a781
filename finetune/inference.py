"""Plain PyTorch inference: the reference that every other engine is measured against."""

import inspect
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from tasks.base import FloatArray
from tasks.encoding import IntArray, Window, collate

__all__ = ["model_inputs", "predict", "to_tensors"]

_BATCH_SIZE = 64


def model_inputs(model: torch.nn.Module) -> tuple[str, ...]:
    """Which arrays of `collate` a model takes, in the order of `collate`.

    Token types are left out where the model has but one, for its embedding would know no second.
    """
    names = ["input_ids", "attention_mask"]
    knows_types = "token_type_ids" in inspect.signature(model.forward).parameters
    if knows_types and getattr(model.config, "type_vocab_size", 2) > 1:
        names.append("token_type_ids")
    return tuple(names)


def to_tensors(batch: Mapping[str, IntArray], names: Sequence[str]) -> dict[str, torch.Tensor]:
    """The named arrays of a batch as tensors, int64, shape `[batch, tokens]`."""
    return {name: torch.from_numpy(batch[name]) for name in names}


@torch.inference_mode()
def predict(model: torch.nn.Module, windows: Sequence[Window], pad_id: int) -> list[FloatArray]:
    """The logits of each window, float32, in order; run in batches of similar length, in evaluation mode."""
    was_training, device, names = model.training, next(model.parameters()).device, model_inputs(model)
    outputs: list[FloatArray] = [np.empty(0, dtype=np.float32)] * len(windows)
    order = sorted(range(len(windows)), key=lambda row: len(windows[row]))
    model.eval()
    for start in range(0, len(order), _BATCH_SIZE):
        rows = order[start : start + _BATCH_SIZE]
        batch = to_tensors(collate([windows[row] for row in rows], pad_id), names)
        logits = model(**{name: tensor.to(device) for name, tensor in batch.items()}).logits
        for row, output in zip(rows, logits.float().cpu().numpy(), strict=True):
            outputs[row] = output
    model.train(was_training)
    return outputs
