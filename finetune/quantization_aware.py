"""Quantization-aware fine-tuning: weights that say in int8 what the fine-tuned model says in float.

Products are rounded in the forward pass as those of the int8 graph, and gradients pass as if they were not (Jacob et
al. 2018, arXiv:1712.05877). What is learnt are not the labels but the float model's own logits and last hidden states
(Polino et al. 2018, arXiv:1802.05668): it is this model that the int8 graph is held against.
"""

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.nn.functional import linear, mse_loss

from finetune.defaults import usual_learning_rate
from finetune.inference import model_inputs, predict, raw_outputs, to_tensors
from finetune.layers import encoder
from finetune.optimization import make_schedule
from finetune.sections import TrainSection
from tasks import Window
from tasks.encoding import collate

__all__ = ["fake_quantized", "tune_for_int8"]

Progress = Callable[[Iterable[int]], Iterable[int]]

_BATCH_SIZE = 32
_OBSERVED_WINDOWS = 256
_GRADIENT_NORM = 1.0
_RATE_SHARE = 0.1
"""Of the rate that found the weights: they are to be moved by a step of int8, not to be found again."""

_LEVELS, _SIGNED_LEVELS = 255, 127
_TINY = 1e-8


def fake_quantized(model: Any, windows: Sequence[Window], *, pad_id: int, weight_limit: int, by_token: bool) -> Any:
    """A copy that answers as the int8 graph does: its products are rounded, its gradients those of the float model.

    Args:
        model: fine-tuned, of transformers; left as it is.
        windows: training rows; some of them set the activations' ranges.
        pad_id: of the padding token.
        weight_limit: largest magnitude of an int8 weight.
        by_token: whether what the feed-forward part's activation function gives has a scale for each token.
    """
    rounded = copy.deepcopy(model).eval()
    width = model.config.hidden_size
    layers = _replaced(
        encoder(rounded), lambda one: _FakeQuantized(one, weight_limit, by_token and one.in_features > width)
    )
    for window in windows[:: max(1, len(windows) // _OBSERVED_WINDOWS)]:
        predict(rounded, [window], pad_id)  # alone: what padding gives is nobody's
    for layer in layers:
        layer.observing = False
    return rounded


def tune_for_int8(
    model: Any,
    windows: Sequence[Window],
    *,
    pad_id: int,
    weight_limit: int,
    by_token: bool,
    steps: int,
    seed: int,
    progress: Progress = iter,
) -> Any:
    """Trains a copy of a model until its int8 graph is nearer to the model itself.

    Args:
        model: as `fake_quantized` takes it, and so are `windows`, `pad_id`, `weight_limit` and `by_token`.
        windows: the training rows.
        pad_id: of the padding token.
        weight_limit: largest magnitude of an int8 weight.
        by_token: whether what the feed-forward part's activation function gives has a scale for each token.
        steps: of the optimizer, with 32 rows each.
        seed: of the order of the rows.
        progress: wraps the iteration over the steps, for a progress bar.

    Returns:
        The copy, a plain float model again.
    """
    teacher = model.eval()
    student = fake_quantized(teacher, windows, pad_id=pad_id, weight_limit=weight_limit, by_token=by_token)
    student.get_input_embeddings().requires_grad_(False)
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    rate = usual_learning_rate(model.config.hidden_size) * _RATE_SHARE
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    schedule = make_schedule(optimizer, TrainSection(), steps)
    for _, rows in zip(progress(range(steps)), _batches(windows, seed), strict=False):
        loss = _distance(teacher, student, collate([windows[row] for row in rows], pad_id))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, _GRADIENT_NORM)
        optimizer.step()
        schedule.step()
    _replaced(encoder(student), lambda one: one.linear)
    return student.requires_grad_(True)


class _FakeQuantized(torch.nn.Module):
    """A linear layer whose weights and inputs are rounded as in `export.quantization`.

    A product of one row a text, such as a pooler's, stays float there and here.
    """

    def __init__(self, layer: torch.nn.Linear, weight_limit: int, by_token: bool) -> None:
        super().__init__()
        self.linear = layer
        self.observing = True
        self._limit, self._by_token = weight_limit, by_token
        self._low = self._high = 0.0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The layer's output, float32, shape `[…, outputs]`; with `observing`, unrounded, the extremes kept."""
        if self.observing:
            self._low, self._high = min(self._low, inputs.min().item()), max(self._high, inputs.max().item())
        if self.observing or inputs.dim() < 3:
            return self.linear(inputs)  # type: ignore[no-any-return]
        weight = self.linear.weight
        steps = weight.detach().abs().amax(dim=1, keepdim=True).clamp(min=_TINY) / self._limit
        rounded = _straight_through(weight, (weight / steps).round() * steps)
        return linear(self._rounded(inputs), rounded, self.linear.bias)

    def _rounded(self, inputs: torch.Tensor) -> torch.Tensor:
        if self._by_token:
            steps = inputs.detach().abs().amax(dim=-1, keepdim=True).clamp(min=_TINY) / _SIGNED_LEVELS
            return _straight_through(inputs, (inputs / steps).round() * steps)
        step = max(self._high - self._low, _TINY) / _LEVELS
        zero = round(-self._low / step)
        quantized = ((inputs / step).round() + zero).clamp(0, _LEVELS)
        return _straight_through(inputs.clamp(self._low, self._high), (quantized - zero) * step)


def _straight_through(values: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    return values + (rounded - values).detach()


def _replaced(module: torch.nn.Module, make: Callable[[Any], torch.nn.Module]) -> list[Any]:
    """Puts what `make` gives in place of every linear layer, or of every rounded one where there are such."""
    made = []
    for name, child in module.named_children():
        if isinstance(child, torch.nn.Linear | _FakeQuantized):
            made.append(make(child))
            setattr(module, name, made[-1])
        else:
            made += _replaced(child, make)
    return made


def _batches(windows: Sequence[Window], seed: int) -> Iterator[Sequence[int]]:
    """Rows of similar length, the batches in another order with each pass, without end."""
    by_length = sorted(range(len(windows)), key=lambda row: len(windows[row]))
    starts = range(0, len(by_length), _BATCH_SIZE)
    for number in itertools.count():
        generator = torch.Generator().manual_seed(seed + number)
        for place in torch.randperm(len(starts), generator=generator).tolist():
            yield by_length[starts[place] : starts[place] + _BATCH_SIZE]


def _distance(teacher: Any, student: Any, batch: Any) -> torch.Tensor:
    """Mean squared errors of logits and of last hidden states, each in units of the teacher's variance."""
    device = next(teacher.parameters()).device
    inputs = {name: one.to(device) for name, one in to_tensors(batch, model_inputs(teacher)).items()}
    tokens = inputs["attention_mask"].bool()
    with torch.no_grad():
        wanted = teacher(**inputs, output_hidden_states=True)
    given = student(**inputs, output_hidden_states=True)
    logits = [raw_outputs(one) for one in (given, wanted)]
    if logits[0].dim() == 3:
        logits = [one[tokens] for one in logits]
    hidden = [one.hidden_states[-1][tokens] for one in (given, wanted)]
    return sum(
        (mse_loss(one, other) / other.var().clamp(min=_TINY) for one, other in (logits, hidden)), torch.zeros(())
    )
