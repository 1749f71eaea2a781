import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import (
    AutoModelForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from finetune.checkpoint import load_checkpoint
from finetune.inference import model_inputs, predict
from tasks import load_task
from tasks.errors import CheckpointError
from tasks.inputs import TextInput
from tests.toy import toy_rows


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


def make_foreign(directory: Path, **changes: Any) -> Path:
    for name in ("task.json", "run.json", "metrics.json"):
        (directory / name).unlink()
    config = json.loads((directory / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_our_own_checkpoint(tiny_checkpoint: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    assert checkpoint.spec.labels == ("animal", "food", "vehicle")
    assert checkpoint.spec.max_length == checkpoint.tokenizer.max_length == 48
    assert checkpoint.pad_token_id == 0
    assert checkpoint.tokenizer_json == (tiny_checkpoint / "tokenizer.json").read_bytes()
    assert checkpoint.run is not None
    assert checkpoint.run["seed"] == 7
    assert not checkpoint.model.training
    assert next(checkpoint.model.parameters()).dtype == torch.float32


def test_its_predictions_are_those_that_were_measured(tiny_checkpoint: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    task = load_task(checkpoint.spec)
    rows = toy_rows(36, 2)
    encoded = task.encode(checkpoint.tokenizer, [TextInput(row["text"]) for row in rows])
    outputs = predict(checkpoint.model, encoded.windows, checkpoint.pad_token_id)
    measured = json.loads((tiny_checkpoint / "metrics.json").read_text())["test"]
    assert task.metrics(outputs, encoded, [row["label"] for row in rows]) == pytest.approx(measured)
    # padding and company change nothing
    alone = [predict(checkpoint.model, [window], checkpoint.pad_token_id)[0] for window in encoded.windows]
    assert np.abs(np.stack(alone) - np.stack(outputs)).max() < 1e-5


def test_an_unfinished_checkpoint_is_refused(copy: Path) -> None:
    (copy / "task.json").unlink()
    with pytest.raises(CheckpointError, match=r"unfinished checkpoint \(task\.json is missing\); run finetune again"):
        load_checkpoint(copy)


def test_leftovers_of_a_training_are_refused(copy: Path, tmp_path: Path) -> None:
    left = tmp_path / ".checkpoint.training" / "0123456789abcdef" / "checkpoint-12"
    left.parent.mkdir(parents=True)
    make_foreign(copy).rename(left)
    with pytest.raises(CheckpointError, match="unfinished"):
        load_checkpoint(left)


def test_damage_is_named(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="the weights cannot be loaded"):
        load_checkpoint(copy)
    (copy / "run.json").unlink()
    with pytest.raises(CheckpointError, match="damaged checkpoint"):
        load_checkpoint(copy)


def test_pickled_weights_are_not_read(copy: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(copy)
    torch.save(model.state_dict(), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="the weights cannot be loaded"):
        load_checkpoint(copy)


def test_a_foreign_directory(copy: Path) -> None:
    checkpoint = load_checkpoint(make_foreign(copy))
    assert checkpoint.run is None
    assert checkpoint.spec.task == "single_label"
    assert checkpoint.spec.labels == ("animal", "food", "vehicle")
    assert checkpoint.spec.max_length == 128
    assert json.loads(checkpoint.tokenizer_json)["model"]["type"] == "WordPiece"


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"architectures": ["BertForMaskedLM"]}, "found BertForMaskedLM"),
        ({"architectures": None}, "found no architecture"),
    ],
)
def test_other_heads_are_refused_by_name(copy: Path, changes: dict[str, Any], found: str) -> None:
    with pytest.raises(CheckpointError, match=f"{found}.*this version knows: single_label"):
        load_checkpoint(make_foreign(copy, **changes))


@pytest.mark.parametrize(
    ("head", "labels", "task"),
    [
        ("BertForSequenceClassification", 3, "single_label"),
        ("BertForSequenceClassification", 1, "regression"),
        ("BertForTokenClassification", 5, "token_classification"),
        ("BertForQuestionAnswering", 2, "question_answering"),
    ],
)
def test_the_task_of_a_foreign_model_follows_from_its_head(
    tiny_base: Path, tmp_path: Path, head: str, labels: int, task: str
) -> None:
    model = getattr(transformers, head).from_pretrained(tiny_base, num_labels=labels)
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny_base / name, tmp_path / name)
    assert load_checkpoint(tmp_path).spec.task == task
    if task == "single_label":
        config = json.loads((tmp_path / "config.json").read_text()) | {"problem_type": "multi_label_classification"}
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert load_checkpoint(tmp_path).spec.task == "multi_label"


def test_a_base_model_without_its_head_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    config = json.loads((base / "config.json").read_text()) | {"architectures": ["BertForSequenceClassification"]}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"weights are missing \(classifier"):
        load_checkpoint(base)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint directory"):
        load_checkpoint(tmp_path / "none")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_checkpoint(tmp_path)


def test_the_digest_knows_the_model_and_not_the_record(copy: Path, tiny_checkpoint: Path) -> None:
    plain = load_checkpoint(tiny_checkpoint).digest
    record = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(record | {"seed": 1}))
    assert load_checkpoint(copy).digest == plain
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert load_checkpoint(copy).digest != plain


def test_token_types_go_only_where_they_are_known(tiny_checkpoint: Path) -> None:
    shape: dict[str, Any] = {"vocab_size": 50, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    roberta = RobertaForSequenceClassification(RobertaConfig(**shape, num_hidden_layers=1, type_vocab_size=1))
    distil = DistilBertForSequenceClassification(DistilBertConfig(vocab_size=50, dim=8, n_heads=2, n_layers=1))
    assert model_inputs(roberta) == model_inputs(distil) == ("input_ids", "attention_mask")
    assert model_inputs(load_checkpoint(tiny_checkpoint).model) == ("input_ids", "attention_mask", "token_type_ids")
