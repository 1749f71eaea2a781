"""An encoder that is hard to quantize, though it says what it said before."""

from typing import Any

import torch

__all__ = ["make_hostile"]


@torch.no_grad()
def make_hostile(model: Any, channel: int = 5, factor: float = 50.0) -> None:
    """Makes one channel of every norm inside a BERT encoder fifty times as large as it was, and nothing else.

    Trained encoders have such channels (Kovaleva et al. 2021, "BERT Busters", arXiv:2105.06990). The norms of a BERT
    are read by products and by the residual, whose sum goes through the next norm. To scale the channel would change
    that sum; but a constant can be added to the channel by the norm's bias and taken away again by every reader: by
    the biases of the products, `W (x + c) + (b - W c)`, and by the bias of what is added to the residual. So the answer
    is the same up to rounding in float32, while a scale that is common to all channels loses a factor of fifty.

    Args:
        model: a BERT with a head; changed in place.
        channel: of the hidden size.
        factor: size of the channel in units of the norm's weight, which is what a channel's spread is.
    """
    bert = model.bert
    before = [bert.embeddings.LayerNorm, *(layer.output.LayerNorm for layer in bert.encoder.layer)]
    for norm, layer in zip(before[:-1], bert.encoder.layer, strict=True):
        attention = layer.attention
        projections = [attention.self.query, attention.self.key, attention.self.value]
        _shift(norm, projections, attention.output.dense, channel, factor)
        _shift(attention.output.LayerNorm, [layer.intermediate.dense], layer.output.dense, channel, factor)


def _shift(norm: Any, readers: list[Any], residual: Any, channel: int, factor: float) -> None:
    constant = factor * norm.weight[channel].item()
    norm.bias[channel] += constant
    for reader in readers:
        reader.bias -= constant * reader.weight[:, channel]
    residual.bias[channel] -= constant
