"""fp16 graphs, as ONNX Runtime answers with them on a processor."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from bundle.session import Session
from export.half_precision import write_fp16
from export.parity import batch_deltas, logits_of
from finetune.checkpoint import Checkpoint
from finetune.recipe import ExportSection
from tasks import Window


def test_weights_are_halved_and_inputs_and_answer_keep_their_types(graph: Path, tmp_path: Path) -> None:
    write_fp16(graph, tmp_path / "fp16.onnx")
    before, after = onnx.load(graph).graph, onnx.load(tmp_path / "fp16.onnx").graph
    for one, other in ((before.input, after.input), (before.output, after.output)):
        assert [value.type.tensor_type.elem_type for value in one] == [
            value.type.tensor_type.elem_type for value in other
        ]
    types = {tensor.data_type for tensor in after.initializer if len(tensor.dims) == 2}
    assert TensorProto.FLOAT16 in types
    assert TensorProto.FLOAT not in types
    assert (tmp_path / "fp16.onnx").stat().st_size < 0.8 * graph.stat().st_size


def test_answers_are_nearly_those_of_fp32_in_any_company(
    graph: Path, checkpoint: Checkpoint, windows: list[Window], tmp_path: Path
) -> None:
    write_fp16(graph, tmp_path / "fp16.onnx")
    pad_id, engine = checkpoint.pad_token_id, Session(tmp_path / "fp16.onnx").run
    expected, got = (np.stack(logits_of(run, windows, pad_id)) for run in (Session(graph).run, engine))
    assert 0 < np.abs(got - expected).max() < 0.01 * np.ptp(expected)
    assert batch_deltas(engine, windows, pad_id).max() <= 0.01 * np.ptp(expected)


def test_nobody_gets_fp16_unasked() -> None:
    assert "fp16" not in ExportSection().variants
