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
from finetune.recipe import Recipe
from tasks import load_task
from tasks.errors import CheckpointError, RecipeError
from tasks.inputs import TextInput
from tests.toy import toy_rows

PICKLE = "pytorch_model.bin"


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


def pickle_weights(directory: Path) -> Path:
    """Puts a pickle in the place of the safetensors weights."""
    torch.save(AutoModelForSequenceClassification.from_pretrained(directory).state_dict(), directory / PICKLE)
    (directory / "model.safetensors").unlink()
    return directory


def test_pickled_weights_are_read_only_where_allowed(copy: Path, tiny_checkpoint: Path) -> None:
    pickle_weights(make_foreign(copy))
    with pytest.raises(CheckpointError, match=r"no safetensors weights; pickled ones .* with --allow-pickle only"):
        load_checkpoint(copy)
    allowed, safe = load_checkpoint(copy, allow_pickle=True), load_checkpoint(tiny_checkpoint)
    for name, weights in safe.model.state_dict().items():
        assert torch.equal(allowed.model.state_dict()[name], weights)
    weights = allowed.model.state_dict()
    torch.save({name: values + 1 for name, values in weights.items()}, copy / PICKLE)
    assert load_checkpoint(copy, allow_pickle=True).digest != allowed.digest


def test_our_own_checkpoint_never_has_pickled_weights(copy: Path) -> None:
    pickle_weights(copy)
    with pytest.raises(CheckpointError, match="no safetensors weights"):
        load_checkpoint(copy, allow_pickle=True)


def test_safetensors_win_over_a_pickle_that_is_allowed(copy: Path) -> None:
    make_foreign(copy)
    before = load_checkpoint(copy).digest
    (copy / PICKLE).write_bytes(b"not read")
    assert load_checkpoint(copy, allow_pickle=True).digest == before


def test_code_in_a_pickle_is_not_run(copy: Path, tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "was here",)

    make_foreign(copy)
    torch.save({"bert.embeddings.word_embeddings.weight": Code()}, copy / PICKLE)
    (copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="the weights cannot be loaded: Weights only load failed"):
        load_checkpoint(copy, allow_pickle=True)
    assert not (tmp_path / "was here").exists()
    torch.load(copy / PICKLE, weights_only=False)
    assert (tmp_path / "was here").exists(), "it would have been run"


def test_code_of_a_model_is_not_run(copy: Path) -> None:
    (copy / "modeling.py").write_text("raise SystemExit('was run')\n")
    changes = {"model_type": "own", "auto_map": {"AutoConfig": "modeling.Config"}}
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_checkpoint(make_foreign(copy, **changes))


@pytest.mark.parametrize("allow_pickle", [False, True])
def test_pickles_of_the_hub_are_downloaded_only_where_allowed(
    copy: Path, monkeypatch: pytest.MonkeyPatch, allow_pickle: bool
) -> None:
    """A stubbed hub: what it is asked for decides what lies in the snapshot."""
    hub = pickle_weights(make_foreign(copy))
    snapshot = hub.parent / "snapshot"
    snapshot.mkdir()

    def download(_: str, *, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        for path in hub.iterdir():
            if any(path.match(pattern) for pattern in allow_patterns):
                shutil.copyfile(path, snapshot / path.name)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    if allow_pickle:
        assert load_checkpoint("some/model", allow_pickle=True).spec.labels == ("animal", "food", "vehicle")
    else:
        with pytest.raises(CheckpointError, match=r"some/model: no safetensors weights; pickled ones"):
            load_checkpoint("some/model")
    assert (snapshot / PICKLE).exists() == allow_pickle


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
        ({"architectures": ["BertPreTrainedModel"]}, "found BertPreTrainedModel"),
        ({"architectures": ["MyForSequenceClassification"]}, "found MyForSequenceClassification"),
        # two more heads than a span has: its beam search is not what is served
        ({"architectures": ["XLMForQuestionAnswering"]}, "found XLMForQuestionAnswering"),
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


GENERIC = {"id2label": {str(index): f"LABEL_{index}" for index in range(3)}}


def recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate(
        {"name": "named", "base_model": "none", "data": {"train": "a.jsonl", "test": "b.jsonl"}} | changes
    )


@pytest.mark.parametrize("given", [None, recipe()])
def test_labels_without_names_are_warned_of(copy: Path, given: Recipe | None) -> None:
    told: list[str] = []
    checkpoint = load_checkpoint(make_foreign(copy, **GENERIC), recipe=given, report=told.append)
    assert checkpoint.spec.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert checkpoint.config_json == (copy / "config.json").read_bytes()
    (line,) = told
    assert line.startswith(f"warning: {copy}: its labels have no names (LABEL_0 to LABEL_2); give them in a recipe")
    assert "labels = [...]" in line and "--recipe" in line


def test_the_recipe_names_labels_that_have_no_names(copy: Path) -> None:
    told: list[str] = []
    names = ["Tier", "Essen", "Fahrzeug"]
    checkpoint = load_checkpoint(make_foreign(copy, **GENERIC), recipe=recipe(labels=names), report=told.append)
    assert checkpoint.spec.labels == tuple(names)
    assert told == []
    config, before = json.loads(checkpoint.config_json), json.loads((copy / "config.json").read_bytes())
    assert config["id2label"] == {"0": "Tier", "1": "Essen", "2": "Fahrzeug"}
    assert config["label2id"] == {"Tier": 0, "Essen": 1, "Fahrzeug": 2}
    assert {key for key in config if config[key] != before[key]} == {"id2label", "label2id"}


def test_the_recipe_does_not_rename_labels_that_have_names(copy: Path) -> None:
    checkpoint = load_checkpoint(make_foreign(copy), recipe=recipe(labels=["x", "y", "z"]))
    assert checkpoint.spec.labels == ("animal", "food", "vehicle")


def test_a_recipe_that_does_not_fit_the_checkpoint_is_refused(copy: Path, tiny_checkpoint: Path) -> None:
    with pytest.raises(RecipeError, match="task: found multi_label; expected single_label, the task of"):
        load_checkpoint(tiny_checkpoint, recipe=recipe(task="multi_label"))
    make_foreign(copy, **GENERIC)
    with pytest.raises(RecipeError, match="task: found token_classification; expected single_label"):
        load_checkpoint(copy, recipe=recipe(task="token_classification"))
    with pytest.raises(RecipeError, match="labels: found 2; expected 3, the outputs of"):
        load_checkpoint(copy, recipe=recipe(labels=["one", "two"]))


def test_tasks_without_labels_are_not_warned_of(tiny_base: Path, tmp_path: Path) -> None:
    told: list[str] = []
    transformers.BertForQuestionAnswering.from_pretrained(tiny_base).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny_base / name, tmp_path / name)
    load_checkpoint(tmp_path, report=told.append)
    assert told == []


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
