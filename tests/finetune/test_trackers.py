import importlib.util
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from finetune.recipe import load_recipe
from finetune.trackers import TRACKERS, check_trackers
from finetune.training import finetune
from paritybit.cli import _TRACKERS
from tasks.errors import ParitybitError
from tests.toy import write_toy_data, write_toy_recipe


def scalars(log: Path) -> dict[str, dict[int, float]]:
    """By name and step, from TensorBoard's file: of each record its length, a checksum, an event, another checksum."""
    found: dict[str, dict[int, float]] = {}
    data = log.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found.setdefault(value.tag, {})[event.step] = value.simple_value
        data = data[12 + length + 4 :]
    return found


def test_tensorboard_is_told_what_the_record_holds(tmp_path: Path, tiny_base: Path) -> None:
    recipe = load_recipe(write_toy_recipe(write_toy_data(tmp_path / "data"), tiny_base), ["train.epochs=2"])
    checkpoint = finetune(recipe, tmp_path / "toy" / "checkpoint", report_to=["tensorboard"]).checkpoint
    history: list[dict[str, Any]] = json.loads((checkpoint / "run.json").read_bytes())["training"]["history"]
    (log,) = (tmp_path / "toy" / "tensorboard").glob("*/events.*")
    told = scalars(log)
    for key, tag in {"loss": "train/loss", "eval_accuracy": "eval/accuracy"}.items():
        kept = {entry["step"]: entry[key] for entry in history if key in entry}
        assert len(kept) == 2
        assert told[tag] == pytest.approx(kept, abs=1e-6)


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_that_is_not_installed_is_named_before_anything_is_read(
    name: str, tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(write_toy_recipe(write_toy_data(tmp_path / "data"), tiny_base))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ParitybitError, match=f"^--report-to {name}: needs the package {TRACKERS[name][0]}"):
        finetune(recipe, tmp_path / "checkpoint", report_to=[name])
    assert not (tmp_path / "checkpoint").exists()


def test_trackers_are_those_that_the_command_offers_and_transformers_has() -> None:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    assert tuple(TRACKERS) == _TRACKERS
    assert INTEGRATION_TO_CALLBACK.keys() >= TRACKERS.keys()
    check_trackers([])
