"""Small real bundles without any training library: tokenizer, ONNX graph, golden rows, checksums; one of each task."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from bundle.cpu import instruction_set
from bundle.golden import GoldenRow, write_golden
from bundle.manifest import FileInfo, Manifest, Variant
from bundle.predictor import Predictor
from bundle.session import Session
from tasks import Input, QuestionInput, TextInput, WordsInput
from tasks.base import TaskSpec
from tasks.directory import sha256_of

LABELS = ("card_arrival", "exchange_rate", "lost_card", "top_up_failed", "pin_blocked")
MAX_LENGTH = 48
GOLDEN_TEXTS = ["Where is my card?", "What is the exchange rate today?", "I lost my card 💳", "卡在哪里", "blocked"]


LONG_TEXT = "I lost my card 💳 in Zürich, today. 卡在哪里? " * 12
"""Several windows long."""


@dataclass(frozen=True)
class Tiny:
    """What a tiny bundle of a task is about.

    Attributes:
        labels: of the task.
        golden: inputs of the golden rows.
        options: of the task.
        each_token: whether the graph answers each token.
    """

    labels: tuple[str, ...]
    golden: Sequence[Input]
    options: dict[str, Any] = field(default_factory=dict)
    each_token: bool = False


_TEXTS = [TextInput(text) for text in GOLDEN_TEXTS]
_PAIR = TextInput("my card", "lost")
TINY = {
    "single_label": Tiny(LABELS, [*_TEXTS, _PAIR]),
    "multi_label": Tiny(LABELS, [*_TEXTS, _PAIR], {"thresholds": {"lost_card": 0.4, "pin_blocked": 0.6}}),
    "regression": Tiny(("score",), [_PAIR, *_TEXTS], {"mean": 2.5, "std": 1.5}),
    "token_classification": Tiny(
        ("O", "B-place", "I-place", "B-thing", "I-thing"),
        [*_TEXTS, TextInput(LONG_TEXT), WordsInput(("my", "card", "卡在哪里", "", "lost"))],
        each_token=True,
    ),
    "question_answering": Tiny(
        ("start", "end"),
        [QuestionInput("Where is my card?", context) for context in [*GOLDEN_TEXTS, LONG_TEXT]],
        each_token=True,
    ),
}


def write_bundle(
    directory: Path, created: str = "2026-01-02T03:04:05+00:00", name: str = "tiny", task: str = "single_label"
) -> None:
    """Writes a whole bundle into an empty directory."""
    tiny = TINY[task]
    vocabulary = _write_tokenizer(directory / "tokenizer.json")
    _write_model(directory / "model.onnx", vocabulary, len(tiny.labels), tiny.each_token)
    (directory / "config.json").write_text(json.dumps({"id2label": dict(enumerate(tiny.labels))}))
    (directory / "certificate.json").write_text(json.dumps({"verdict": "pass"}))
    session = Session(directory / "model.onnx")
    manifest = Manifest(
        schema_version=1,
        name=name,
        task=TaskSpec(task=task, labels=tiny.labels, max_length=MAX_LENGTH, options=tiny.options),
        pad_token_id=0,
        inputs=session.inputs,
        outputs=session.outputs,
        files={},
        default_variant="fp32",
        variants={"fp32": Variant(file="model.onnx", verdict="pass")},
        golden_tolerance=1e-5,
        checkpoint_digest="c" * 64,
        inputs_digest="d" * 64,
        opset=17,
        versions={},
        instruction_set=instruction_set(),
        created=created,
        verdict="pass",
    )
    predictor = Predictor(manifest, directory, session)
    encoded = predictor.task.encode(predictor.tokenizer, tiny.golden)
    outputs = predictor.outputs(encoded.windows)
    rows = [GoldenRow(one, tuple(outputs[span])) for one, span in zip(tiny.golden, encoded.spans(), strict=True)]
    write_golden(directory / "golden.jsonl", rows)
    seal(directory, manifest)


def seal(directory: Path, manifest: Manifest) -> None:
    """Writes the manifest with the checksums of the files as they are now."""
    files = {
        path.name: FileInfo(sha256=sha256_of(path), size=path.stat().st_size)
        for path in sorted(directory.iterdir())
        if path.name != "manifest.json"
    }
    content = manifest.model_copy(update={"files": files}).model_dump_json(indent=2)
    (directory / "manifest.json").write_text(content)


def _write_tokenizer(path: Path) -> int:
    """A WordPiece tokenizer in which every text has a spelling; returns its number of tokens."""
    words = sorted({word for text in GOLDEN_TEXTS for word in text.lower().strip("?").split() if word.isascii()})
    letters = [chr(code) for code in range(33, 127)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *[f"##{letter}" for letter in letters], *words, "卡", "💳"]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    tokenizer.save(str(path))
    return len(vocabulary)


def _write_model(path: Path, vocabulary: int, labels: int, each_token: bool, width: int = 32) -> None:
    """Logits = (token + segment embedding) · W + b, of each token or of the mean over the unmasked ones."""
    random = np.random.default_rng(7)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name)

    embedding = [
        helper.make_node("Gather", ["tokens", "input_ids"], ["by_token"]),
        helper.make_node("Gather", ["segments", "token_type_ids"], ["by_segment"]),
        helper.make_node("Add", ["by_token", "by_segment"], ["embedded"]),
    ]
    mean = [
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask3"]),
        helper.make_node("Mul", ["embedded", "mask3"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "first"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "first"], ["count"], keepdims=1),
        helper.make_node("Max", ["count", "one"], ["at_least_one"]),
        helper.make_node("Div", ["sum", "at_least_one"], ["mean"]),
    ]
    head = [
        helper.make_node("MatMul", ["embedded" if each_token else "mean", "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["logits"]),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
        for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    axes: list[str | int | None] = ["batch", "sequence", labels] if each_token else ["batch", labels]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, axes)]
    constants = [
        weight("tokens", vocabulary, width),
        weight("segments", 2, width),
        weight("weight", width, labels),
        weight("bias", labels),
        numpy_helper.from_array(np.array([-1]), "last"),
        numpy_helper.from_array(np.array([1]), "first"),
        numpy_helper.from_array(np.array([1.0], dtype=np.float32), "one"),
    ]
    graph = helper.make_graph([*embedding, *([] if each_token else mean), *head], "tiny", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
