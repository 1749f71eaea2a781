from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.engines import torch_engine
from finetune.checkpoint import load_checkpoint
from finetune.inference import predict
from tasks import collate


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_timed_engine_computes_the_logits_of_the_checkpoint(tiny_checkpoint: Path, attention: str) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    windows = checkpoint.tokenizer.encode([("where is my card", None), ("card", None)])

    engine = torch_engine(checkpoint=str(tiny_checkpoint), attention=attention, threads=1)
    outputs = engine(collate(windows, checkpoint.pad_token_id))

    expected = np.stack(predict(checkpoint.model, windows, checkpoint.pad_token_id))
    np.testing.assert_allclose(np.asarray(outputs), expected, atol=1e-5)
    assert torch.get_num_threads() == 1


def test_the_attention_asked_for_is_the_one_that_runs(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = torch.nn.functional.scaled_dot_product_attention

    def counted(*args: object, **kwargs: object) -> torch.Tensor:
        calls.append(args)
        return original(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    checkpoint = load_checkpoint(tiny_checkpoint)
    batch = collate(checkpoint.tokenizer.encode([("card", None)]), checkpoint.pad_token_id)

    torch_engine(checkpoint=str(tiny_checkpoint), attention="eager", threads=1)(batch)
    assert calls == []
    torch_engine(checkpoint=str(tiny_checkpoint), attention="sdpa", threads=1)(batch)
    assert calls != []
