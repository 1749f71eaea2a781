"""fp16 for ONNX Runtime's CUDA provider: half the bytes, and the tensor cores.

Half are the embeddings and whatever follows from them. What follows from ids, masks and positions alone stays as it is
until an activation meets it: the angle of a rotary embedding and the bucket of a distance are computed in fp32 by the
models too, and in fp16 the angle at position 500 is off by a quarter of a radian.

It is written and judged on a processor, where ONNX Runtime computes most of it in fp32 between casts: the answers are
those of fp16 weights and activations, the time says nothing of a GPU's.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.pruning import drop_unread

__all__ = ["write_fp16"]

_LARGEST = float(np.finfo(np.float16).max)
"""Masks are made of -3e38, which would be infinite: a token that attends to nothing would be no number."""


def write_fp16(model: Path, output: Path) -> None:
    """Writes an fp16 graph whose inputs and output have the types that they had.

    Args:
        model: the fp32 ONNX file.
        output: where to write.
    """
    proto = onnx.shape_inference.infer_shapes(onnx.load(model))
    writer = _Writer(proto.graph)
    nodes = [one for node in proto.graph.node for one in writer.converted(node)]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    drop_unread(proto.graph)
    # they name the types of before
    del proto.graph.value_info[:]
    onnx.save(proto, output)


class _Writer:
    """Converts the nodes of a graph in their order; what several read is made half once."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._weights = {one.name: one for one in graph.initializer if one.data_type == TensorProto.FLOAT}
        floats = {value.name for value in graph.value_info if value.type.tensor_type.elem_type == TensorProto.FLOAT}
        self._floats = floats | self._weights.keys()
        self._answers = {value.name for value in graph.output}
        self._half: set[str] = set()
        self._made: set[str] = set()

    def converted(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The node, after what makes its inputs half, and before what makes an answer whole."""
        is_embedding = node.op_type == "Gather" and node.input[0] in self._weights
        if not is_embedding and self._half.isdisjoint(node.input):
            return [node]
        before = [one for place in range(len(node.input)) for one in self._halve(node, place)]
        if node.op_type in ("Shape", "Size"):
            return [*before, node]
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to":
                if attribute.i != TensorProto.FLOAT:
                    return [*before, node]
                attribute.i = TensorProto.FLOAT16
        after = []
        for place, name in enumerate(node.output):
            if name in self._answers:
                node.output[place] = f"{name}__half"
                after.append(helper.make_node("Cast", [f"{name}__half"], [name], to=TensorProto.FLOAT))
        self._half.update(node.output)
        return [*before, node, *after]

    def _halve(self, node: onnx.NodeProto, place: int) -> list[onnx.NodeProto]:
        """Gives a node a half input where it reads a whole one; the nodes that make it, if there is no such yet."""
        name = node.input[place]
        if name in self._half or name not in self._floats:
            return []
        half, clipped = f"{name}__half", f"{name}__clipped"
        node.input[place] = half
        if half in self._made:
            return []
        self._made.add(half)
        if name in self._weights:
            values = np.clip(numpy_helper.to_array(self._weights[name]), -_LARGEST, _LARGEST).astype(np.float16)
            self._graph.initializer.append(numpy_helper.from_array(values, half))
            return []
        for bound, value in (("least", -_LARGEST), ("most", _LARGEST)):
            self._graph.initializer.append(
                numpy_helper.from_array(np.array(value, dtype=np.float32), f"{name}__{bound}")
            )
        return [
            helper.make_node("Clip", [name, f"{name}__least", f"{name}__most"], [clipped]),
            helper.make_node("Cast", [clipped], [half], to=TensorProto.FLOAT16),
        ]
