"""int8 weights per channel, with activations quantized dynamically or by calibrated constants.

Both forms put the weight product, both scales and the bias into one `com.microsoft::MatMulIntegerToFloat`:

    static    x ─ QuantizeLinear(constant scale) ─┐
    dynamic   x ─ DynamicQuantizeLinear ──────────┴─ MatMulIntegerToFloat(int8 weights, per column; bias) ─ float

The static form saves the pass over the activation that finds its range, and its answer for a row cannot depend on the
other rows of the batch: the scale is the same for all.

A third form has a scale for each token, which follows from this token alone, so that it is as independent of the
company and has no outlier of another token in its step. Its price is four elementwise passes:

    by token  x ─ Mul(127 / max|x|) ─ QuantizeLinear(1) ─ MatMulIntegerToFloat ─ Mul(max|x| / 127) ─ Add(bias) ─ float

Weights use ±64 of int8's ±127. Processors without VNNI multiply with VPMADDUBSW, which adds two products in 16 bits
and saturates: 255 · 127 · 2 = 64,770 becomes 32,767, while 255 · 64 · 2 = 32,640 is exact. So the integer sums are the
same on every processor, for a bit of weight precision that no parity gate has missed so far (benchmarks/LOG.md).
With VNNI ±127 is exact too, and what it makes says so: `largest_weight`.
"""

from collections.abc import Collection, Mapping, Sequence
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
    "behind_activation_functions",
    "find_linears",
    "int8_form",
    "largest_weight",
    "quantizable_inputs",
    "quantize",
]

ANYWHERE_EXACT, FULL_RANGE = 64, 127
"""Largest magnitude of an int8 weight whose sums are right on every processor, and of all that int8 holds."""


_LEVELS = 127
"""On either side of zero, of an activation that has a scale for each token."""

_FUNCTIONS = frozenset({"FastGelu", "Gelu", "Mul", "QuickGelu", "Relu", "Sigmoid", "Tanh"})
"""Operators that activation functions end with; a Mul where they are composed or gated."""


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


def behind_activation_functions(model: Path) -> list[str]:
    """The products that read what an activation function gives, by the names that `by_token` takes.

    Some channels of it are many times as large as all others, on few tokens: of a fine-tuned MiniLM-L6's GELU a token
    reaches 4 at the median and 28 at most, so that one scale for all rounds most tokens coarsely. SmoothQuant cannot
    help here (`export.smoothing`).
    """
    graph = onnx.load(model).graph
    producers = {name: node for node in graph.node for name in node.output}
    return [one.output for one in find_linears(graph) if _function_of(one.product.input[0], producers) in _FUNCTIONS]


def _function_of(name: str, producers: Mapping[str, onnx.NodeProto]) -> str:
    """The operator that gave a tensor, or what was cut out of it (`export.first_token`)."""
    node = producers.get(name)
    while node is not None and node.op_type == "Slice":
        node = producers.get(node.input[0])
    return "" if node is None else str(node.op_type)


def int8_form(output: str, producers: Mapping[str, onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes that `quantize` made of a product, the shared ones of its activation left out.

    Args:
        output: of the product, `Linear.output`.
        producers: of the int8 graph: the node behind each tensor.

    Returns:
        The integer product first, the node that gives `output` last; nothing where the product is float.
    """
    nodes: list[onnx.NodeProto] = []
    node = producers.get(output)
    while node is not None and node.op_type in ("Add", "Mul"):
        nodes.append(node)
        node = producers.get(node.input[0])
    return [node, *reversed(nodes)] if node is not None and node.op_type == "MatMulIntegerToFloat" else []


def quantize(
    model: Path,
    output: Path,
    ranges: Ranges | None = None,
    *,
    keep_float: Collection[str] = (),
    by_token: Collection[str] = (),
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
        by_token: products whose activation has a scale for each token, by either name; `ranges` are not asked for them.
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
    finer = set(by_token)
    replaced = {
        id(linear.product): writer.quantized(
            linear, weights, not finer.isdisjoint((linear.output, linear.product.name))
        )
        for linear in linears
    }
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
        self._activations: dict[tuple[str, bool], _Activation] = {}
        self._weights: dict[str, tuple[str, str]] = {}
        self._by_token_constants = False

    def quantized(self, linear: Linear, weights: dict[str, onnx.TensorProto], by_token: bool) -> list[onnx.NodeProto]:
        source, weight = linear.product.input
        nodes: list[onnx.NodeProto] = []
        if (source, by_token) not in self._activations:
            made, self._activations[source, by_token] = self._quantize_activation(source, by_token)
            nodes += made
        activation = self._activations[source, by_token]
        if weight not in self._weights:
            self._weights[weight] = self._quantize_weight(weight, numpy_helper.to_array(weights[weight]))
        weight_int8, weight_scale = self._weights[weight]
        inputs = [activation.quantized, weight_int8, activation.scale, weight_scale, activation.zero_point]
        if by_token:
            product = f"{linear.output}__by_step"
            nodes.append(_product(inputs, product, linear.output))
            return [*nodes, *_rescaled(product, activation.step, linear)]
        return [*nodes, _product([*inputs, "", linear.bias] if linear.bias else inputs, linear.output, linear.output)]

    def _quantize_activation(self, source: str, by_token: bool) -> "tuple[list[onnx.NodeProto], _Activation]":
        if by_token:
            return self._quantize_by_token(source)
        names = (f"{source}__uint8", f"{source}__scale", f"{source}__zero_point")
        if self._ranges is None:
            return [helper.make_node("DynamicQuantizeLinear", [source], list(names))], _Activation(*names)
        scale, zero_point = self._ranges[source].uint8()
        self._constant(names[1], scale)
        self._constant(names[2], zero_point)
        return [helper.make_node("QuantizeLinear", [source, names[1], names[2]], [names[0]])], _Activation(*names)

    def _quantize_by_token(self, source: str) -> "tuple[list[onnx.NodeProto], _Activation]":
        name = f"{source}__by_token"
        if not self._by_token_constants:
            self._by_token_constants = True
            self._constant("by_token__levels", np.float32(_LEVELS))
            self._constant("by_token__tiny", np.float32(1e-8))
            self._constant("by_token__scale", np.float32(1))
            self._constant("by_token__zero_point", np.uint8(_LEVELS + 1))
            self._constant("by_token__axis", np.array([-1], dtype=np.int64))
        nodes = [
            helper.make_node("ReduceMax", [source, "by_token__axis"], [f"{name}_high"], keepdims=1),
            helper.make_node("ReduceMin", [source, "by_token__axis"], [f"{name}_low"], keepdims=1),
            helper.make_node("Neg", [f"{name}_low"], [f"{name}_depth"]),
            helper.make_node("Max", [f"{name}_high", f"{name}_depth", "by_token__tiny"], [f"{name}_largest"]),
            helper.make_node("Div", [f"{name}_largest", "by_token__levels"], [f"{name}_step"]),
            helper.make_node("Div", ["by_token__levels", f"{name}_largest"], [f"{name}_inverse"]),
            helper.make_node("Mul", [source, f"{name}_inverse"], [f"{name}_scaled"]),
            helper.make_node(
                "QuantizeLinear", [f"{name}_scaled", "by_token__scale", "by_token__zero_point"], [f"{name}_uint8"]
            ),
        ]
        return nodes, _Activation(f"{name}_uint8", "by_token__scale", "by_token__zero_point", f"{name}_step")

    def _quantize_weight(self, name: str, values: npt.NDArray[np.float32]) -> tuple[str, str]:
        largest = np.maximum(np.abs(values).max(axis=self._axis), np.finfo(np.float32).tiny)
        scales = (largest / self._limit).astype(np.float32)
        self._constant(f"{name}__int8", np.clip(np.round(values / scales), -self._limit, self._limit).astype(np.int8))
        self._constant(f"{name}__scale", scales)
        return f"{name}__int8", f"{name}__scale"

    def _constant(self, name: str, values: npt.NDArray[np.generic] | np.generic) -> None:
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))


@dataclass(frozen=True, slots=True)
class _Activation:
    """Names of a quantized activation, its scale, its zero point, and of each token's step where it has its own."""

    quantized: str
    scale: str
    zero_point: str
    step: str = ""


def _product(inputs: Sequence[str], output: str, named: str) -> onnx.NodeProto:
    return helper.make_node(
        "MatMulIntegerToFloat", list(inputs), [output], name=f"{named}_int8", domain="com.microsoft"
    )


def _rescaled(product: str, step: str, linear: Linear) -> list[onnx.NodeProto]:
    if not linear.bias:
        return [helper.make_node("Mul", [product, step], [linear.output])]
    scaled = f"{linear.output}__without_bias"
    return [
        helper.make_node("Mul", [product, step], [scaled]),
        helper.make_node("Add", [scaled, linear.bias], [linear.output]),
    ]


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
