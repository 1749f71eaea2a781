"""Several processes that train one model, as `torchrun` or `accelerate launch` start them, and how they speak together.

Each holds the whole model and a share of every batch; gradients are averaged (DistributedDataParallel). One process is
the first: it alone writes and speaks. Started without a launcher, a process is the first of one, and nothing here does
anything.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from tasks.base import FloatArray
from tasks.encoding import Window

__all__ = [
    "count",
    "first_before_others",
    "is_first",
    "join",
    "largest",
    "predict_together",
    "restart_hazard",
    "said_by_first",
    "wait",
]

_T = TypeVar("_T")


def count() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return _rank() == 0


def restart_hazard() -> str | None:
    """What a launcher that is to restart dead processes was not told, for people; None where all is well.

    torchrun (torch 2.13) keeps the store by which processes find each other over a restart, with the addresses of the
    dead in it: some restarts fail, some hang (benchmarks/LOG.md).
    """
    restarts, shared = (os.environ.get(f"TORCHELASTIC_{key}") for key in ("MAX_RESTARTS", "USE_AGENT_STORE"))
    if not int(restarts or 0) or shared != "True":
        return None
    return (
        "warning: a restart may fail or hang: set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 "
        "and give torchrun --rdzv-backend c10d --rdzv-endpoint localhost:0"
    )


def join() -> None:
    """Makes the processes known to each other; on CUDA gives each its device. It waits for all of them."""
    if count() > 1:
        _state()


def wait() -> None:
    """Until all processes have come here."""
    if count() > 1:
        _state().wait_for_everyone()


@contextmanager
def first_before_others() -> Iterator[None]:
    """The first process runs the block before the others do."""
    if not is_first():
        wait()
    yield
    if is_first():
        wait()


def largest(number: int) -> int:
    """The largest of the numbers that the processes came with."""
    if count() == 1:
        return number
    import torch

    found = torch.tensor(number, device=_state().device)
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return int(found)


def said_by_first(value: _T) -> _T:
    """What the first process came with."""
    if count() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    told: list[_T] = broadcast_object_list([value])
    return told[0]


def predict_together(model: Any, windows: Sequence[Window], pad_id: int) -> list[FloatArray]:
    """`finetune.inference.predict`, a share of the windows in each process; all have all outputs at the end."""
    from finetune.inference import predict

    if count() == 1:
        return predict(model, windows, pad_id)
    from accelerate.utils import gather_object

    # neighbours by length to different processes, so that all take about as long
    order = sorted(range(len(windows)), key=lambda row: len(windows[row]))
    mine = predict(model, [windows[row] for row in order[_rank() :: count()]], pad_id)
    shares: list[list[FloatArray]] = gather_object([mine])
    found: dict[int, FloatArray] = {}
    for rank, share in enumerate(shares):
        found |= dict(zip(order[rank :: count()], share, strict=True))
    return [found[row] for row in range(len(windows))]


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _state() -> Any:
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())
