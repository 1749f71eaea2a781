"""Attention fused by construction: transformers' attention interface emits ONNX Runtime's MultiHeadAttention.

ONNX Runtime's pattern matcher does not recognise the graphs that torch's exporter makes of transformers 5, so nothing
is left to it: while a model is traced, its attention function *is* the fused operator.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

__all__ = ["can_fuse_attention", "fused_attention"]

_NAME = "onnxruntime_mha"


def can_fuse_attention(model: PreTrainedModel) -> bool:
    """Whether all of a model's attention goes through the interface and needs a padding mask only.

    A sliding window would have to reach the operator as a bias; a padding mask alone drops it in silence.
    """
    config = model.config
    sliding = getattr(config, "sliding_window", None) or getattr(config, "local_attention", None)
    return bool(model._supports_attention_backend) and not sliding and not getattr(config, "is_decoder", False)


@contextmanager
def fused_attention(model: PreTrainedModel) -> Iterator[None]:
    """Within the block, tracing the model emits one MultiHeadAttention node per attention."""
    AttentionInterface.register(_NAME, _multi_head_attention)
    AttentionMaskInterface.register(_NAME, _key_padding_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _key_padding_mask(*_: Any, attention_mask: torch.Tensor | None = None, **__: Any) -> torch.Tensor | None:
    """The 2-D mask itself, int32, shape `[batch, tokens]`: what the operator calls a raw key padding mask."""
    return None if attention_mask is None else attention_mask.to(torch.int32)


def _multi_head_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Emits `com.microsoft::MultiHeadAttention`; tensors come as `[batch, heads, tokens, head_size]`."""
    batch, heads, tokens, head_size = query.shape
    flat = [tensor.transpose(1, 2).reshape(batch, -1, heads * head_size) for tensor in (query, key, value)]
    attended = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        (*flat, None, attention_mask),
        {"num_heads": heads, "scale": float(scaling if scaling is not None else head_size**-0.5)},
        dtype=query.dtype,
        shape=flat[0].shape,
        version=1,
    )
    return attended.reshape(batch, tokens, heads, head_size), None
