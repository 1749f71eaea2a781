"""Fine-tuning towards int8: what is rounded in training is what the int8 graph rounds, and it helps."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bundle.session import Session
from export.calibration import calibrate
from export.parity import logits_of, torch_engine
from export.quantization import behind_activation_functions, quantizable_inputs, quantize
from finetune.checkpoint import Checkpoint
from finetune.quantization_aware import fake_quantized, tune_for_int8
from tasks import Window

pytestmark = pytest.mark.usefixtures("quick_export")


def answers(model: torch.nn.Module, windows: list[Window]) -> np.ndarray:
    return np.stack(logits_of(torch_engine(model), windows, 0))


@pytest.mark.parametrize("by_token", [False, True])
@pytest.mark.parametrize("weight_limit", [64, 127])
def test_rounded_model_answers_as_the_int8_graph(
    checkpoint: Checkpoint, graph: Path, windows: list[Window], tmp_path: Path, weight_limit: int, by_token: bool
) -> None:
    ranges = calibrate(graph, quantizable_inputs(graph), windows, 0)
    products = behind_activation_functions(graph) if by_token else []
    assert bool(products) == by_token
    quantize(graph, tmp_path / "int8.onnx", ranges, by_token=products, weight_limit=weight_limit)
    int8 = np.stack(logits_of(Session(tmp_path / "int8.onnx").run, windows, 0))
    rounded = answers(
        fake_quantized(checkpoint.model, windows, pad_id=0, weight_limit=weight_limit, by_token=by_token), windows
    )
    plain = answers(checkpoint.model, windows)
    assert np.abs(rounded - int8).mean() < 0.2 * np.abs(plain - int8).mean()


def test_tuned_weights_are_nearer_in_int8_and_the_model_is_left_as_it_was(
    checkpoint: Checkpoint, windows: list[Window]
) -> None:
    form = {"pad_id": 0, "weight_limit": 64, "by_token": False}
    before = {name: value.clone() for name, value in checkpoint.model.state_dict().items()}
    steps: list[int] = []
    tuned = tune_for_int8(
        checkpoint.model,
        windows,
        **form,
        steps=60,
        seed=1,
        progress=lambda items: (steps.append(one) or one for one in items),  # type: ignore[func-returns-value]
    )
    assert steps == list(range(60))
    plain = answers(checkpoint.model, windows)
    errors = [
        np.abs(answers(fake_quantized(model, windows, **form), windows) - plain).mean()
        for model in (checkpoint.model, tuned)
    ]
    assert errors[1] < 0.8 * errors[0]
    after = checkpoint.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert tuned.state_dict().keys() == before.keys(), "a plain model again"
    assert all(parameter.requires_grad for parameter in tuned.parameters())
    assert any(not torch.equal(value, before[name]) for name, value in tuned.state_dict().items())
