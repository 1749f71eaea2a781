"""An encoder whose int8 form is bad on purpose, and what mends it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from bundle.session import Session
from export.calibration import calibrate
from export.graph import export_graph
from export.parity import logits_of
from export.quantization import quantizable_inputs, quantize
from export.sensitivity import measure_sensitivity
from export.smoothing import channel_maxima, smooth
from tasks import Window
from tests.export.graphs import windows_of
from tests.export.hostile import make_hostile

pytestmark = pytest.mark.real

WINDOWS = windows_of([np.random.default_rng(length).integers(5, 1000, length) for length in range(3, 43)])


def logits(path: Path, windows: list[Window] = WINDOWS) -> np.ndarray:
    return np.stack(logits_of(Session(path).run, windows, 0))


@dataclass(frozen=True)
class Graphs:
    plain: Path
    hostile: Path

    def error(self, path: Path) -> float:
        """Largest |Δlogit| from the plain fp32 graph."""
        return float(np.abs(logits(path) - logits(self.plain)).max())


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    folder = tmp_path_factory.mktemp("hostile")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=1000,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,
        num_labels=3,
    )
    model = BertForSequenceClassification(config).eval()
    graphs = Graphs(folder / "plain.onnx", folder / "hostile.onnx")
    export_graph(model, graphs.plain, opset=20)
    make_hostile(model)
    export_graph(model, graphs.hostile, opset=20)
    return graphs


def static(source: Path, output: Path, *, keep_float: list[str] | None = None) -> Path:
    quantize(source, output, calibrate(source, quantizable_inputs(source), WINDOWS, 0), keep_float=keep_float or ())
    return output


def test_float_answers_are_unchanged(graphs: Graphs) -> None:
    assert graphs.error(graphs.hostile) <= 1e-4


def test_plain_int8_is_several_times_worse(graphs: Graphs, tmp_path: Path) -> None:
    plain = graphs.error(static(graphs.plain, tmp_path / "plain.onnx"))
    assert graphs.error(static(graphs.hostile, tmp_path / "hostile.onnx")) >= 3 * plain


def test_smoothing_repairs_most_of_it(graphs: Graphs, tmp_path: Path) -> None:
    plain = graphs.error(static(graphs.plain, tmp_path / "plain.onnx"))
    hostile = graphs.error(static(graphs.hostile, tmp_path / "hostile.onnx"))
    smooth(graphs.hostile, tmp_path / "smooth.onnx", channel_maxima(graphs.hostile, WINDOWS, 0))
    assert graphs.error(tmp_path / "smooth.onnx") <= 1e-4
    repaired = graphs.error(static(tmp_path / "smooth.onnx", tmp_path / "int8.onnx"))
    assert hostile - repaired >= 0.7 * (hostile - plain)


def test_keeping_the_most_sensitive_products_float_repairs_most_of_it(graphs: Graphs, tmp_path: Path) -> None:
    plain = graphs.error(static(graphs.plain, tmp_path / "plain.onnx"))
    hostile = static(graphs.hostile, tmp_path / "hostile.onnx")
    names = list(measure_sensitivity(graphs.hostile, hostile, WINDOWS[::4], 0))
    worst = graphs.error(static(graphs.hostile, tmp_path / "worst.onnx", keep_float=names[:6]))
    least = graphs.error(static(graphs.hostile, tmp_path / "least.onnx", keep_float=names[-6:]))
    assert graphs.error(hostile) - worst >= 0.7 * (graphs.error(hostile) - plain)
    assert worst < least / 2
