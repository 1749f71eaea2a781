"""PyTorch model to ONNX graph."""

import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from transformers import PreTrainedModel

from export.attention import fused_attention, obstacle_to_fusion
from export.pruning import drop_unread
from finetune.inference import raw_outputs

__all__ = ["GraphInfo", "export_graph", "input_names"]


@dataclass(frozen=True, slots=True)
class GraphInfo:
    """What the exporter made.

    Attributes:
        opset: of the standard operators.
        fused_attentions: number of MultiHeadAttention nodes.
        layers: number of encoder layers by the model's configuration, where it says.
        obstacle: why no attention is fused, for people; None where all are.
    """

    opset: int
    fused_attentions: int
    layers: int | None
    obstacle: str | None


class _RawOutputs(torch.nn.Module):
    """A model that takes its inputs by position, as the exporter gives them, and answers one tensor."""

    def __init__(self, model: PreTrainedModel, names: list[str]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return raw_outputs(self.model(**dict(zip(self.names, inputs, strict=True))))


def input_names(model: PreTrainedModel) -> list[str]:
    """What the graph is fed; `token_type_ids` only where the model tells two texts apart."""
    takes_types = "token_type_ids" in inspect.signature(model.forward).parameters
    distinguishes = getattr(model.config, "type_vocab_size", 0) > 1
    return ["input_ids", "attention_mask", *(["token_type_ids"] if takes_types and distinguishes else [])]


def export_graph(model: PreTrainedModel, path: Path, opset: int) -> GraphInfo:
    """Writes the fp32 graph with dynamic batch and sequence axes.

    Inputs are int64 `[batch, sequence]`, the output `logits` is float32 `[batch, labels]`, or
    `[batch, sequence, labels]` of a model that answers each token.
    """
    names = input_names(model)
    # two rows of two lengths: sizes of one would be baked in, a mask of ones would be optimized away
    example = torch.ones((2, 8), dtype=torch.int64)
    inputs = {name: example.clone() for name in names}
    inputs["attention_mask"][1, 5:] = 0
    if "token_type_ids" in inputs:
        inputs["token_type_ids"].zero_()
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    with _quiet():
        obstacle = obstacle_to_fusion(model, inputs)
    with nullcontext() if obstacle else fused_attention(model), _quiet():
        program = torch.onnx.export(
            _RawOutputs(model, names),
            tuple(inputs.values()),
            dynamo=True,
            opset_version=opset,
            input_names=names,
            output_names=["logits"],
            dynamic_shapes=(tuple(axes for _ in names),),
            verbose=False,
        )
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    _strip_traces(proto)
    _bypass_reshapes(proto.graph)
    onnx.save(proto, path)
    return GraphInfo(
        opset=next(entry.version for entry in proto.opset_import if entry.domain == ""),
        fused_attentions=sum(node.op_type == "MultiHeadAttention" for node in proto.graph.node),
        layers=getattr(model.config, "num_hidden_layers", None),
        obstacle=obstacle,
    )


def _bypass_reshapes(graph: onnx.GraphProto) -> None:
    """Removes chains of Reshape that end in the shape that they began with.

    The model splits its hidden axis into heads and the fused operator wants it whole again: eight idle operators a
    layer, which cost nothing but their call, and that is a few per cent of a short text's time.
    """
    shapes = {value.name: _shape(value) for value in [*graph.input, *graph.value_info, *graph.output]}
    reshapes = {node.output[0]: node for node in graph.node if node.op_type == "Reshape"}
    instead: dict[str, str] = {}
    for output in reshapes:
        origin = output
        while origin in reshapes:
            origin = reshapes[origin].input[0]
        if shapes.get(output) is not None and shapes.get(output) == shapes.get(origin):
            instead[output] = origin
    for node in graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = instead.get(name, name)
    drop_unread(graph)


def _shape(value: onnx.ValueInfoProto) -> tuple[int | str, ...] | None:
    """Sizes and names of the axes; None when one of them is unknown."""
    axes = tuple(axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim)
    return axes if axes and all(axes) else None


def _strip_traces(proto: onnx.ModelProto) -> None:
    """Removes the stack traces that the exporter leaves in the graph, file names of this machine among them."""
    for node in proto.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for value in [*proto.graph.value_info, *proto.graph.input, *proto.graph.output, *proto.graph.initializer]:
        value.ClearField("metadata_props")
        value.ClearField("doc_string")
    proto.graph.ClearField("metadata_props")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's notes about itself (deprecations inside torch, absent torchvision) from the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
