"""Embedding tables as int8 with one scale for each row.

A table of 30,522 rows is half of a six-layer model's file and nearly none of its time: each token reads one row. Half a
step of a row's own scale is at most 1/254 of its largest value.

For the same reason they win no time (benchmarks/LOG.md): where the objective is size, each int8 variant has a twin with
int8 tables and the smaller of those that pass is published; for any other objective a recipe has to ask for them.

    ids ─┬─ Gather(int8 table) ─ Cast ─┐
         └─ Gather(scales) ────────────┴─ Mul ─ float
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.pruning import drop_unread

__all__ = ["quantize_embeddings"]


def quantize_embeddings(model: Path, output: Path, min_rows: int = 1000) -> int:
    """Writes a graph whose large embedding tables are int8.

    Args:
        model: an ONNX file, fp32 or already quantized otherwise.
        output: where to write.
        min_rows: tables of fewer rows stay as they are: token types and positions save little.

    Returns:
        How many tables were quantized.
    """
    proto = onnx.load(model)
    graph = proto.graph
    tables = {
        tensor.name: tensor
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2 and tensor.dims[0] >= min_rows
    }
    nodes: list[onnx.NodeProto] = []
    quantized = set()
    for node in graph.node:
        if node.op_type == "Gather" and node.input[0] in tables and _axis(node) == 0:
            quantized.add(node.input[0])
            nodes += _dequantizing_gather(node.input[0], node.input[1], node.output[0])
        else:
            nodes.append(node)
    for name in sorted(quantized):
        rows, scales = _quantize_rows(numpy_helper.to_array(tables[name]))
        graph.initializer.append(numpy_helper.from_array(rows, f"{name}__int8"))
        graph.initializer.append(numpy_helper.from_array(scales, f"{name}__row_scale"))
    del graph.node[:]
    graph.node.extend(nodes)
    drop_unread(graph)
    onnx.save(proto, output)
    return len(quantized)


def _axis(node: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)


def _dequantizing_gather(table: str, ids: str, output: str) -> list[onnx.NodeProto]:
    int8, values, scale = (f"{output}__{part}" for part in ("int8", "values", "scale"))
    return [
        helper.make_node("Gather", [f"{table}__int8", ids], [int8]),
        helper.make_node("Cast", [int8], [values], to=TensorProto.FLOAT),
        helper.make_node("Gather", [f"{table}__row_scale", ids], [scale]),
        helper.make_node("Mul", [values, scale], [output]),
    ]


def _quantize_rows(table: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """int8 values of the table's shape, and scales of shape `[rows, 1]`; a row of zeros (padding) stays one."""
    largest = np.abs(table).max(axis=1, keepdims=True)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.round(table / scales).astype(np.int8), scales
