"""Attention fused by construction: transformers' attention interface emits ONNX Runtime's MultiHeadAttention.

ONNX Runtime's pattern matcher does not recognise the graphs that torch's exporter makes of transformers 5, so nothing
is left to it: while a model is traced, its attention function *is* the fused operator.

What a layer may attend to reaches the operator in one of two forms. Padding alone is the 2-D mask itself, the cheaper
form. Anything more (the sliding window of ModernBERT's local layers) is a bias with a row for every query that holds
padding and window together.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import AttentionMaskInterface, bidirectional_mask_function, eager_mask

__all__ = ["fused_attention", "obstacle_to_fusion"]

_NAME = "onnxruntime_mha"

_WITHOUT_EFFECT = frozenset({"deterministic", "dropout", "position_ids", "sliding_window", "use_cache"})
"""Arguments that change nothing of what a model in evaluation answers, or that the mask holds already."""


class _UnknownArgumentError(Exception):
    """A model asks its attention for something that the operator might not do."""


def obstacle_to_fusion(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> str | None:
    """Why a model's attention cannot be fused, for people; None when it can.

    Args:
        model: in evaluation mode.
        inputs: an example, by the names of the model's arguments; run once to see what its attention is asked for.
    """
    if not model._supports_attention_backend:
        return f"{type(model).__name__} does not use transformers' attention interface"
    try:
        with fused_attention(model), torch.no_grad():
            model(**inputs)
    except _UnknownArgumentError as error:
        return f"{type(model).__name__}: {error}"
    return None


@contextmanager
def fused_attention(model: PreTrainedModel) -> Iterator[None]:
    """Within the block, tracing the model emits one MultiHeadAttention node per attention."""
    AttentionInterface.register(_NAME, _multi_head_attention)
    AttentionMaskInterface.register(_NAME, _operator_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _operator_mask(*, mask_function: Any, attention_mask: torch.Tensor | None, **sizes: Any) -> torch.Tensor | None:
    """A mask as the operator takes it.

    Returns:
        Where only padding is masked, the 2-D mask, int32, shape `[batch, tokens]`; else an additive bias, float32,
        shape `[batch, 1, tokens, tokens]`. None when nothing is masked.
    """
    if mask_function is bidirectional_mask_function:
        return None if attention_mask is None else attention_mask.to(torch.int32)
    return eager_mask(mask_function=mask_function, attention_mask=attention_mask, **sizes)


def _multi_head_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Emits `com.microsoft::MultiHeadAttention`; tensors come as `[batch, heads, tokens, head_size]`.

    Its inputs are in ONNX Runtime's ContribOperators.md: query, key, value, bias of the projections, key padding mask,
    attention bias.

    Raises:
        _UnknownArgumentError: for an argument that the operator might not obey.
    """
    unknown = [name for name, given in others.items() if given is not None and name not in _WITHOUT_EFFECT]
    if unknown:
        raise _UnknownArgumentError(f"its attention takes {', '.join(unknown)}, which the fused operator does not know")
    batch, heads, tokens, head_size = query.shape
    # of grouped queries, several heads share one head of keys and values; the operator wants one for each
    key, value = (repeat_kv(tensor, heads // tensor.shape[1]) for tensor in (key, value))
    flat = [tensor.transpose(1, 2).reshape(batch, -1, heads * head_size) for tensor in (query, key, value)]
    is_bias = attention_mask is not None and attention_mask.ndim == 4
    masks = (None, attention_mask) if is_bias else (attention_mask,)
    attended = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        (*flat, None, *masks),
        {"num_heads": heads, "scale": float(scaling if scaling is not None else head_size**-0.5)},
        dtype=query.dtype,
        shape=flat[0].shape,
        version=1,
    )
    return attended.reshape(batch, tokens, heads, head_size), None
