"""Chinese rows of every kind through every stage, with a vocabulary of Chinese characters and random weights.

Random weights learn nothing to speak of, but what they say must be the same in PyTorch, in ONNX and behind `Predictor`,
and must stand where it says that it stands.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bundle import Predictor
from tasks.inputs import QuestionInput, TextInput, WordsInput
from tests.toy import LENIENT, write_jsonl

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("PARITYBIT_DATA", ROOT / "../shared/data"))
ROWS = {"sib200_zh": (60, 20), "uner_zh": (60, 20), "cluener": (60, 20), "cmrc2018": (12, 6)}
SMALL = ["max_length=96", "train.epochs=1", "train.batch_size=8", "train.learning_rate=1e-5", "train.dropout=0.0"]

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not (DATA / "cmrc2018").is_dir(), reason="the data sets are not here (PARITYBIT_DATA)"),
]


def lines(path: Path, count: int) -> Iterator[dict[str, Any]]:
    # not splitlines: U+2028 may stand in a JSON string
    for line in path.read_text(encoding="utf-8").split("\n")[:count]:
        yield json.loads(line)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BertTokenizer that knows every character of the data sets, as bert-base-chinese does, and a small model."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("chinese")
    text = "".join((DATA / name / "train.jsonl").read_text(encoding="utf-8") for name in ROWS)
    characters = sorted({character for character in text.lower() if not character.isspace()})
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{one}" for one in characters)]
    tokenizer = BertTokenizer(vocab={token: index for index, token in enumerate(tokens)}, model_max_length=512)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokens),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        # wider than models begin with: among so many tokens some are called an entity
        initializer_range=0.3,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=ROWS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def bundle(name: str, base: Path, quick_export: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from export.pipeline import export_bundle
    from finetune.recipe import load_recipe, recipe_of_run
    from finetune.training import finetune

    folder = tmp_path_factory.mktemp(name)
    train, others = ROWS[name]
    splits = {"train": train, "validation": others, "test": others}
    files = {
        split: write_jsonl(folder / f"{split}.jsonl", lines(DATA / name / f"{split}.jsonl", count))
        for split, count in splits.items()
    }
    overrides = [f"base_model={base}", *(f"data.{split}={json.dumps(str(path))}" for split, path in files.items())]
    recipe = load_recipe(ROOT / "recipes" / f"{name}.toml", [*SMALL, *overrides])
    checkpoint = finetune(recipe, folder / "checkpoint").checkpoint
    return export_bundle(checkpoint, folder / "bundle", recipe=recipe_of_run(checkpoint, LENIENT)).bundle


def test_fp32_says_what_pytorch_says(bundle: Path) -> None:
    certificate = json.loads((bundle / "certificate.json").read_text())
    fp32 = next(one for one in certificate["variants"] if one["name"] == "fp32")
    assert fp32["agreement"] == 1.0
    assert fp32["delta_quantiles"]["p100"] <= 1e-4


def test_answers_stand_where_they_say(name: str, bundle: Path) -> None:
    predictor = Predictor.load(bundle)
    checked = 0
    for row in lines(DATA / name / "test.jsonl", 40):
        if "context" in row:
            (answer,) = predictor([QuestionInput(row["question"], row["context"])], top_k=5)
            spans = [(row["context"], one["answer"], one) for one in answer["answers"]]
        elif "tokens" in row:
            joiner = predictor.task.options.model_validate(predictor.manifest.task.options).joiner  # type: ignore[attr-defined]
            text = joiner.join(row["tokens"])
            by_text, by_words = predictor([TextInput(text), WordsInput(tuple(row["tokens"]))])
            spans = [(text, one["text"], one) for answer in (by_text, by_words) for one in answer["entities"]]
        else:
            (answer,) = predictor([row["text"]])
            assert sum(one["score"] for one in answer["labels"]) == pytest.approx(1)
            spans = []
        for text, found, place in spans:
            assert text[place["start"] : place["end"]] == found
            assert found.strip() == found != ""
        checked += len(spans)
    assert checked or name == "sib200_zh"


def test_whole_vocabulary_is_read(name: str, bundle: Path) -> None:
    """No common character is unknown, and each Chinese one is a token of its own."""
    predictor = Predictor.load(bundle)
    text = "北京市长在2018年参观了故宫，很高兴！"
    encoded = predictor.tokenizer.encode([(text, None)], aligned=True)[0]
    pieces = [text[begin:end] for begin, end in encoded.aligned.offsets[1:-1]]
    assert "".join(pieces) == text
    assert all(len(piece) == 1 for piece in pieces if not piece.isascii())
    assert 1 not in encoded.input_ids.tolist()
