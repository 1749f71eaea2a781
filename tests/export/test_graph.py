import re
from pathlib import Path

import numpy as np
import onnx

from bundle.session import Session
from export.graph import export_graph
from export.parity import edge_cases, torch_engine
from finetune.checkpoint import Checkpoint


def test_every_attention_is_fused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    info = export_graph(checkpoint.model, tmp_path / "model.onnx", opset=20)
    assert info.opset == 20
    assert info.fused_attentions == info.layers == checkpoint.model.config.num_hidden_layers
    assert info.obstacle is None


def test_graph_says_what_pytorch_says_on_edge_cases(checkpoint: Checkpoint, graph: Path) -> None:
    session, reference = Session(graph), torch_engine(checkpoint.model)
    batches = edge_cases(
        checkpoint.model.config.vocab_size, checkpoint.spec.max_length, distinguishes_texts=True, seed=1
    )
    for batch in batches:
        assert np.abs(session.run(batch) - reference(batch)).max() <= 1e-4


def test_axes_are_dynamic_and_named(checkpoint: Checkpoint, graph: Path) -> None:
    session = Session(graph)
    assert [info.axes for info in session.inputs] == [("batch", "sequence")] * 3
    assert session.outputs[0].axes == ("batch", len(checkpoint.spec.labels))
    assert [info.name for info in session.inputs] == ["input_ids", "attention_mask", "token_type_ids"]


def test_no_idle_reshape_is_left_around_the_attentions(graph: Path) -> None:
    proto = onnx.load(graph)
    operators = {name: node.op_type for node in proto.graph.node for name in node.output}
    attentions = [node for node in proto.graph.node if node.op_type == "MultiHeadAttention"]
    assert attentions
    for node in attentions:
        assert [operators[name] for name in node.input[:3]] == ["Add"] * 3, "straight from the projections"
    assert "Reshape" not in operators.values()


def test_model_is_left_as_it_was(checkpoint: Checkpoint, tmp_path: Path) -> None:
    before = checkpoint.model.config._attn_implementation
    export_graph(checkpoint.model, tmp_path / "model.onnx", opset=20)
    assert checkpoint.model.config._attn_implementation == before


def test_no_path_of_this_machine_is_left_in_the_file(graph: Path) -> None:
    assert not re.findall(rb"/[a-z0-9_.-]+/[a-z0-9_./-]+\.py", graph.read_bytes())
    assert not any(node.metadata_props for node in onnx.load(graph).graph.node)
