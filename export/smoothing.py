"""SmoothQuant: outlier channels move from the activations, which have one scale, into the weights.

G. Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", 2022,
arXiv:2211.10438: with `s_j = max|X_j|^α / max|W_j|^(1-α)` for each input channel j, `(X / s) · (s W)` is the same
product, and a channel that was fifty times as large as the others no longer decides their step.

Where the division goes:

    attention                           columns and bias of its value product  nothing is added
    LayerNorm read by products only     its weight and bias                    nothing is added
    LayerNorm with a residual           a Mul before the products              one elementwise operator

The last is the rule in post-norm models (BERT): the norm's output is the residual too, which must stay as it is. What
an activation function gives is left alone: it is not homogeneous, so nothing before it could take the division.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from export.calibration import Progress, observe
from export.pruning import drop_unread
from export.quantization import Linear, find_linears
from tasks import Window

__all__ = ["ChannelMaxima", "channel_maxima", "smooth"]

Floats = npt.NDArray[np.float32]

ChannelMaxima = dict[str, Floats]
"""Largest magnitude of each channel of a tensor, float32, shape `[channels]`."""


def channel_maxima(model: Path, windows: Sequence[Window], pad_id: int, progress: Progress = iter) -> ChannelMaxima:
    """Runs the fp32 graph over the rows and keeps the largest magnitudes in what `smooth` would divide.

    Args:
        model: the fp32 ONNX file.
        windows: calibration rows.
        pad_id: id of the padding token.
        progress: wraps the iteration, for a progress bar.
    """
    maxima = _Graph(onnx.load(model).graph).channels()
    for activations in observe(model, list(maxima), progress(windows), pad_id):
        for largest, values in zip(maxima.values(), activations, strict=True):
            np.maximum(largest, np.abs(values).reshape(-1, len(largest)).max(axis=0), out=largest)
    return maxima


def smooth(model: Path, output: Path, maxima: Mapping[str, Floats], alpha: float = 0.5) -> int:
    """Writes a graph of the same function, up to rounding, whose activations are easier to quantize.

    Ranges have to be calibrated on what it writes.

    Args:
        model: the fp32 ONNX file.
        output: where to write.
        maxima: as `channel_maxima` found them on the same graph.
        alpha: how much of the difficulty moves into the weights, 0 to 1.

    Returns:
        How many activations were smoothed.
    """
    proto = onnx.load(model)
    graph = _Graph(proto.graph)
    groups = graph.smoothable()
    for name, linears in groups.items():
        scales = _scales(maxima[name], [graph.values(one.product.input[1]) for one in linears], alpha)
        for linear in linears:
            graph.replace(linear.product, 1, graph.values(linear.product.input[1]) * scales[:, None])
        graph.divide(name, linears, scales)
    graph.finish()
    onnx.save(proto, output)
    return len(groups)


def _scales(activation: Floats, weights: Iterable[Floats], alpha: float) -> Floats:
    """One for each channel; 1 for a channel that is always zero, or that no product looks at."""
    rows = np.max([np.abs(one).max(axis=1) for one in weights], axis=0)
    used = (activation > 0) & (rows > 0)
    scales = np.ones_like(activation)
    scales[used] = activation[used] ** alpha / rows[used] ** (1 - alpha)
    return scales


class _Graph:
    """A graph to be changed in place, with its constants, producers and readers at hand."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._linears = {linear.output: linear for linear in find_linears(graph)}
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._producers = {name: node for node in graph.node for name in node.output}
        self._reads = Counter(name for node in graph.node for name in node.input)
        self._reads.update(value.name for value in graph.output)
        self._behind: dict[str, onnx.NodeProto] = {}

    def smoothable(self) -> dict[str, list[Linear]]:
        """Products by the activation that they share, where `divide` knows what to do with it.

        Weights that several activations share (ALBERT's layers) would need a copy for each: they are left out.
        """
        groups: dict[str, list[Linear]] = {}
        for linear in self._linears.values():
            groups.setdefault(linear.product.input[0], []).append(linear)
        return {
            name: linears
            for name, linears in groups.items()
            if all(self._reads[one.product.input[1]] == 1 for one in linears)
            and (self._is_of_norm(name) or (self._value_product(name) and self._reads[name] == len(linears)))
        }

    def channels(self) -> ChannelMaxima:
        """Zeros in the shape of the maxima: a channel for each row of the weights."""
        return {
            name: np.zeros(self._constants[linears[0].product.input[1]].dims[0], dtype=np.float32)
            for name, linears in self.smoothable().items()
        }

    def divide(self, name: str, linears: Sequence[Linear], scales: Floats) -> None:
        """Divides what the products read, and nobody else's input, by a scale for each channel."""
        value, producer = self._value_product(name), self._producers[name]
        if value:
            self.replace(value.product, 1, self.values(value.product.input[1]) / scales)
            if value.bias_add:
                position = list(value.bias_add.input).index(value.bias)
                self.replace(value.bias_add, position, self.values(value.bias) / scales)
        elif producer.op_type == "LayerNormalization" and self._reads[name] == len(linears):
            for position in range(1, len(producer.input)):
                self.replace(producer, position, self.values(producer.input[position]) / scales)
        else:
            self._multiply(name, linears, np.reciprocal(scales))

    def values(self, name: str) -> Floats:
        """A constant."""
        return np.asarray(numpy_helper.to_array(self._constants[name]))

    def replace(self, node: onnx.NodeProto, position: int, values: Floats) -> None:
        """Gives a node a constant of its own; the one before may be other nodes' too."""
        name = f"{node.output[0]}__smooth{position}"
        if name not in self._constants:
            self._constants[name] = self._graph.initializer.add()
            self._reads[name] = 1
        self._constants[name].CopyFrom(numpy_helper.from_array(values, name))
        node.input[position] = name

    def finish(self) -> None:
        """Puts what was added into its place and removes what nothing reads any more."""
        nodes = [
            one
            for node in self._graph.node
            for one in (node, *(self._behind[name] for name in node.output if name in self._behind))
        ]
        del self._graph.node[:]
        self._graph.node.extend(nodes)
        drop_unread(self._graph)

    def _multiply(self, name: str, linears: Sequence[Linear], factors: Floats) -> None:
        smoothed = f"{name}__smooth"
        self._behind[name] = helper.make_node("Mul", [name, f"{smoothed}_factors"], [smoothed])
        self._graph.initializer.append(numpy_helper.from_array(factors, f"{smoothed}_factors"))
        for linear in linears:
            linear.product.input[0] = smoothed

    def _is_of_norm(self, name: str) -> bool:
        """Whether a norm over the channels gave it, or what was cut out of it (`export.first_token`)."""
        node = self._producers.get(name)
        while node is not None and node.op_type == "Slice":
            node = self._producers.get(node.input[0])
        if node is None or node.op_type != "LayerNormalization":
            return False
        return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), -1) == -1

    def _value_product(self, name: str) -> Linear | None:
        """The product that is an attention's values and nothing else; its channels are those of the attention."""
        node = self._producers.get(name)
        if node is None or node.op_type != "MultiHeadAttention" or any(node.input[3:4]):  # a bias of its own
            return None
        value = self._linears.get(node.input[2])
        if value is None or self._reads[value.output] != 1 or self._reads[value.product.input[1]] != 1:
            return None
        return value
