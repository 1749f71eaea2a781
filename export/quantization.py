"""int8 weights per channel, with activations quantized dynamically or by calibrated constants.

Both forms put the weight product, both scales and the bias into one `com.microsoft::MatMulIntegerToFloat`:

    static    x ─ QuantizeLinear(constant scale) ─┐
    dynamic   x ─ DynamicQuantizeLinear ──────────┴─ MatMulIntegerToFloat(int8 weights, per column; bias) ─ float

The static form saves the pass over the activation that finds its range, and its answer for a row cannot depend on the
other rows of the batch: the scale is the same for all.

Weights use ±64 of int8's ±127. Processors without VNNI multiply with VPMADDUBSW, which adds two products in 16 bits
and saturates: 255 · 127 · 2 = 64,770 becomes 32,767, while 255 · 64 · 2 = 32,640 is exact. So the integer sums are the
same on every processor, for a bit of weight precision that no parity gate has missed so far (benchmarks/LOG.md).
With VNNI ±127 is exact too, and what it makes says so: `largest_weight`.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from export.calibration import Ranges
from export.pruning import drop_unread

__all__ = [
    "ANYWHERE_EXACT",
    "FULL_RANGE",
    "Linear",
    "find_linears",
    "largest_weight",
    "quantizable_inputs",
    "quantize",
]

ANYWHERE_EXACT, FULL_RANGE = 64, 127
"""Largest magnitude of an int8 weight whose sums are right on every processor, and of all that int8 holds."""


@dataclass(frozen=True, slots=True)
class Linear:
    """A MatMul by constant weights, with the Add of its constant bias where there is one.

    Attributes:
        bias: name of the constant; empty where there is none.
    """

    product: onnx.NodeProto
    bias_add: onnx.NodeProto | None
    bias: str

    @property
    def output(self) -> str:
        """The tensor with the bias added, which names the product."""
        return str((self.bias_add or self.product).output[0])


def quantizable_inputs(model: Path) -> list[str]:
    """The activations that a static variant needs ranges of."""
    return sorted({linear.product.input[0] for linear in find_linears(onnx.load(model).graph)})


def quantize(
    model: Path,
    output: Path,
    ranges: Ranges | None = None,
    *,
    keep_float: Collection[str] = (),
    weight_limit: int = ANYWHERE_EXACT,
    per_channel: bool = True,
) -> int:
    """Writes an int8 variant of an fp32 graph.

    Args:
        model: the fp32 ONNX file.
        output: where to write.
        ranges: calibrated ranges of `quantizable_inputs`, for static activations; dynamic when None.
        keep_float: products that stay fp32, by the name of their output (`Linear.output`) or of their MatMul node.
        weight_limit: largest magnitude of an int8 weight; above `ANYWHERE_EXACT` the sums are right on processors with
            VNNI only.
        per_channel: a scale for each output channel of the weights, rather than one for all.

    Returns:
        How many products were quantized. Products of two activations stay fp32, and so do pooler and classifier: they
        cost next to nothing, and what they answer is what is judged.
    """
    proto = onnx.load(model)
    graph = proto.graph
    kept = set(keep_float)
    linears = [one for one in find_linears(graph) if kept.isdisjoint((one.output, one.product.name))]
    weights = {tensor.name: tensor for tensor in graph.initializer}
    writer = _Writer(graph, ranges, weight_limit, per_channel)
    replaced = {id(linear.product): writer.quantized(linear, weights) for linear in linears}
    gone = {id(linear.bias_add) for linear in linears if linear.bias_add is not None}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if id(node) not in gone:
            nodes.extend(replaced.get(id(node), [node]))
    del graph.node[:]
    graph.node.extend(nodes)
    drop_unread(graph)
    # shapes inferred for the float graph name tensors that are gone
    del graph.value_info[:]
    if not any(entry.domain == "com.microsoft" for entry in proto.opset_import):
        proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(proto, output)
    return len(linears)


def largest_weight(model: Path) -> int:
    """Largest magnitude of an int8 weight of the graph's products; 0 where none is int8."""
    graph = onnx.load(model).graph
    weights = {node.input[1] for node in graph.node if node.op_type == "MatMulIntegerToFloat"}
    values = [numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name in weights]
    return max((max(-int(one.min()), int(one.max())) for one in values), default=0)


class _Writer:
    """Makes nodes and constants of the quantized products; activations and weights shared by several are made once."""

    def __init__(self, graph: onnx.GraphProto, ranges: Ranges | None, weight_limit: int, per_channel: bool) -> None:
        self._graph = graph
        self._ranges = ranges
        self._limit = weight_limit
        self._axis = 0 if per_channel else None
        self._activations: dict[str, tuple[str, str, str]] = {}
        self._weights: dict[str, tuple[str, str]] = {}

    def quantized(self, linear: Linear, weights: dict[str, onnx.TensorProto]) -> list[onnx.NodeProto]:
        source, weight = linear.product.input
        nodes: list[onnx.NodeProto] = []
        if source not in self._activations:
            nodes.append(self._quantize_activation(source))
        quantized, scale, zero_point = self._activations[source]
        if weight not in self._weights:
            self._weights[weight] = self._quantize_weight(weight, numpy_helper.to_array(weights[weight]))
        weight_int8, weight_scale = self._weights[weight]
        inputs = [quantized, weight_int8, scale, weight_scale, zero_point, "", linear.bias]
        while not inputs[-1]:
            inputs.pop()
        product = helper.make_node(
            "MatMulIntegerToFloat",
            inputs,
            [linear.output],
            name=f"{linear.output}_int8",
            domain="com.microsoft",
        )
        return [*nodes, product]

    def _quantize_activation(self, source: str) -> onnx.NodeProto:
        names = (f"{source}__uint8", f"{source}__scale", f"{source}__zero_point")
        self._activations[source] = names
        if self._ranges is None:
            return helper.make_node("DynamicQuantizeLinear", [source], [names[0], names[1], names[2]])
        scale, zero_point = self._ranges[source].uint8()
        self._constant(names[1], scale)
        self._constant(names[2], zero_point)
        return helper.make_node("QuantizeLinear", [source, names[1], names[2]], [names[0]])

    def _quantize_weight(self, name: str, values: npt.NDArray[np.float32]) -> tuple[str, str]:
        largest = np.maximum(np.abs(values).max(axis=self._axis), np.finfo(np.float32).tiny)
        scales = (largest / self._limit).astype(np.float32)
        self._constant(f"{name}__int8", np.clip(np.round(values / scales), -self._limit, self._limit).astype(np.int8))
        self._constant(f"{name}__scale", scales)
        return f"{name}__int8", f"{name}__scale"

    def _constant(self, name: str, values: npt.NDArray[np.generic] | np.generic) -> None:
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))


def find_linears(graph: onnx.GraphProto) -> list[Linear]:
    """The products that are quantized unless they are kept: all by constant weights but the one that is the answer."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    consumers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    results = {value.name for value in graph.output}
    linears = []
    for node in graph.node:
        if node.op_type != "MatMul" or node.input[1] not in constants or node.input[0] in constants:
            continue
        weight = constants[node.input[1]]
        if weight.data_type != onnx.TensorProto.FLOAT or len(weight.dims) != 2:
            continue
        linear = _with_bias(node, weight.dims[1], constants, consumers, results)
        if linear.output not in results:
            linears.append(linear)
    return linears


def _with_bias(
    product: onnx.NodeProto,
    width: int,
    constants: dict[str, onnx.TensorProto],
    consumers: dict[str, list[onnx.NodeProto]],
    results: set[str],
) -> Linear:
    followers = consumers.get(product.output[0], [])
    if len(followers) == 1 and followers[0].op_type == "Add" and product.output[0] not in results:
        others = [name for name in followers[0].input if name != product.output[0]]
        if len(others) == 1 and others[0] in constants and list(constants[others[0]].dims) == [width]:
            return Linear(product, followers[0], others[0])
    return Linear(product, None, "")
