from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from bundle.session import Session
from export.calibration import ActivationRange, calibrate, choose_rows, rows_digest
from export.quantization import quantizable_inputs
from finetune.checkpoint import Checkpoint
from tasks import Window, collate


def test_ranges_are_the_extremes_over_all_rows(
    graph: Path, checkpoint: Checkpoint, windows: list[Window], tmp_path: Path
) -> None:
    name = quantizable_inputs(graph)[0]
    proto = onnx.load(graph)
    proto.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    onnx.save(proto, tmp_path / "open.onnx")
    session = Session(tmp_path / "open.onnx")
    seen = [session.run_all(collate([window], checkpoint.pad_token_id), [name])[0] for window in windows]
    expected = ActivationRange(float(min(x.min() for x in seen)), float(max(x.max() for x in seen)))
    assert calibrate(graph, [name], windows, checkpoint.pad_token_id) == {name: expected}


def test_calibration_leaves_no_file_behind(graph: Path, checkpoint: Checkpoint, windows: list[Window]) -> None:
    before = sorted(graph.parent.iterdir())
    calibrate(graph, quantizable_inputs(graph), windows[:2], checkpoint.pad_token_id)
    assert sorted(graph.parent.iterdir()) == before


def test_rows_are_spread_over_the_lengths_and_follow_the_seed() -> None:
    lengths = list(np.random.default_rng(0).integers(3, 99, 1000))
    rows = choose_rows(lengths, 100, seed=1)
    assert len(set(rows)) == 100
    chosen = sorted(lengths[row] for row in rows)
    assert abs(np.median(chosen) - np.median(lengths)) <= 3
    assert chosen[0] < 8
    assert chosen[-1] > 94
    assert rows == choose_rows(lengths, 100, seed=1) != choose_rows(lengths, 100, seed=2)


def test_fewer_rows_than_asked_for_gives_all() -> None:
    assert choose_rows([5, 3, 4], 10, seed=0) == [0, 1, 2]


def test_digest_follows_the_rows(windows: list[Window]) -> None:
    assert rows_digest(windows) == rows_digest(list(windows)) != rows_digest(windows[:-1])
