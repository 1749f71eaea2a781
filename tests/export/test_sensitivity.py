from pathlib import Path

import numpy as np
import onnx
import pytest

from bundle.session import Session
from export.calibration import calibrate
from export.parity import logits_of
from export.quantization import find_linears, quantizable_inputs, quantize
from export.sensitivity import measure_sensitivity
from finetune.checkpoint import Checkpoint
from tasks import Window


@pytest.fixture(scope="module")
def static(
    graph: Path, checkpoint: Checkpoint, windows: list[Window], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("sensitivity") / "int8.onnx"
    quantize(graph, path, calibrate(graph, quantizable_inputs(graph), windows, checkpoint.pad_token_id))
    return path


@pytest.fixture(scope="module")
def sensitivity(graph: Path, static: Path, checkpoint: Checkpoint, windows: list[Window]) -> dict[str, float]:
    return measure_sensitivity(graph, static, windows, checkpoint.pad_token_id)


def test_every_product_is_measured_and_the_worst_comes_first(graph: Path, sensitivity: dict[str, float]) -> None:
    assert set(sensitivity) == {one.output for one in find_linears(onnx.load(graph).graph)}
    assert list(sensitivity.values()) == sorted(sensitivity.values(), reverse=True)
    assert min(sensitivity.values()) > 0


@pytest.mark.parametrize("by_token", [False, True])
@pytest.mark.parametrize("rank", [0, -1])
def test_error_is_that_of_a_graph_whose_other_products_stay_float(
    graph: Path,
    checkpoint: Checkpoint,
    windows: list[Window],
    sensitivity: dict[str, float],
    tmp_path: Path,
    rank: int,
    by_token: bool,
) -> None:
    pad_id, every = checkpoint.pad_token_id, list(sensitivity)
    ranges = calibrate(graph, quantizable_inputs(graph), windows, pad_id)
    finer = every if by_token else []
    if by_token:
        quantize(graph, tmp_path / "int8.onnx", ranges, by_token=finer)
        sensitivity = measure_sensitivity(graph, tmp_path / "int8.onnx", windows, pad_id)
        assert set(sensitivity) == set(every)
    name = list(sensitivity)[rank]
    others = [other for other in sensitivity if other != name]
    assert quantize(graph, tmp_path / "one.onnx", ranges, keep_float=others, by_token=finer) == 1
    fp32, one = (np.stack(logits_of(Session(path).run, windows, pad_id)) for path in (graph, tmp_path / "one.onnx"))
    assert sensitivity[name] == pytest.approx(float(np.mean((fp32.astype(np.float64) - one) ** 2)), rel=1e-3)


def test_dynamic_products_are_measured_too(
    graph: Path, checkpoint: Checkpoint, windows: list[Window], tmp_path: Path
) -> None:
    quantize(graph, tmp_path / "int8.onnx")
    measured = measure_sensitivity(graph, tmp_path / "int8.onnx", windows[:4], checkpoint.pad_token_id)
    assert len(measured) == 6 * checkpoint.model.config.num_hidden_layers


def test_a_product_that_is_float_already_is_not_measured(
    graph: Path, checkpoint: Checkpoint, windows: list[Window], sensitivity: dict[str, float], tmp_path: Path
) -> None:
    worst = next(iter(sensitivity))
    quantize(graph, tmp_path / "int8.onnx", keep_float=[worst])
    seen: list[str] = []
    measured = measure_sensitivity(
        graph,
        tmp_path / "int8.onnx",
        windows[:2],
        checkpoint.pad_token_id,
        progress=lambda names: (seen.append(name) or name for name in names),
    )
    assert worst not in measured
    assert set(seen) == set(measured)


def test_no_file_is_left_behind(graph: Path, static: Path, checkpoint: Checkpoint, windows: list[Window]) -> None:
    before = [sorted(path.parent.iterdir()) for path in (graph, static)]
    measure_sensitivity(graph, static, windows[:1], checkpoint.pad_token_id)
    assert [sorted(path.parent.iterdir()) for path in (graph, static)] == before
