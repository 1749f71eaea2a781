"""Which products suffer most from int8, measured one by one, so that the worst of them can stay float.

A session for each product would load and compile the model dozens of times. One graph holds both forms of every product
behind an `If`, and an input says which product runs as int8:

    quantized_product ─ Equal(k) ─ If ─┬─ MatMulIntegerToFloat …
                                       └─ MatMul, Add
"""

import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bundle.session import Session
from export.parity import logits_of
from export.quantization import Linear, find_linears, int8_form
from tasks import Window
from tasks.base import FloatArray

__all__ = ["measure_sensitivity"]

_CHOICE = "quantized_product"


def measure_sensitivity(
    fp32: Path,
    int8: Path,
    windows: Sequence[Window],
    pad_id: int,
    progress: Callable[[Iterable[str]], Iterable[str]] = iter,
) -> dict[str, float]:
    """Error of the answer when one product alone is quantized, for each.

    Args:
        fp32: the float graph.
        int8: what `quantize` made of it.
        windows: calibration rows; a few dozen tell the worst products from the rest.
        pad_id: id of the padding token.
        progress: wraps the iteration over the products, for a progress bar.

    Returns:
        Mean squared difference of the raw outputs from those of the float graph, by the name that `quantize` takes in
        `keep_float`; largest first.
    """
    with tempfile.TemporaryDirectory(dir=fp32.parent) as directory:
        path = Path(directory) / "switched.onnx"
        names = _write_switched(fp32, int8, path)
        session = Session(path)

    def outputs(choice: int) -> list[FloatArray]:
        chosen = np.array(choice, dtype=np.int64)
        return logits_of(lambda batch: session.run({**batch, _CHOICE: chosen}), windows, pad_id)

    reference = outputs(-1)
    numbers = {name: number for number, name in enumerate(names)}
    errors = {name: _mean_squared_error(outputs(numbers[name]), reference) for name in progress(names)}
    return dict(sorted(errors.items(), key=lambda item: -item[1]))


def _mean_squared_error(got: Sequence[FloatArray], expected: Sequence[FloatArray]) -> float:
    """Every row counts alike, whatever its length."""
    return float(np.mean([np.mean((a.astype(np.float64) - b) ** 2) for a, b in zip(got, expected, strict=True)]))


def _write_switched(fp32: Path, int8: Path, path: Path) -> list[str]:
    """Writes the graph of both forms and returns the products that it can switch, in their order."""
    proto, floats = onnx.load(int8), onnx.load(fp32).graph
    graph = proto.graph
    producers = {name: node for node in graph.node for name in node.output}
    forms = {linear.output: int8_form(linear.output, producers) for linear in find_linears(floats)}
    linears = {linear.output: linear for linear in find_linears(floats) if forms[linear.output]}
    within = {id(node) for form in forms.values() for node in form[:-1]}
    names: list[str] = []
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        linear = linears.get(node.output[0])
        if linear is None:
            if id(node) not in within:
                nodes.append(node)
            continue
        nodes += _switched(forms[linear.output], linear, len(names))
        graph.initializer.append(
            numpy_helper.from_array(np.array(len(names), dtype=np.int64), f"{_CHOICE}_{len(names)}")
        )
        names.append(linear.output)
    del graph.node[:]
    graph.node.extend(nodes)
    known = {tensor.name for tensor in graph.initializer}
    graph.initializer.extend(tensor for tensor in floats.initializer if tensor.name not in known)
    graph.input.append(helper.make_tensor_value_info(_CHOICE, TensorProto.INT64, []))
    onnx.save(proto, path)
    return names


def _switched(int8_nodes: Sequence[onnx.NodeProto], linear: Linear, number: int) -> list[onnx.NodeProto]:
    float_nodes = [linear.product, *([linear.bias_add] if linear.bias_add else [])]
    condition = f"{linear.output}__is_int8"
    return [
        helper.make_node("Equal", [_CHOICE, f"{_CHOICE}_{number}"], [condition]),
        helper.make_node(
            "If",
            [condition],
            [linear.output],
            then_branch=_branch(int8_nodes, "int8"),
            else_branch=_branch(float_nodes, "float"),
        ),
    ]


def _branch(nodes: Sequence[onnx.NodeProto], form: str) -> onnx.GraphProto:
    """Nodes as a branch; its result has a name of its own, since the branch must not redefine the outer one."""
    result = f"{nodes[-1].output[0]}__{form}"
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    copies[-1].output[0] = result
    return helper.make_graph(copies, form, [], [helper.make_tensor_value_info(result, TensorProto.FLOAT, None)])
