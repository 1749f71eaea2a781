from pathlib import Path

import numpy as np
import onnx
import pytest

from bundle.session import Session
from export.calibration import calibrate
from export.first_token import write_narrowed
from export.parity import logits_of
from export.quantization import quantizable_inputs, quantize
from export.smoothing import channel_maxima, smooth
from finetune.checkpoint import Checkpoint
from tasks import Window, collate
from tests.export.graphs import pre_norm_graph, windows_of

WIDTH = 16
WINDOWS = windows_of([[0, 1, 2], [3, 4], range(5, 20)])


def outputs(path: Path, windows: list[Window]) -> np.ndarray:
    session = Session(path)
    return np.concatenate([session.run(collate([window], 0))[0] for window in windows])


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def pre_norm(tmp_path: Path, *, shared_weights: bool = False) -> Path:
    table = np.random.default_rng(1).normal(size=(20, WIDTH)).astype(np.float32)
    return pre_norm_graph(tmp_path / "fp32.onnx", table, shared_weights=shared_weights)


def test_a_norm_that_only_products_read_takes_the_scales_without_a_new_operator(tmp_path: Path) -> None:
    fp32, smoothed = pre_norm(tmp_path), tmp_path / "smooth.onnx"
    assert smooth(fp32, smoothed, channel_maxima(fp32, WINDOWS, 0)) == 1
    assert operators(smoothed) == operators(fp32)
    before, after = outputs(fp32, WINDOWS), outputs(smoothed, WINDOWS)
    assert np.abs(after - before).max() <= 1e-5 * np.abs(before).max()


def test_half_of_the_difficulty_makes_activations_and_weights_alike(tmp_path: Path) -> None:
    """Xiao et al. 2022, section 4: at α = 0.5 a channel's largest activation equals its largest weight."""
    fp32, smoothed = pre_norm(tmp_path), tmp_path / "smooth.onnx"
    smooth(fp32, smoothed, channel_maxima(fp32, WINDOWS, 0), alpha=0.5)
    [activations] = channel_maxima(smoothed, WINDOWS, 0).values()
    weights = {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(smoothed).graph.initializer}
    rows = np.max([np.abs(weights[name]).max(axis=1) for name in ("p0__smooth1", "h1__smooth1")], axis=0)
    assert activations == pytest.approx(rows, rel=1e-4)


def test_all_of_the_difficulty_makes_the_activations_alike(tmp_path: Path) -> None:
    fp32, smoothed = pre_norm(tmp_path), tmp_path / "smooth.onnx"
    smooth(fp32, smoothed, channel_maxima(fp32, WINDOWS, 0), alpha=1.0)
    [activations] = channel_maxima(smoothed, WINDOWS, 0).values()
    assert activations == pytest.approx(np.ones(WIDTH), rel=1e-5)


def test_a_channel_that_is_always_zero_does_no_harm(tmp_path: Path) -> None:
    fp32, smoothed = pre_norm(tmp_path), tmp_path / "smooth.onnx"
    maxima = {name: np.where(np.arange(WIDTH) == 3, 0, one) for name, one in channel_maxima(fp32, WINDOWS, 0).items()}
    smooth(fp32, smoothed, maxima)
    assert outputs(smoothed, WINDOWS) == pytest.approx(outputs(fp32, WINDOWS), abs=1e-4)


def test_weights_that_two_activations_share_are_left_alone(tmp_path: Path) -> None:
    fp32 = pre_norm(tmp_path, shared_weights=True)
    assert channel_maxima(fp32, WINDOWS, 0) == {}
    assert smooth(fp32, tmp_path / "smooth.onnx", {}) == 0
    assert (tmp_path / "smooth.onnx").stat().st_size == fp32.stat().st_size


@pytest.mark.parametrize("narrowed", [False, True])
def test_an_encoder_says_the_same_and_its_residuals_are_untouched(
    graph: Path, checkpoint: Checkpoint, windows: list[Window], tmp_path: Path, narrowed: bool
) -> None:
    source, smoothed, pad_id = tmp_path / "fp32.onnx", tmp_path / "smooth.onnx", checkpoint.pad_token_id
    write_narrowed(graph, source) if narrowed else source.write_bytes(graph.read_bytes())
    layers = checkpoint.model.config.num_hidden_layers
    norms = 2 * layers + narrowed  # the last query reads the first token, cut out of the norm
    assert smooth(source, smoothed, channel_maxima(source, windows, pad_id)) == norms + layers
    assert operators(smoothed).count("Mul") == operators(source).count("Mul") + norms, "attentions need none"
    before, after = (np.stack(logits_of(Session(path).run, windows, pad_id)) for path in (source, smoothed))
    assert np.abs(after - before).max() <= 1e-5 * np.abs(before).max()


def test_int8_of_a_smoothed_encoder_is_closer_where_one_channel_stands_out(tmp_path: Path) -> None:
    table = np.random.default_rng(1).normal(size=(20, WIDTH)).astype(np.float32)
    plain = onnx.load(pre_norm_graph(tmp_path / "plain.onnx", table))
    for tensor in plain.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor).copy()
        if tensor.name in ("gamma", "beta"):
            values[5] *= 50
        elif tensor.name in ("w0", "w1"):
            values[5] /= 50
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    fp32, smoothed = tmp_path / "fp32.onnx", tmp_path / "smooth.onnx"
    onnx.save(plain, fp32)
    smooth(fp32, smoothed, channel_maxima(fp32, WINDOWS, 0))
    expected = outputs(fp32, WINDOWS)
    errors = []
    for path in (fp32, smoothed):
        quantize(path, tmp_path / "int8.onnx", calibrate(path, quantizable_inputs(path), WINDOWS, 0))
        errors.append(np.abs(outputs(tmp_path / "int8.onnx", WINDOWS) - expected).max())
    assert errors[1] < errors[0] / 5
