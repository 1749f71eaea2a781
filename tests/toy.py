"""Toy rows, and a tiny random BERT that can learn them in seconds."""

import json
import random
from collections.abc import Iterable
from pathlib import Path

TOY_WORDS = {
    "animal": ["cat", "dog", "horse", "mouse", "lion", "otter"],
    "food": ["bread", "soup", "apple", "cheese", "rice", "honey"],
    "vehicle": ["car", "train", "bike", "plane", "ship", "tram"],
}
LENIENT = ("export.min_agreement=0.5", "export.max_metric_loss=0.5")
"""A random model of a few steps decides by a hair, so that int8 may change an answer; that is seldom what is tested."""

_FRAMES = [
    "where is the {}",
    "I saw a {} and another {} today",
    "my {} is lost , please help me to find it",
    "a {} , two {} and one more {} were here when I came home yesterday evening",
    "{}",
    "is this {} yours or is it the {} of somebody else ?",
]
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def toy_rows(count: int, seed: int) -> list[dict[str, str]]:
    """Rows of three labels in turn: `{"text": …, "label": …}`."""
    generator = random.Random(seed)
    labels = sorted(TOY_WORDS)
    rows = []
    for index in range(count):
        label = labels[index % len(labels)]
        frame = generator.choice(_FRAMES)
        words = [generator.choice(TOY_WORDS[label]) for _ in range(frame.count("{}"))]
        rows.append({"text": frame.format(*words), "label": label})
    return rows


def write_jsonl(path: Path, rows: Iterable[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_toy_data(folder: Path, train: int = 60, validation: int = 18, test: int = 36) -> Path:
    """train.jsonl, validation.jsonl and test.jsonl."""
    for seed, (name, count) in enumerate([("train", train), ("validation", validation), ("test", test)]):
        write_jsonl(folder / f"{name}.jsonl", toy_rows(count, seed))
    return folder


def write_toy_recipe(folder: Path, base: Path) -> Path:
    """A recipe beside the toy data that trains in about two seconds, to about 0.9 accuracy."""
    path = folder / "toy.toml"
    path.write_text(
        f"""
name = "toy"
base_model = "{base}"
max_length = 48
seed = 7

[data]
train = "train.jsonl"
validation = "validation.jsonl"
test = "test.jsonl"

[train]
learning_rate = 4e-3
epochs = 8
batch_size = 6
""",
        encoding="utf-8",
    )
    return path


def build_tiny_base(folder: Path) -> Path:
    """A 2-layer BERT of width 32 with random weights, as a Hugging Face directory."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = {word for frame in _FRAMES for word in frame.lower().replace("{}", "").split()}
    words |= {word for group in TOY_WORDS.values() for word in group}
    vocabulary = [*_SPECIAL, *letters, *(f"##{letter}" for letter in letters), *sorted(words - set(letters))]
    ids = {token: index for index, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        mask_token="[MASK]",
        model_max_length=128,
    ).save_pretrained(folder)
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=128,
            pad_token_id=0,
            initializer_range=0.2,
            hidden_dropout_prob=0.0,
        )
    ).save_pretrained(folder)
    return folder
