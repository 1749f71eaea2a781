"""The last layer, computed for two tokens, of which one is read.

A classification head reads the first token of the encoder and nothing else. Keys and values of the last attention need
every token; its query, its output, the feed-forward part and both norms are needed for the first token only. Left out
are ten twelfths of the layer's weight products for every further token, a seventh of a six-layer model, and nothing of
the answer.

Two tokens are kept, for a product of one row takes another path through ONNX Runtime's float32 kernels than one of
several, which sums in the order that the padded length asks for. The attention of a single query would round otherwise
in longer company, and an int8 product behind it can make a whole step of that (benchmarks/LOG.md). No tokenizer gives
fewer than two: every text stands between two special tokens.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

__all__ = ["keep_first_token", "write_narrowed"]

_ROW_BY_ROW = frozenset({"Gelu", "LayerNormalization", "MultiHeadAttention", "Relu", "Tanh"})
"""Operators whose output for a token follows from the first input's same token, whatever their other inputs are."""


def write_narrowed(model: Path, output: Path) -> None:
    """Writes a graph with `keep_first_token` applied, or as it is where that does nothing."""
    proto = onnx.load(model)
    keep_first_token(proto.graph)
    onnx.save(proto, output)


def keep_first_token(graph: onnx.GraphProto) -> int:
    """Moves the choice of the first token from the end of the encoder to where every token is needed.

    Args:
        graph: with activations of shape `[batch, tokens, …]`; changed in place. Without a Gather of token 0 that is the
            only reader of the encoder's output, nothing is done.

    Returns:
        How many operators are computed for the first two tokens only.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    readers = _readers(graph)
    choice = next((node for node in graph.node if _chooses_first(node, constants)), None)
    if choice is None or len(readers[choice.input[0]]) != 1:
        return 0
    narrowed: dict[int, list[int]] = {id(choice): [0]}  # node to the positions of its inputs that hold tokens
    for node in reversed(graph.node):
        uses = readers.get(node.output[0], [])
        inputs = _token_inputs(node, constants)
        if uses and inputs and all(position in narrowed.get(id(reader), []) for reader, position in uses):
            narrowed[id(node)] = inputs
    produced_narrow = {node.output[0] for node in graph.node if id(node) in narrowed}
    sliced: dict[str, str] = {}
    for node in graph.node:
        for position in narrowed.get(id(node), []):
            name = node.input[position]
            if name not in produced_narrow:
                node.input[position] = sliced.setdefault(name, f"{name}__first")
    _insert_slices(graph, sliced)
    shapes = [value for value in graph.value_info if value.name not in produced_narrow]
    del graph.value_info[:]
    graph.value_info.extend(shapes)
    return len(narrowed) - 1


def _readers(graph: onnx.GraphProto) -> dict[str, list[tuple[onnx.NodeProto | None, int]]]:
    """Who reads each tensor at which position; a result of the graph has a reader that is no node."""
    readers: dict[str, list[tuple[onnx.NodeProto | None, int]]] = {}
    for node in graph.node:
        for position, name in enumerate(node.input):
            readers.setdefault(name, []).append((node, position))
    for value in graph.output:
        readers.setdefault(value.name, []).append((None, 0))
    return readers


def _chooses_first(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> bool:
    """Whether a node is `x[:, 0]` of an activation."""
    if node.op_type != "Gather" or node.input[0] in constants or node.input[1] not in constants:
        return False
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
    index = numpy_helper.to_array(constants[node.input[1]])
    return axis == 1 and index.shape == () and int(index) == 0


def _token_inputs(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> list[int]:
    """Positions of the inputs that a token's output follows from, token by token; none if it needs others too."""
    if node.op_type in _ROW_BY_ROW:
        return [0] if _is_plain(node) else []
    if node.op_type == "MatMul":
        return [0] if node.input[1] in constants and len(constants[node.input[1]].dims) == 2 else []
    if node.op_type == "Add":
        fixed = [constants[name] for name in node.input if name in constants]
        return [] if any(len(tensor.dims) > 1 for tensor in fixed) else _variable(node.input, constants)
    return []


def _is_plain(node: onnx.NodeProto) -> bool:
    """A norm over the last axis; an attention without a bias, which has a row for every query."""
    if node.op_type == "LayerNormalization":
        return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), -1) == -1
    return node.op_type != "MultiHeadAttention" or not any(node.input[5:])


def _variable(names: Sequence[str], constants: dict[str, onnx.TensorProto]) -> list[int]:
    return [position for position, name in enumerate(names) if name not in constants]


def _insert_slices(graph: onnx.GraphProto, sliced: dict[str, str]) -> None:
    """Puts `first = x[:, 0:2]` behind the producer of each tensor."""
    if not sliced:
        return
    for name, value in (("first__start", 0), ("first__end", 2), ("first__axis", 1)):
        graph.initializer.append(numpy_helper.from_array(np.array([value], dtype=np.int64), name))
    slices = {
        name: helper.make_node("Slice", [name, "first__start", "first__end", "first__axis"], [first])
        for name, first in sliced.items()
    }
    nodes = [slices[value.name] for value in graph.input if value.name in slices]
    for node in graph.node:
        nodes += [node, *(slices[name] for name in node.output if name in slices)]
    del graph.node[:]
    graph.node.extend(nodes)
