"""Toy rows, and a tiny random BERT that can learn them in seconds."""

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

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


def toy_rows_of(task: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Rows of any task, in words that the tiny model knows."""
    generator = random.Random(seed)
    return [_ROWS[task](generator) for _ in range(count)]


def _mentions(generator: random.Random) -> list[tuple[str, str]]:
    """Up to three words of different kinds, in any order."""
    kinds = generator.sample(sorted(TOY_WORDS), generator.randint(0, 3))
    return [(kind, generator.choice(TOY_WORDS[kind])) for kind in kinds]


def _several_labels(generator: random.Random) -> dict[str, Any]:
    mentions = _mentions(generator)
    text = " and ".join(word for _, word in mentions) or "where is it"
    return {"text": text, "labels": [kind for kind, _ in mentions]}


def _similarity(generator: random.Random) -> dict[str, Any]:
    left, right = _mentions(generator), _mentions(generator)
    kinds = {kind for kind, _ in left}, {kind for kind, _ in right}
    score = 5 * len(kinds[0] & kinds[1]) / max(1, len(kinds[0] | kinds[1]))
    texts = ["the " + " and ".join(word for _, word in one) for one in (left, right)]
    return {"text": texts[0], "text_pair": texts[1], "label": score}


def _tagged(generator: random.Random) -> dict[str, Any]:
    words, tags = ["yesterday"], ["O"]
    for kind, word in _mentions(generator):
        second = generator.random() < 0.3
        words += ["my", word, *([word] if second else [])]
        tags += ["O", f"B-{kind}", *([f"I-{kind}"] if second else [])]
    return {"words": words, "tags": tags}


def _question(generator: random.Random) -> dict[str, Any]:
    mentions = _mentions(generator)
    asked = generator.choice(sorted(TOY_WORDS))
    example = generator.choice(TOY_WORDS[asked])
    context = "yesterday evening I saw " + " and a ".join(["home", *(word for _, word in mentions)]) + " ."
    found = [word for kind, word in mentions if kind == asked]
    answers = {"text": found, "answer_start": [context.index(word, 24) for word in found]}
    return {"question": f"is it a {example} ?", "context": context, "answers": answers}


_ROWS: dict[str, Callable[[random.Random], dict[str, Any]]] = {
    "multi_label": _several_labels,
    "regression": _similarity,
    "token_classification": _tagged,
    "question_answering": _question,
}
TOY_TASKS = tuple(_ROWS)


def write_jsonl(path: Path, rows: Iterable[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_toy_data(folder: Path, train: int = 60, validation: int = 18, test: int = 36) -> Path:
    """train.jsonl, validation.jsonl and test.jsonl."""
    for seed, (name, count) in enumerate([("train", train), ("validation", validation), ("test", test)]):
        write_jsonl(folder / f"{name}.jsonl", toy_rows(count, seed))
    return folder


def write_toy_task(folder: Path, base: Path, task: str) -> Path:
    """Data and recipe of any other task; its texts are longer than its windows."""
    for seed, (name, count) in enumerate([("train", 120), ("validation", 24), ("test", 40)]):
        write_jsonl(folder / f"{name}.jsonl", toy_rows_of(task, count, seed))
    return write_toy_recipe(folder, base, f'task = "{task}"', max_length=20)


def write_toy_recipe(folder: Path, base: Path, more: str = "", max_length: int = 48) -> Path:
    """A recipe beside the toy data that trains in about two seconds, to about 0.9 accuracy."""
    pair = '\n[data.columns]\ntext_pair = "text_pair"' if "regression" in more else ""
    path = folder / "toy.toml"
    path.write_text(
        f"""
name = "toy"
base_model = "{base}"
max_length = {max_length}
seed = 7
{more}

[data]
train = "train.jsonl"
validation = "validation.jsonl"
test = "test.jsonl"
{pair}

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
    words = {"yesterday", "evening", "home", "saw", "it", "a", "and", "the"}
    words |= {word for frame in _FRAMES for word in frame.lower().replace("{}", "").split()}
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
