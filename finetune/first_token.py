"""The last layer, trained for the one token that a classification head reads.

Keys and values of the last attention need every token. What comes after, its output's product, the feed-forward part
and two norms, is read for the first token only, and no gradient comes from the others: nine twelfths of the layer's
weight products for every further token, an eighth of a model of six layers, are computed for nobody.
`export.first_token` does the same to a graph.
"""

from typing import Any

import torch

from finetune.inference import model_inputs, raw_outputs
from finetune.layers import encoder

__all__ = ["train_first_token"]

_MOST_APART = 1e-4


def train_first_token(model: torch.nn.Module) -> bool:
    """Computes what follows the last attention for the first token only, where the model's answer is the same then.

    That is tried on a few tokens: a head that reads every token, or their mean, answers otherwise. It is known how to
    do it where an attention's output is a module of its own that takes the attended and the residual hidden states, as
    in BERT, RoBERTa, ELECTRA, DeBERTa and those made like them.

    Args:
        model: of transformers, with a head; changed in place, its weights and their names are not.

    Returns:
        Whether it was done.
    """
    outputs = [one for name, one in encoder(model).named_modules() if name.endswith("attention.output")]
    if not outputs:
        return False
    full = _answer(model)
    hook = outputs[-1].register_forward_pre_hook(_first_of_each)
    try:
        narrow = _answer(model)
    except (IndexError, RuntimeError, ValueError):
        narrow = None
    same = narrow is not None and narrow.shape == full.shape and bool((narrow - full).abs().max() <= _MOST_APART)
    if not same:
        hook.remove()
    return same


def _first_of_each(_: torch.nn.Module, states: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(one[:, :1] for one in states)


@torch.inference_mode()
def _answer(model: Any) -> torch.Tensor:
    """To two texts of five and three tokens."""
    ids = torch.arange(5, 15, device=model.device).reshape(2, 5) % model.config.vocab_size
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], device=model.device)
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    training = model.training
    answer = raw_outputs(model.eval()(**{name: inputs[name] for name in model_inputs(model)}))
    model.train(training)
    return answer
