"""A small real bundle (tokenizer, ONNX graph, golden rows, checksums) and real servers of it."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from bundle.cpu import instruction_set
from bundle.golden import GoldenRow, write_golden
from bundle.manifest import FileInfo, Manifest, Variant
from bundle.predictor import Predictor
from bundle.session import Session
from tasks import TextInput
from tasks.base import TaskSpec
from tasks.directory import sha256_of

ROOT = Path(__file__).resolve().parents[2]
LABELS = ("card_arrival", "exchange_rate", "lost_card", "top_up_failed", "pin_blocked")
MAX_LENGTH = 48
GOLDEN_TEXTS = ["Where is my card?", "What is the exchange rate today?", "I lost my card 💳", "卡在哪里", "blocked"]
SETTINGS = {"PARITYBIT_MAX_TEXTS": "8", "PARITYBIT_MAX_TEXT_CHARS": "20000", "PARITYBIT_MAX_BODY_BYTES": "300000"}
"""Of the server that most tests share."""


@dataclass(frozen=True)
class Server:
    """A running `bentoml serve`."""

    url: str
    process: subprocess.Popen[str]
    log: Path

    def post(self, path: str, content: object) -> httpx.Response:
        """A POST of JSON, or of bytes as they are."""
        if isinstance(content, bytes):
            return httpx.post(self.url + path, content=content, timeout=20)
        return httpx.post(self.url + path, json=content, timeout=20)


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certified bundle of a random classifier with real arithmetic: embeddings, masked mean, linear layer."""
    directory = tmp_path_factory.mktemp("tiny") / "build" / "tiny" / "bundle"
    directory.mkdir(parents=True)
    write_bundle(directory)
    return directory


def write_bundle(directory: Path, created: str = "2026-01-02T03:04:05+00:00", name: str = "tiny") -> None:
    """Writes a whole bundle into an empty directory."""
    vocabulary = _write_tokenizer(directory / "tokenizer.json")
    _write_model(directory / "model.onnx", vocabulary)
    (directory / "config.json").write_text(json.dumps({"id2label": dict(enumerate(LABELS))}))
    (directory / "certificate.json").write_text(json.dumps({"verdict": "pass"}))
    session = Session(directory / "model.onnx")
    manifest = Manifest(
        schema_version=1,
        name=name,
        task=TaskSpec(task="single_label", labels=LABELS, max_length=MAX_LENGTH),
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
    inputs = [TextInput(text) for text in GOLDEN_TEXTS] + [TextInput("my card", "lost")]
    predictor = Predictor(manifest, directory, session)
    outputs = predictor.outputs(predictor.task.encode(predictor.tokenizer, inputs))
    write_golden(directory / "golden.jsonl", [GoldenRow(*row) for row in zip(inputs, outputs, strict=True)])
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


def _write_model(path: Path, vocabulary: int, width: int = 32) -> None:
    """Logits = mean over unmasked tokens of (token + segment embedding) · W + b."""
    random = np.random.default_rng(7)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Gather", ["tokens", "input_ids"], ["by_token"]),
        helper.make_node("Gather", ["segments", "token_type_ids"], ["by_segment"]),
        helper.make_node("Add", ["by_token", "by_segment"], ["embedded"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask3"]),
        helper.make_node("Mul", ["embedded", "mask3"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "first"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "first"], ["count"], keepdims=1),
        helper.make_node("Max", ["count", "one"], ["at_least_one"]),
        helper.make_node("Div", ["sum", "at_least_one"], ["mean"]),
        helper.make_node("Gemm", ["mean", "weight", "bias"], ["logits"]),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
        for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(LABELS)])]
    constants = [
        weight("tokens", vocabulary, width),
        weight("segments", 2, width),
        weight("weight", width, len(LABELS)),
        weight("bias", len(LABELS)),
        numpy_helper.from_array(np.array([-1]), "last"),
        numpy_helper.from_array(np.array([1]), "first"),
        numpy_helper.from_array(np.array([1.0], dtype=np.float32), "one"),
    ]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def environment(**settings: str) -> dict[str, str]:
    """This process's environment without anybody's paritybit or telemetry settings, plus the given ones."""
    ours = ("PARITYBIT_", "BENTOML_", "ORT_DISABLE", "HF_HUB_DISABLE")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return clean | settings


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def serving(log: Path, *command: str, cwd: Path = ROOT, ready: bool = True, **settings: str) -> Iterator[Server]:
    """`bentoml serve` on a free port; stopped at the end if it still runs."""
    port = free_port()
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "bentoml", "serve", *command, "--host", "127.0.0.1", "--port", str(port)],
            cwd=cwd,
            env=environment(**{"BENTOML_HOME": str(log.parent / "bentoml"), **settings}),
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )
    server = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        if ready:
            wait_until_ready(server)
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(20)


def wait_until_ready(server: Server, seconds: float = 60) -> None:
    """Returns when `/readyz` says so; fails with the server's log when it ends or takes too long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            if httpx.get(server.url + "/readyz", timeout=10).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    pytest.fail(f"not ready, exit status {server.process.poll()}:\n{server.log.read_text()}")


@pytest.fixture(scope="session")
def server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the tiny bundle with small limits."""
    log = tmp_path_factory.mktemp("server") / "log"
    with serving(log, PARITYBIT_BUNDLE=str(tiny_bundle), **SETTINGS) as running:
        yield running
