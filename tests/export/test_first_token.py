from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bundle.session import Session
from export.first_token import keep_first_token, write_narrowed
from export.parity import edge_cases, torch_engine
from finetune.checkpoint import Checkpoint
from tasks import Window
from tasks.encoding import collate

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
    assert rows.shape == (2, 2, HIDDEN)
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


def test_last_layer_of_a_model_runs_for_two_tokens_and_says_the_same(
    graph: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    write_narrowed(graph, tmp_path / "narrowed.onnx")
    proto = onnx.load(tmp_path / "narrowed.onnx")
    norms = outputs_of(proto.graph, "LayerNormalization")
    narrowed, opened = Session(tmp_path / "narrowed.onnx"), opened_session(proto, norms, tmp_path)
    reference = torch_engine(checkpoint.model)
    for batch in edge_cases(checkpoint.model.config.vocab_size, checkpoint.spec.max_length, True, seed=3):
        assert np.abs(narrowed.run(batch) - reference(batch)).max() <= 1e-4
        tokens = batch["input_ids"].shape[1]
        lengths = [rows.shape[1] for rows in opened.run_all(batch, norms)]
        assert lengths == [tokens] * (len(norms) - 2) + [min(2, tokens)] * 2, "both norms of the last layer"


def test_the_narrowed_attention_says_bit_for_bit_the_same_in_longer_company(
    graph: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """A bit of it can be a step of the int8 product behind it."""
    write_narrowed(graph, tmp_path / "narrowed.onnx")
    proto = onnx.load(tmp_path / "narrowed.onnx")
    attended = outputs_of(proto.graph, "MultiHeadAttention")[-1:]
    opened = opened_session(proto, attended, tmp_path)
    generator = np.random.default_rng(4)
    longest = checkpoint.spec.max_length
    for length in range(2, longest):
        texts = [generator.integers(1, checkpoint.model.config.vocab_size, size) for size in (length, longest)]
        alone, together = (
            opened.run_all(collate([Window(0, ids, np.zeros_like(ids), truncated=False) for ids in some], 0), attended)[
                0
            ]
            for some in (texts[:1], texts)
        )
        assert np.array_equal(alone[0], together[0]), f"{length} tokens among {longest}"


def outputs_of(graph: onnx.GraphProto, operator: str) -> list[str]:
    return [node.output[0] for node in graph.node if node.op_type == operator]


def opened_session(proto: onnx.ModelProto, tensors: list[str], folder: Path) -> Session:
    proto.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "tokens", "hidden"]) for name in tensors
    )
    onnx.save(proto, folder / "open.onnx")
    return Session(folder / "open.onnx")
