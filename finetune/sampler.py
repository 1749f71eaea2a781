"""The order in which training rows come."""

import math
from collections.abc import Iterator
from itertools import chain

import torch
from transformers import Trainer
from transformers.trainer_pt_utils import get_length_grouped_indices

__all__ = ["LengthGroupedSampler"]


class LengthGroupedSampler(torch.utils.data.Sampler[int]):
    """Batches of rows of similar length, in random order; drawn from seed and epoch alone.

    Trainer's own sampler goes from long rows to short ones again and again, which costs entity recognition much of an
    epoch (benchmarks/LOG.md, "long rows first"). It also draws from the global generator, so that an epoch resumed in
    its middle has another order: some rows come twice and some never.
    """

    def __init__(self, trainer: Trainer, lengths: list[int], batch_size: int) -> None:
        self._trainer = trainer
        self._lengths = lengths
        self._batch_size = batch_size

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        batch_size = self._batch_size
        epoch = self._trainer.state.global_step // math.ceil(len(self._lengths) / batch_size)
        generator = torch.Generator()
        generator.manual_seed(self._trainer.args.seed + epoch)
        indices: list[int] = get_length_grouped_indices(  # type: ignore[no-untyped-call]
            self._lengths, batch_size, generator=generator
        )
        batches = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
        # the last one alone may be smaller, and has to stay the last: the loader cuts every batch_size rows
        full = len(indices) // batch_size
        order = [*torch.randperm(full, generator=generator).tolist(), *range(full, len(batches))]
        return chain.from_iterable(batches[number] for number in order)
