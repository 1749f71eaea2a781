from pathlib import Path

import numpy as np
import onnx
import pytest

from bundle.session import Session
from export.embeddings import quantize_embeddings
from export.parity import logits_of
from export.quantization import quantize
from finetune.checkpoint import Checkpoint
from tasks import Window, collate
from tests.export.graphs import embedding_graph, windows_of


@pytest.fixture
def table() -> np.ndarray:
    """Rows of very different sizes, one of them all zeros."""
    generator = np.random.default_rng(0)
    table = generator.normal(size=(1200, 64)) * generator.uniform(0.01, 10, size=(1200, 1))
    table[7] = 0
    return table.astype(np.float32)


def test_every_value_comes_back_within_half_a_step_of_its_row(tmp_path: Path, table: np.ndarray) -> None:
    fp32, int8 = embedding_graph(tmp_path / "fp32.onnx", table), tmp_path / "int8.onnx"
    assert quantize_embeddings(fp32, int8) == 1
    [window] = windows_of([range(len(table))])
    got = Session(int8).run(collate([window], 0))[0]
    half_step = np.abs(table).max(axis=1, keepdims=True) / 127 / 2
    assert (np.abs(got - table) <= half_step * 1.0001).all()
    assert not got[7].any()
    assert np.abs(got - table).max() > 0


def test_the_table_shrinks_to_a_quarter(tmp_path: Path, table: np.ndarray) -> None:
    fp32, int8 = embedding_graph(tmp_path / "fp32.onnx", table), tmp_path / "int8.onnx"
    quantize_embeddings(fp32, int8)
    saved = fp32.stat().st_size - int8.stat().st_size
    assert 0.7 * table.nbytes < saved < 0.75 * table.nbytes


def test_small_tables_stay(tmp_path: Path, table: np.ndarray) -> None:
    fp32, int8 = embedding_graph(tmp_path / "fp32.onnx", table[:999]), tmp_path / "int8.onnx"
    assert quantize_embeddings(fp32, int8) == 0
    assert quantize_embeddings(fp32, int8, min_rows=999) == 1


def test_a_quantized_encoder_takes_them_and_hardly_changes(
    graph: Path, checkpoint: Checkpoint, windows: list[Window], tmp_path: Path
) -> None:
    pad_id = checkpoint.pad_token_id
    quantize(graph, tmp_path / "dynamic.onnx")
    assert quantize_embeddings(graph, tmp_path / "fp32.onnx", min_rows=100) == 2
    assert quantize_embeddings(tmp_path / "dynamic.onnx", tmp_path / "both.onnx", min_rows=2) == 3
    left = [one for one in onnx.load(tmp_path / "both.onnx").graph.initializer if "embeddings.weight" in one.name]
    assert {one.data_type for one in left if one.dims[1] > 1} == {onnx.TensorProto.INT8}
    expected, tables, both = (
        np.stack(logits_of(Session(path).run, windows, pad_id))
        for path in (graph, tmp_path / "fp32.onnx", tmp_path / "both.onnx")
    )
    spread = np.ptp(expected)
    assert 0 < np.abs(tables - expected).max() < 0.05 * spread
    assert np.abs(both - expected).max() < 0.1 * spread + 0.01
