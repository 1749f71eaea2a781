"""PyTorch behind the engine callable. Only a worker process imports this module."""

from pathlib import Path

import torch

from export.timing import Batch, Engine
from finetune.checkpoint import load_checkpoint
from finetune.inference import model_inputs, to_tensors

__all__ = ["torch_engine"]


def torch_engine(*, checkpoint: str, attention: str, threads: int) -> Engine:
    """A checkpoint's model; numpy arrays in and out, as ONNX Runtime is fed.

    Args:
        checkpoint: a directory.
        attention: `eager` or `sdpa`, as transformers calls them.
        threads: of one run.

    Raises:
        CheckpointError: if the checkpoint cannot be loaded.
    """
    torch.set_num_threads(threads)
    model = load_checkpoint(Path(checkpoint)).model
    model.set_attn_implementation(attention)
    names = model_inputs(model)

    def run(batch: Batch) -> object:
        # entered for every batch: the mode belongs to a block, not to a model
        with torch.inference_mode():
            return model(**to_tensors(batch, names))[0].numpy()

    return run
