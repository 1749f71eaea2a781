"""Plain PyTorch inference: the reference that every other engine is measured against."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from tasks.base import FloatArray
from tasks.encoding import IntArray, Window, collate, without_padding

__all__ = ["model_inputs", "predict", "raw_outputs", "to_tensors"]

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


def raw_outputs(answer: Any) -> torch.Tensor:
    """What a transformers model answers as the one tensor that tasks decode.

    Returns:
        Logits, shape `[batch, labels]` or `[batch, tokens, labels]`; of a question answering model its start and end
        logits, stacked on the last axis.
    """
    if "logits" in answer:
        return answer["logits"]  # type: ignore[no-any-return]
    return torch.stack([answer["start_logits"], answer["end_logits"]], dim=-1)


@torch.inference_mode()
def predict(model: torch.nn.Module, windows: Sequence[Window], pad_id: int) -> list[FloatArray]:
    """The raw outputs of each window, float32, in order; run in batches of similar length, in evaluation mode.

    Returns:
        One array a window, shape `[labels]` or `[tokens, labels]`.
    """
    was_training, device, names = model.training, next(model.parameters()).device, model_inputs(model)
    outputs: list[FloatArray] = [np.empty(0, dtype=np.float32)] * len(windows)
    order = sorted(range(len(windows)), key=lambda row: len(windows[row]))
    model.eval()
    for start in range(0, len(order), _BATCH_SIZE):
        rows = order[start : start + _BATCH_SIZE]
        chosen = [windows[row] for row in rows]
        batch = to_tensors(collate(chosen, pad_id), names)
        answer = raw_outputs(model(**{name: tensor.to(device) for name, tensor in batch.items()}))
        for row, output in zip(rows, without_padding(answer.float().cpu().numpy(), chosen), strict=True):
            outputs[row] = output
    model.train(was_training)
    return outputs
