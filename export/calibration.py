"""Activation ranges for static quantization, from training rows."""

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from bundle.session import Session
from tasks import Window, collate

__all__ = ["ActivationRange", "Ranges", "calibrate", "choose_rows", "rows_digest"]


@dataclass(frozen=True, slots=True)
class ActivationRange:
    """Smallest and largest value that a tensor took."""

    low: float
    high: float


Ranges = dict[str, ActivationRange]

Progress = Callable[[Iterable[Window]], Iterable[Window]]


def choose_rows(lengths: Sequence[int], count: int, seed: int) -> list[int]:
    """Row numbers spread evenly over the lengths, chosen by seed within each stretch of similar length.

    Args:
        lengths: tokens of each row.
        count: how many rows to choose; all when there are fewer.
        seed: of the choice.

    Returns:
        Distinct row numbers, ascending.
    """
    order = np.argsort(lengths, kind="stable")
    generator = np.random.default_rng(seed)
    stretches = np.array_split(order, min(count, len(order)))
    return sorted(int(generator.choice(stretch)) for stretch in stretches)


def rows_digest(windows: Sequence[Window]) -> str:
    """Hex SHA-256 over the token ids of the calibration rows, for the certificate."""
    digest = hashlib.sha256()
    for window in windows:
        digest.update(window.input_ids.tobytes() + b"\n")
    return digest.hexdigest()


def calibrate(
    model: Path, tensors: Iterable[str], windows: Sequence[Window], pad_id: int, progress: Progress = iter
) -> Ranges:
    """Runs the fp32 graph over the rows and keeps each tensor's smallest and largest value.

    Rows run one by one, so no padding exists to be masked out and memory does not grow with their number: the graph
    itself reduces each activation to two scalars.

    Args:
        model: the fp32 ONNX file.
        tensors: float tensors of the graph to watch.
        windows: calibration rows.
        pad_id: id of the padding token.
        progress: wraps the iteration, for a progress bar.
    """
    names = sorted(set(tensors))
    proto = onnx.load(model)
    for name in names:
        for kind in ("Min", "Max"):
            output = f"{name}__{kind}"
            proto.graph.node.append(helper.make_node(f"Reduce{kind}", [name], [output], keepdims=0))
            proto.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, []))
    lows, highs = np.full(len(names), np.inf), np.full(len(names), -np.inf)
    with tempfile.TemporaryDirectory(dir=model.parent) as directory:
        watched = Path(directory) / "watched.onnx"
        onnx.save(proto, watched)
        session = Session(watched)
        watched_outputs = [f"{name}__{kind}" for name in names for kind in ("Min", "Max")]
        for window in progress(windows):
            values = np.array(session.run_all(collate([window], pad_id), watched_outputs), dtype=np.float64)
            lows, highs = np.minimum(lows, values[0::2]), np.maximum(highs, values[1::2])
    return {name: ActivationRange(float(low), float(high)) for name, low, high in zip(names, lows, highs, strict=True)}
