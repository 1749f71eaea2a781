from pathlib import Path

import pytest

from finetune.checkpoint import Checkpoint, load_checkpoint
from tasks import Window


@pytest.fixture(scope="session")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(tiny_checkpoint)


@pytest.fixture(scope="session")
def graph(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory, quick_export: None) -> Path:
    from export import pipeline

    path = tmp_path_factory.mktemp("graph") / "fp32.onnx"
    pipeline.export_graph(checkpoint.model, path, 20)
    return path


@pytest.fixture(scope="session")
def windows(checkpoint: Checkpoint) -> list[Window]:
    """Rows of many lengths, from one word to more than max_length."""
    words = ["where", "is", "my", "cat", "bread", "and", "another", "horse", "train", "lost", "please"]
    texts = [" ".join(words[(start + step) % len(words)] for step in range(1 + 2 * start)) for start in range(24)]
    return checkpoint.tokenizer.encode([(text, None) for text in texts])
