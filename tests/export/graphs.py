"""Graphs of a few nodes that take token ids, for what needs no real encoder."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tasks import Window


def windows_of(rows: Sequence[Sequence[int]]) -> list[Window]:
    return [
        Window(row, np.array(ids, dtype=np.int64), np.zeros(len(ids), dtype=np.int64), False)
        for row, ids in enumerate(rows)
    ]


def save_graph(path: Path, nodes: Sequence[onnx.NodeProto], constants: dict[str, np.ndarray], width: int) -> Path:
    """A graph from `input_ids` to `y`, float32 `[batch, tokens, width]`."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "tokens", width])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def embedding_graph(path: Path, table: np.ndarray) -> Path:
    """`x` is the rows of a table, and `y` is `x`."""
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["x"]), helper.make_node("Identity", ["x"], ["y"])]
    return save_graph(path, nodes, {"table": table}, table.shape[1])


def pre_norm_graph(path: Path, table: np.ndarray, seed: int = 0, *, shared_weights: bool = False) -> Path:
    """A table's rows through a norm that only two products read, and their sum."""
    generator = np.random.default_rng(seed)
    width = table.shape[1]
    weights = {name: generator.normal(size=(width, width)).astype(np.float32) for name in ("w0", "w1")}
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"]),
        helper.make_node("LayerNormalization", ["embedded", "gamma", "beta"], ["normed"], axis=-1),
        helper.make_node("MatMul", ["normed", "w0"], ["p0"], name="first"),
        helper.make_node("Add", ["p0", "gamma"], ["h0"]),
        helper.make_node("MatMul", ["h0" if shared_weights else "normed", "w0" if shared_weights else "w1"], ["h1"]),
        helper.make_node("Add", ["h0", "h1"], ["y"]),
    ]
    if shared_weights:
        del weights["w1"]
    gamma = generator.uniform(0.5, 2.0, width).astype(np.float32)
    beta = generator.normal(size=width).astype(np.float32)
    return save_graph(path, nodes, {"table": table, "gamma": gamma, "beta": beta, **weights}, width)
