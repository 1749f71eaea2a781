"""Every family of encoders on a tiny random configuration, against PyTorch.

Tracing takes seconds, so one model of each kind goes through exporter, ONNX Runtime and quantization. Those that share
its modelling code, and those beyond, are judged by what their fused operators are given: the operator is computed by
its book here, in PyTorch.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from transformers import PreTrainedModel

from bundle.session import Session
from export.attention import fused_attention, obstacle_to_fusion
from export.calibration import calibrate
from export.first_token import write_narrowed
from export.graph import GraphInfo, export_graph
from export.half_precision import write_fp16
from export.parity import Batch, torch_engine
from export.quantization import quantizable_inputs, quantize
from finetune.base_model import quiet_transformers
from finetune.inference import model_inputs, to_tensors
from tasks import Window
from tasks.encoding import FloatArray

VOCABULARY, PAD_ID, WINDOW = 100, 1, 8
TINY = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 520,
    "num_labels": 3,
    "pad_token_id": PAD_ID,
    # wider than models begin with: logits differ from row to row, and a lost mask shows
    "initializer_range": 0.2,
}
SPECIAL_IDS = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id"), 2)


@dataclass(frozen=True)
class Family:
    """A class of transformers, and what its configuration is called or has beyond the others."""

    name: str
    head: str = "SequenceClassification"
    config: dict[str, Any] = field(default_factory=dict)
    attentions: int = 2

    def __str__(self) -> str:
        return f"{self.name}For{self.head}"


MODERN = SPECIAL_IDS | {"global_attn_every_n_layers": 2, "local_attention": 2 * WINDOW}
DISENTANGLED = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
}
EXPORTED = [
    Family("Bert"),
    Family("Bert", "TokenClassification"),
    Family("DistilBert", config={"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 40}),
    Family("DistilBert", "QuestionAnswering", config={"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 40}),
    Family("Roberta", config={"type_vocab_size": 1}),
    Family("Albert", config={"embedding_size": 16}),
    Family("Electra", config={"embedding_size": 16}),
    Family("EuroBert", config=SPECIAL_IDS | {"num_key_value_heads": 2}),
    Family("ModernBert", config=MODERN),
    Family("MPNet", attentions=0),
    Family("DebertaV2", config=DISENTANGLED | {"share_att_key": True, "position_buckets": 16}, attentions=0),
]
FUSED = [family for family in EXPORTED if family.attentions] + [
    Family("Bert", "QuestionAnswering"),
    Family("Bert", "TokenClassification", {"is_decoder": True}),
    Family("Camembert", config={"type_vocab_size": 1}),
    Family("Data2VecText"),
    Family("Ernie"),
    Family("Esm", config={"mask_token_id": 4, "position_embedding_type": "rotary"}),
    Family("Gte"),
    Family("JinaEmbeddingsV3"),
    Family("MobileBert", config={"embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32}),
    Family("ModernBert", "QuestionAnswering", MODERN),
    Family("ModernBert", "TokenClassification", MODERN),
    Family("NomicBert"),
    Family("RobertaPreLayerNorm"),
    Family("XLMRoberta", config={"type_vocab_size": 1}),
    Family("XLMRobertaXL", config={"type_vocab_size": 1}),
]
PLAIN = ["ConvBert", "Deberta", "FNet", "LayoutLM", "MegatronBert", "RemBert", "RoFormer", "XLM"]


@dataclass(frozen=True)
class Exported:
    family: Family
    model: PreTrainedModel
    graph: Path
    info: GraphInfo


def build(family: Family) -> PreTrainedModel:
    torch.manual_seed(0)
    labels = {"num_labels": 2} if family.head == "QuestionAnswering" else {}
    with quiet_transformers():
        config = getattr(transformers, f"{family.name}Config")(**TINY | labels | family.config)
        return getattr(transformers, str(family))(config).eval()


def random_batches(model: PreTrainedModel, *shapes: tuple[int, int]) -> Iterator[dict[str, np.ndarray]]:
    """Random ids under full masks, ragged ones and ones with holes; the first token is always attended to."""
    generator = np.random.default_rng(5)
    types = getattr(model.config, "type_vocab_size", 0) or 1
    for rows, tokens in shapes:
        ragged = np.arange(tokens) < generator.integers(1, tokens + 1, (rows, 1))
        holes = generator.random((rows, tokens)) < 0.6
        holes[:, 0] = True
        for mask in (np.ones((rows, tokens)), ragged, holes):
            yield {
                "input_ids": generator.integers(PAD_ID + 1, VOCABULARY, (rows, tokens)),
                "attention_mask": mask.astype(np.int64),
                "token_type_ids": generator.integers(0, min(types, 2), (rows, tokens)),
            }


def counted(outputs: FloatArray, batch: Batch) -> FloatArray:
    """The outputs that say something: all that are of a row, those of attended tokens where there is one a token."""
    return outputs[batch["attention_mask"] == 1] if outputs.ndim == 3 else outputs


def outputs_of(engine: Callable[[Batch], FloatArray], batches: Iterable[Batch]) -> list[FloatArray]:
    return [counted(engine(batch), batch) for batch in batches]


def worst(left: Sequence[FloatArray], right: Sequence[FloatArray]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(left, right, strict=True))


@pytest.fixture(scope="module", params=EXPORTED, ids=str)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    family: Family = request.param
    model = build(family)
    path = tmp_path_factory.mktemp("family") / "fp32.onnx"
    return Exported(family, model, path, export_graph(model, path, opset=20))


@pytest.mark.thorough
def test_graph_says_what_pytorch_says(exported: Exported) -> None:
    batches = list(random_batches(exported.model, (1, 1), (3, 2), (8, 19), (1, 512)))
    # attention over 8×512 takes seconds of plain graphs: once is enough
    batches.append(list(random_batches(exported.model, (8, 512)))[-1])
    expected = outputs_of(torch_engine(exported.model), batches)
    assert worst(outputs_of(Session(exported.graph).run, batches), expected) <= 1e-4


@pytest.mark.thorough
def test_attention_is_fused_or_the_reason_is_given(exported: Exported) -> None:
    assert exported.info.fused_attentions == exported.family.attentions
    reason = None if exported.family.attentions else f"{exported.family} does not use transformers' attention interface"
    assert exported.info.obstacle == reason


@pytest.mark.thorough
def test_local_layers_get_their_window_and_others_the_padding_mask(exported: Exported) -> None:
    nodes = [node for node in onnx.load(exported.graph).graph.node if node.op_type == "MultiHeadAttention"]
    given = [tuple(bool(name) for name in [*node.input, ""][4:6]) for node in nodes]
    is_local = [exported.family.name == "ModernBert" and layer == 1 for layer in range(exported.family.attentions)]
    assert given == [(not local, local) for local in is_local], "(padding mask, bias) of each layer"


@pytest.mark.thorough
def test_int8_variants_answer_about_the_same(exported: Exported, tmp_path: Path) -> None:
    narrowed = tmp_path / "narrowed.onnx"
    write_narrowed(exported.graph, narrowed)
    batches = list(random_batches(exported.model, (1, 1), (3, 2), (8, 19)))
    expected = outputs_of(torch_engine(exported.model), batches)
    assert worst(outputs_of(Session(narrowed).run, batches), expected) <= 1e-4
    generator = np.random.default_rng(3)
    rows = [generator.integers(PAD_ID + 1, VOCABULARY, tokens) for tokens in (3, 12, 40)]
    windows = [Window(row, ids, np.zeros_like(ids), False) for row, ids in enumerate(rows)]
    ranges = calibrate(narrowed, quantizable_inputs(narrowed), windows, PAD_ID)
    for variant in (None, ranges):
        assert quantize(narrowed, tmp_path / "int8.onnx", variant) >= 4 * exported.info.layers
        outputs = np.concatenate(outputs_of(Session(tmp_path / "int8.onnx").run, batches))
        assert np.isfinite(outputs).all()
        errors = np.abs(outputs - np.concatenate(expected))
        assert errors.mean() < 0.25 * np.concatenate(expected).std(), "calibrated on three rows of a random model"


@pytest.mark.thorough
def test_fp16_answers_nearly_the_same(exported: Exported, tmp_path: Path) -> None:
    write_fp16(exported.graph, tmp_path / "fp16.onnx")
    batches = list(random_batches(exported.model, (1, 1), (8, 19)))
    # far positions are where fp16 angles and distances would be wrong
    batches.append(list(random_batches(exported.model, (1, 500)))[-1])
    expected = outputs_of(torch_engine(exported.model), batches)
    errors = worst(outputs_of(Session(tmp_path / "fp16.onnx").run, batches), expected)
    assert errors < 0.02 * np.concatenate(expected).std()


@pytest.mark.parametrize("family", FUSED, ids=str)
def test_what_the_operator_is_given_makes_the_models_answer(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(family)
    names = model_inputs(model)
    batches = list(random_batches(model, (1, 1), (8, 19)))
    engine = torch_engine(model)
    expected = outputs_of(engine, batches)
    unmasked = [batch | {"attention_mask": np.ones_like(batch["attention_mask"])} for batch in batches]
    seen = [counted(engine(other), batch) for other, batch in zip(unmasked, batches, strict=True)]
    assert worst(seen, expected) > 0.02, "a lost mask must show"
    assert obstacle_to_fusion(model, to_tensors(batches[-1], names)) is None
    calls: list[str] = []
    monkeypatch.setattr("torch.onnx.ops.symbolic", partial(operator_by_the_book, calls))
    with fused_attention(model):
        fused = outputs_of(engine, batches)
    assert worst(fused, expected) <= 1e-4
    assert len(calls) == family.attentions * len(batches)
    assert worst(outputs_of(engine, batches), expected) == 0, "the model is left as it was"


def operator_by_the_book(
    calls: list[str],
    operator: str,
    inputs: Sequence[torch.Tensor | None],
    attributes: dict[str, Any],
    *,
    shape: Sequence[int],
    **_: Any,
) -> torch.Tensor:
    """`com.microsoft::MultiHeadAttention` as ONNX Runtime's ContribOperators.md describes it."""
    calls.append(operator)
    query, key, value, _, padding, bias = [*inputs, None][:6]
    heads = [x.unflatten(-1, (attributes["num_heads"], -1)).transpose(1, 2) for x in (query, key, value)]
    scores = heads[0] @ heads[1].transpose(2, 3) * attributes["scale"]
    if padding is not None:
        assert padding.dtype == torch.int32
        scores = scores + (1 - padding[:, None, None, :]) * -10000.0
    if bias is not None:
        assert bias.shape == (len(query), 1, *scores.shape[2:]), "anything else is refused"
        scores = scores + bias
    attended = (scores.softmax(-1) @ heads[2]).transpose(1, 2).flatten(2)
    assert attended.shape == tuple(shape)
    return attended


@pytest.mark.parametrize("name", PLAIN)
def test_families_with_attention_of_their_own_say_so(name: str) -> None:
    family = Family(name, config={"embedding_size": 16})
    inputs = {"input_ids": torch.ones((2, 8), dtype=torch.int64)}
    assert obstacle_to_fusion(build(family), inputs) == f"{family} does not use transformers' attention interface"


def test_an_argument_that_the_operator_does_not_know_is_named() -> None:
    sinks = {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 8, "num_key_value_heads": 2}
    model = build(Family("OpenAIPrivacyFilter", "TokenClassification", sinks | {"eos_token_id": 2}))
    before = model.config._attn_implementation
    inputs = {name: torch.ones((2, 8), dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    obstacle = obstacle_to_fusion(model, inputs)
    assert obstacle == f"{type(model).__name__}: its attention takes s_aux, which the fused operator does not know"
    assert model.config._attn_implementation == before
