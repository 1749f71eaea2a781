"""int8 weights per channel, with activations quantized dynamically or by calibrated constants.

Both forms put the weight product, both scales and the bias into one `com.microsoft::MatMulIntegerToFloat`:

    static    x ─ QuantizeLinear(constant scale) ─┐
    dynamic   x ─ DynamicQuantizeLinear ──────────┴─ MatMulIntegerToFloat(int8 weights, per column; bias) ─ float

The static form saves the pass over the activation that finds its range, and its answer for a row cannot depend on the
other rows of the batch: the scale is the same for all.

Weights use ±64 of int8's ±127. Processors without VNNI multiply with VPMADDUBSW, which adds two products in 16 bits
and saturates: 255 · 127 · 2 = 64,770 becomes 32,767, while 255 · 64 · 2 = 32,640 is exact. So the integer sums are the
same on every processor, for a bit of weight precision that no parity gate has missed so far (benchmarks/LOG.md).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from export.calibration import ActivationRange, Ranges
from export.pruning import drop_unread

__all__ = ["quantizable_inputs", "quantize"]

_WEIGHT_LIMIT = 64


@dataclass(frozen=True, slots=True)
class _Linear:
    """A MatMul by constant weights, with the Add of its constant bias where there is one."""

    product: onnx.NodeProto
    bias_add: onnx.NodeProto | None
    bias: str

    @property
    def output(self) -> str:
        return str((self.bias_add or self.product).output[0])


def quantizable_inputs(model: Path) -> list[str]:
    """The activations that a static variant needs ranges of."""
    return sorted({linear.product.input[0] for linear in _find_linears(onnx.load(model).graph)})


def quantize(model: Path, output: Path, ranges: Ranges | None = None) -> int:
    """Writes an int8 variant of an fp32 graph.

    Args:
        model: the fp32 ONNX file.
        output: where to write.
        ranges: calibrated ranges of `quantizable_inputs`, for static activations; dynamic when None.

    Returns:
        How many products were quantized. Products of two activations stay fp32, and so do pooler and classifier: they
        cost next to nothing, and what they answer is what is judged.
    """
    proto = onnx.load(model)
    graph = proto.graph
    linears = _find_linears(graph)
    weights = {tensor.name: tensor for tensor in graph.initializer}
    writer = _Writer(graph, ranges)
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


class _Writer:
    """Makes nodes and constants of the quantized products; activations and weights shared by several are made once."""

    def __init__(self, graph: onnx.GraphProto, ranges: Ranges | None) -> None:
        self._graph = graph
        self._ranges = ranges
        self._activations: dict[str, tuple[str, str, str]] = {}
        self._weights: dict[str, tuple[str, str]] = {}

    def quantized(self, linear: _Linear, weights: dict[str, onnx.TensorProto]) -> list[onnx.NodeProto]:
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
        scale, zero_point = _uint8_constants(self._ranges[source])
        self._constant(names[1], scale)
        self._constant(names[2], zero_point)
        return helper.make_node("QuantizeLinear", [source, names[1], names[2]], [names[0]])

    def _quantize_weight(self, name: str, values: npt.NDArray[np.float32]) -> tuple[str, str]:
        scales = np.maximum(np.abs(values).max(axis=0), np.finfo(np.float32).tiny) / _WEIGHT_LIMIT
        self._constant(
            f"{name}__int8", np.clip(np.round(values / scales), -_WEIGHT_LIMIT, _WEIGHT_LIMIT).astype(np.int8)
        )
        self._constant(f"{name}__scale", scales.astype(np.float32))
        return f"{name}__int8", f"{name}__scale"

    def _constant(self, name: str, values: npt.NDArray[np.generic]) -> None:
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))


def _uint8_constants(limits: ActivationRange) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Scale and zero point of asymmetric uint8; zero is always represented exactly."""
    low, high = min(limits.low, 0.0), max(limits.high, 0.0)
    scale = np.float32(max(high - low, 1e-8) / 255)
    return np.array(scale, dtype=np.float32), np.array(np.clip(round(-low / float(scale)), 0, 255), dtype=np.uint8)


def _find_linears(graph: onnx.GraphProto) -> list[_Linear]:
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
) -> _Linear:
    followers = consumers.get(product.output[0], [])
    if len(followers) == 1 and followers[0].op_type == "Add" and product.output[0] not in results:
        others = [name for name in followers[0].input if name != product.output[0]]
        if len(others) == 1 and others[0] in constants and list(constants[others[0]].dims) == [width]:
            return _Linear(product, followers[0], others[0])
    return _Linear(product, None, "")
