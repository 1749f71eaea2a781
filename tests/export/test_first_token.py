from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bundle.session import Session
from export.first_token import keep_first_token, narrowed_tensors, write_narrowed
from export.parity import edge_cases, torch_engine
from export.quantization import find_linears
from finetune.checkpoint import Checkpoint

HIDDEN = 8


def graph_of(nodes: list[onnx.NodeProto], outputs: list[str]) -> onnx.GraphProto:
    generator = np.random.default_rng(0)
    constants = {
        "w": generator.normal(size=(HIDDEN, HIDDEN)).astype(np.float32),
        "b": generator.normal(size=HIDDEN).astype(np.float32),
        "positions": generator.normal(size=(1, 3, HIDDEN)).astype(np.float32),
        "zero": np.array(0),
        "one": np.array(1),
    }
    return helper.make_graph(
        nodes,
        "tokens",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "tokens", HIDDEN])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )


def run(graph: onnx.GraphProto, path: Path) -> list[np.ndarray]:
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    x = np.random.default_rng(1).normal(size=(2, 3, HIDDEN)).astype(np.float32)
    return Session(path).run_all({"x": x})


def chain(index: str = "zero", axis: int = 1, addend: str = "b") -> list[onnx.NodeProto]:
    return [
        helper.make_node("Tanh", ["x"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["p"]),
        helper.make_node("Add", ["p", addend], ["q"]),
        helper.make_node("Add", ["q", "h"], ["r"]),
        helper.make_node("Gather", ["r", index], ["y"], axis=axis),
    ]


def test_same_answer_from_fewer_rows(tmp_path: Path) -> None:
    before = run(graph_of(chain(), ["y"]), tmp_path / "before.onnx")
    graph = graph_of(chain(), ["y"])
    assert keep_first_token(graph) == 4
    assert [node.op_type for node in graph.node] == ["Slice", "Tanh", "MatMul", "Add", "Add", "Gather"]
    graph.output.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, ["batch", "kept", HIDDEN]))
    after, rows = run(graph, tmp_path / "after.onnx")
    assert rows.shape == (2, 1, HIDDEN)
    assert after == pytest.approx(before[0], abs=1e-6)


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        (chain(index="one"), "another token is read"),
        (chain(axis=0), "a row of the batch is read"),
        ([*chain(), helper.make_node("ReduceMax", ["r"], ["z"])], "all tokens are read too"),
    ],
)
def test_nothing_is_done_when(nodes: list[onnx.NodeProto], why: str) -> None:
    graph = graph_of(nodes, ["y", *(["z"] if len(nodes) > 5 else [])])
    before = [node.SerializeToString() for node in graph.node]
    assert keep_first_token(graph) == 0, why
    assert [node.SerializeToString() for node in graph.node] == before


def test_it_stops_where_other_tokens_are_needed(tmp_path: Path) -> None:
    """The mean over all tokens reads what the chosen token's products read: narrowed behind that, not before."""
    nodes = [*chain()[:-1], helper.make_node("ReduceMax", ["h"], ["z"]), chain()[-1]]
    before = run(graph_of(nodes, ["y", "z"]), tmp_path / "before.onnx")
    graph = graph_of(nodes, ["y", "z"])
    assert keep_first_token(graph) == 3
    for old, new in zip(before, run(graph, tmp_path / "after.onnx"), strict=True):
        assert new == pytest.approx(old, abs=1e-6)


def test_a_constant_with_a_row_per_token_is_not_cut(tmp_path: Path) -> None:
    before = run(graph_of(chain(addend="positions"), ["y"]), tmp_path / "before.onnx")
    graph = graph_of(chain(addend="positions"), ["y"])
    assert keep_first_token(graph) == 1, "only the last Add"
    assert run(graph, tmp_path / "after.onnx")[0] == pytest.approx(before[0], abs=1e-6)


def test_last_layer_of_a_model_runs_for_one_token_and_says_the_same(
    graph: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    write_narrowed(graph, tmp_path / "narrowed.onnx")
    proto = onnx.load(tmp_path / "narrowed.onnx")
    norms = [node.output[0] for node in proto.graph.node if node.op_type == "LayerNormalization"]
    shape = ["batch", "tokens", checkpoint.model.config.hidden_size]
    proto.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in norms)
    onnx.save(proto, tmp_path / "open.onnx")
    narrowed, opened = Session(tmp_path / "narrowed.onnx"), Session(tmp_path / "open.onnx")
    reference = torch_engine(checkpoint.model)
    for batch in edge_cases(checkpoint.model.config.vocab_size, checkpoint.spec.max_length, True, seed=3):
        assert np.abs(narrowed.run(batch) - reference(batch)).max() <= 1e-4
        tokens = batch["input_ids"].shape[1]
        lengths = [rows.shape[1] for rows in opened.run_all(batch, norms)]
        assert lengths == [tokens] * (len(norms) - 2) + [1, 1], "both norms of the last layer"


def test_what_was_narrowed_is_known(checkpoint: Checkpoint, graph: Path, tmp_path: Path) -> None:
    write_narrowed(graph, tmp_path / "narrowed.onnx")
    assert not narrowed_tensors(onnx.load(graph).graph)
    narrow = onnx.load(tmp_path / "narrowed.onnx").graph
    found = narrowed_tensors(narrow)
    linears = [one.output for one in find_linears(narrow)]
    layers = checkpoint.model.config.num_hidden_layers
    assert [one in found for one in linears].count(True) == 4, "query, output and both of the feed-forward part"
    assert len(linears) == 6 * layers
