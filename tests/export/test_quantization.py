from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bundle.session import Session
from export.calibration import ActivationRange, calibrate
from export.parity import batch_deltas, logits_of
from export.quantization import (
    FULL_RANGE,
    behind_activation_functions,
    find_linears,
    largest_weight,
    quantizable_inputs,
    quantize,
)
from finetune.checkpoint import Checkpoint
from tasks import Window


def linear_graph(path: Path, weights: np.ndarray, bias: np.ndarray | None, *, is_head: bool = False) -> Path:
    """A product that is the graph's result where it is the head, else one that something else reads."""
    result = "y" if is_head else "hidden"
    nodes = [helper.make_node("MatMul", ["x", "w"], ["product" if bias is not None else result])]
    constants = [numpy_helper.from_array(weights, "w")]
    if bias is not None:
        nodes.append(helper.make_node("Add", ["b", "product"], [result]))
        constants.append(numpy_helper.from_array(bias, "b"))
    if not is_head:
        nodes.append(helper.make_node("Identity", ["hidden"], ["y"]))
    shape = ["rows", weights.shape[0]]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", weights.shape[1]])],
        constants,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def simulate(x: np.ndarray, weights: np.ndarray, bias: np.ndarray | float, limits: ActivationRange) -> np.ndarray:
    """Static quantization by the book, in float64: q = clip(round(x / s) + z), y = s·t·Σ (q − z)·w8 + b."""
    scale = (max(limits.high, 0) - min(limits.low, 0)) / 255
    zero = round(-min(limits.low, 0) / scale)
    quantized = np.clip(np.round(x / scale) + zero, 0, 255) - zero
    weight_scale = np.abs(weights).max(axis=0) / 64
    return (quantized @ np.round(weights / weight_scale)) * scale * weight_scale + bias


@pytest.mark.parametrize("with_bias", [True, False])
def test_static_product_is_the_textbook_one(tmp_path: Path, with_bias: bool) -> None:
    generator = np.random.default_rng(0)
    weights = generator.normal(size=(48, 24)).astype(np.float32)
    bias = generator.normal(size=24).astype(np.float32) if with_bias else None
    fp32 = linear_graph(tmp_path / "fp32.onnx", weights, bias)
    limits = ActivationRange(-1.5, 3.0)
    assert quantize(fp32, tmp_path / "int8.onnx", {"x": limits}) == 1
    x = generator.uniform(-2.5, 4.0, size=(7, 48)).astype(np.float32)  # beyond the range on both sides
    expected = simulate(x, weights, 0.0 if bias is None else bias, limits)
    got = Session(tmp_path / "int8.onnx").run({"x": x})
    # a value in the middle of two steps may go either way in float32
    assert np.abs(got - expected).max() < 0.02
    assert np.abs(got - expected).mean() < 1e-4


@pytest.mark.parametrize("with_bias", [True, False])
def test_product_by_token_is_the_textbook_one(tmp_path: Path, with_bias: bool) -> None:
    """Each row in float64: s = max|x| / 127, y = s·t·Σ round(x / s)·w8 + b; a row of zeros gives the bias."""
    generator = np.random.default_rng(0)
    weights = generator.normal(size=(48, 24)).astype(np.float32)
    bias = generator.normal(size=24).astype(np.float32) if with_bias else None
    fp32 = linear_graph(tmp_path / "fp32.onnx", weights, bias)
    assert quantize(fp32, tmp_path / "int8.onnx", {}, by_token=["hidden"]) == 1
    x = generator.normal(size=(7, 48)).astype(np.float32) * np.logspace(-3, 3, 7, dtype=np.float32)[:, None]
    x[3] = 0
    step = np.maximum(np.abs(x).max(axis=1, keepdims=True), 1e-8) / 127
    weight_scale = np.abs(weights).max(axis=0) / 64
    products = (np.round(x / step) @ np.round(weights / weight_scale)) * weight_scale
    got = Session(tmp_path / "int8.onnx").run({"x": x}) - (0 if bias is None else bias)
    # a value in the middle of two steps may go either way in float32, and the bias takes digits of small rows
    assert np.abs(got / step - products).max() < (0.5 if bias is None else 5)
    assert np.abs(got / step - products).mean() < (0.01 if bias is None else 0.2)
    assert (got[3] == 0).all()


def test_products_behind_activation_functions_are_those_of_the_second_half_of_the_feed_forward(
    graph: Path, checkpoint: Checkpoint
) -> None:
    proto, config = onnx.load(graph).graph, checkpoint.model.config
    widths = {tensor.name: tensor.dims[0] for tensor in proto.initializer if len(tensor.dims) == 2}
    found = [one for one in find_linears(proto) if one.output in behind_activation_functions(graph)]
    assert [widths[one.product.input[1]] for one in found] == [config.intermediate_size] * config.num_hidden_layers


def test_by_token_a_large_token_takes_nothing_from_the_others(
    graph: Path, checkpoint: Checkpoint, windows: list[Window], tmp_path: Path
) -> None:
    pad_id = checkpoint.pad_token_id
    every = [one.output for one in find_linears(onnx.load(graph).graph)]
    ranges = calibrate(graph, quantizable_inputs(graph), windows, pad_id)
    quantize(graph, tmp_path / "static.onnx", ranges)
    quantize(graph, tmp_path / "by-token.onnx", {}, by_token=every)
    fp32 = np.stack(logits_of(Session(graph).run, windows, pad_id))
    static, by_token = (
        np.abs(np.stack(logits_of(Session(tmp_path / f"{name}.onnx").run, windows, pad_id)) - fp32).mean()
        for name in ("static", "by-token")
    )
    assert by_token < static
    assert batch_deltas(Session(tmp_path / "by-token.onnx").run, windows, pad_id).max() <= 1e-6


def test_bias_goes_into_the_product(tmp_path: Path) -> None:
    fp32 = linear_graph(tmp_path / "fp32.onnx", np.eye(8, dtype=np.float32), np.ones(8, dtype=np.float32))
    quantize(fp32, tmp_path / "int8.onnx", {"x": ActivationRange(-1, 1)})
    proto = onnx.load(tmp_path / "int8.onnx")
    assert [node.op_type for node in proto.graph.node] == ["QuantizeLinear", "MatMulIntegerToFloat", "Identity"]
    assert "w" not in {tensor.name for tensor in proto.graph.initializer}, "the float weights are gone"


@pytest.mark.parametrize("with_bias", [True, False])
def test_what_gives_the_answer_stays_float(tmp_path: Path, with_bias: bool) -> None:
    bias = np.ones(8, dtype=np.float32) if with_bias else None
    head = linear_graph(tmp_path / "fp32.onnx", np.eye(8, dtype=np.float32), bias, is_head=True)
    assert quantizable_inputs(head) == []
    assert quantize(head, tmp_path / "int8.onnx") == 0


@pytest.mark.parametrize("limit", [64, 127])
@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_are_rounded_to_half_a_step_within_the_limit(tmp_path: Path, limit: int, per_channel: bool) -> None:
    generator = np.random.default_rng(1)
    weights = (generator.normal(size=(48, 24)) * generator.uniform(0.1, 2, 24)).astype(np.float32)
    fp32 = linear_graph(tmp_path / "fp32.onnx", weights, None)
    quantize(fp32, tmp_path / "int8.onnx", {"x": ActivationRange(-1, 1)}, weight_limit=limit, per_channel=per_channel)
    constants = {one.name: numpy_helper.to_array(one) for one in onnx.load(tmp_path / "int8.onnx").graph.initializer}
    int8, scale = constants["w__int8"], constants["w__scale"]
    assert scale.shape == ((24,) if per_channel else ())
    assert np.abs(int8.astype(int)).max() == limit
    assert (np.abs(int8 * scale - weights) <= scale * 0.5001).all()


def test_one_scale_for_all_channels_gives_the_textbook_product_too(tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    weights = generator.normal(size=(48, 24)).astype(np.float32)
    fp32 = linear_graph(tmp_path / "fp32.onnx", weights, None)
    quantize(fp32, tmp_path / "int8.onnx", {"x": ActivationRange(-4, 4)}, per_channel=False)
    x = generator.uniform(-1, 1, size=(7, 48)).astype(np.float32)
    step = np.abs(weights).max() / 64
    expected = (np.round(x / (8 / 255)) * (8 / 255)) @ (np.round(weights / step) * step)
    got = Session(tmp_path / "int8.onnx").run({"x": x})
    assert np.abs(got - expected).max() < 0.1  # a value in the middle of two steps may go either way
    assert np.abs(got - expected).mean() < 1e-2


@pytest.mark.parametrize("rows", [1, 8, 33])
def test_sums_do_not_saturate_on_any_processor(tmp_path: Path, rows: int) -> None:
    """The largest activations by the largest weights: 16-bit partial sums must not overflow without VNNI."""
    weights = np.full((64, 32), 0.5, dtype=np.float32)
    fp32 = linear_graph(tmp_path / "fp32.onnx", weights, None)
    assert quantize(fp32, tmp_path / "int8.onnx", {"x": ActivationRange(0.0, 1.0)}) == 1
    got = Session(tmp_path / "int8.onnx").run({"x": np.ones((rows, 64), dtype=np.float32)})
    assert got == pytest.approx(np.full((rows, 32), 32.0), rel=1e-5)


def test_products_of_activations_stay_float(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "z"], ["y"])],
        "two",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 4]) for name in ("x", "z")],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 4])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), tmp_path / "fp32.onnx")
    assert quantize(tmp_path / "fp32.onnx", tmp_path / "int8.onnx") == 0


def test_all_linears_of_the_encoder_are_found_and_shared_activations_quantized_once(
    graph: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    layers = checkpoint.model.config.num_hidden_layers
    assert quantize(graph, tmp_path / "dynamic.onnx") == 6 * layers
    operators = [node.op_type for node in onnx.load(tmp_path / "dynamic.onnx").graph.node]
    assert operators.count("MatMulIntegerToFloat") == 6 * layers
    assert operators.count("DynamicQuantizeLinear") == 4 * layers, "query, key and value share one"


def test_static_answers_alike_in_any_company_and_dynamic_does_not(
    graph: Path, checkpoint: Checkpoint, windows: list[Window], tmp_path: Path
) -> None:
    pad_id = checkpoint.pad_token_id
    ranges = calibrate(graph, quantizable_inputs(graph), windows, pad_id)
    quantize(graph, tmp_path / "static.onnx", ranges)
    quantize(graph, tmp_path / "dynamic.onnx")
    static, dynamic = Session(tmp_path / "static.onnx").run, Session(tmp_path / "dynamic.onnx").run
    assert batch_deltas(static, windows, pad_id).max() <= 1e-6
    assert batch_deltas(dynamic, windows, pad_id).max() > 1e-4
    fp32 = logits_of(Session(graph).run, windows, pad_id)
    spread = np.ptp(np.stack(fp32))
    for engine in (static, dynamic):
        assert np.abs(np.stack(logits_of(engine, windows, pad_id)) - np.stack(fp32)).max() < 0.1 * spread + 0.01


def test_products_that_are_kept_stay_float_by_either_name(graph: Path, tmp_path: Path) -> None:
    every = find_linears(onnx.load(graph).graph)
    by_output, by_node = every[0].output, every[5].product.name
    assert quantize(graph, tmp_path / "int8.onnx", keep_float=[by_output, by_node]) == len(every) - 2
    nodes = {node.output[0]: node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node}
    floats = {one.output for one in every if nodes[one.output] != "MatMulIntegerToFloat"}
    assert floats == {by_output, every[5].output}
    assert [nodes[one.product.output[0]] for one in (every[0], every[5])] == ["MatMul", "MatMul"]


def test_a_graph_whose_products_are_all_kept_is_the_float_graph(
    graph: Path, checkpoint: Checkpoint, windows: list[Window], tmp_path: Path
) -> None:
    every = [one.output for one in find_linears(onnx.load(graph).graph)]
    assert quantize(graph, tmp_path / "float.onnx", keep_float=every) == 0
    before, after = (
        logits_of(Session(path).run, windows, checkpoint.pad_token_id) for path in (graph, tmp_path / "float.onnx")
    )
    assert np.abs(np.stack(before) - np.stack(after)).max() <= 1e-5


@pytest.mark.parametrize("limit", [64, FULL_RANGE])
def test_a_graph_tells_how_large_its_int8_weights_are(tmp_path: Path, limit: int) -> None:
    weights = np.random.default_rng(0).normal(size=(48, 24)).astype(np.float32)
    fp32, int8 = linear_graph(tmp_path / "fp32.onnx", weights, None), tmp_path / "int8.onnx"
    assert largest_weight(fp32) == 0
    quantize(fp32, int8, weight_limit=limit)
    assert largest_weight(int8) == limit
