"""A bundle held again to its limits: on new rows, and against the checkpoint that it was made from."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from bundle import Predictor, read_manifest
from export.recertify import recertify, to_table
from tasks.errors import BundleError, CheckpointError, DataError
from tasks.inputs import TextInput
from tests.bundles import LABELS, seal, write_bundle
from tests.toy import toy_rows, write_jsonl


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    texts = [row["text"] for row in toy_rows(40, 5)]
    return write_jsonl(
        tmp_path / "rows.jsonl",
        [{"text": text, "label": LABELS[index % len(LABELS)]} for index, text in enumerate(texts)],
    )


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    directory = tmp_path / "bundle"
    directory.mkdir()
    write_bundle(directory)
    # its products of floats round by the size of the batch
    return with_limits(directory, {"max_batch_delta": 1e-4})


def with_limits(bundle: Path, limits: dict[str, Any]) -> Path:
    (bundle / "certificate.json").write_text(json.dumps({"verdict": "pass", "limits": limits}))
    seal(bundle, read_manifest(bundle))
    return bundle


def made_to_listen_to_its_neighbours(bundle: Path) -> Path:
    """Every logit gets a hundredth of the batch's mean: what dynamic quantization does, made plain."""
    model = onnx.load(bundle / "model.onnx")
    nodes = model.graph.node
    nodes[-1].output[0] = "own"
    nodes.append(helper.make_node("ReduceMean", ["own"], ["mean_of_all"], axes=[0], keepdims=1))
    nodes.append(helper.make_node("Mul", ["mean_of_all", "hundredth"], ["of_others"]))
    nodes.append(helper.make_node("Add", ["own", "of_others"], ["logits"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([0.01], dtype=np.float32), "hundredth"))
    onnx.save(model, bundle / "model.onnx")
    seal(bundle, read_manifest(bundle))
    return bundle


def accuracy(predictor: Predictor, rows: Path) -> float:
    entries = [json.loads(line) for line in rows.read_text().splitlines()]
    answers = predictor([TextInput(entry["text"]) for entry in entries], top_k=1)
    right = [answer["labels"][0]["label"] == row["label"] for answer, row in zip(answers, entries, strict=True)]
    return sum(right) / len(right)


def test_metric_is_that_of_the_answers(bundle: Path, rows: Path) -> None:
    predictor = Predictor.load(bundle)
    result = recertify(predictor, rows)
    assert result.rows == 40
    assert result.metrics["accuracy"] == result.metric.value == pytest.approx(accuracy(predictor, rows))
    assert result.metric.low < result.metric.value < result.metric.high
    assert (result.failed, result.pytorch, result.parity) == ([], None, None)
    assert [gate.name for gate in result.gates] == ["max_batch_delta"]
    assert result.to_json()["verdict"] == "pass"


def test_a_graph_that_listens_to_its_neighbours_fails(bundle: Path, rows: Path) -> None:
    result = recertify(Predictor.load(made_to_listen_to_its_neighbours(bundle)), rows)
    assert [gate.name for gate in result.failed] == ["max_batch_delta"]
    assert result.failed[0].value > 1e-3
    assert result.to_json()["verdict"] == "fail"
    assert "FAIL" in to_table(result)


def test_limits_are_those_of_the_certificate(bundle: Path, rows: Path) -> None:
    generous = with_limits(made_to_listen_to_its_neighbours(bundle), {"max_batch_delta": 100.0})
    result = recertify(Predictor.load(generous), rows)
    assert (result.gates[0].limit, result.failed) == (100.0, [])


def test_limits_of_another_version_are_named(bundle: Path, rows: Path) -> None:
    with pytest.raises(BundleError, match=r"certificate\.json: limits\.max_sadness: Extra inputs are not permitted"):
        recertify(Predictor.load(with_limits(bundle, {"max_sadness": 1})), rows)


def test_columns_may_have_other_names(bundle: Path, rows: Path) -> None:
    entries = [json.loads(line) for line in rows.read_text().splitlines()]
    other = write_jsonl(rows.with_name("other.jsonl"), [{"q": one["text"], "intent": one["label"]} for one in entries])
    predictor = Predictor.load(bundle)
    named = recertify(predictor, other, columns={"text": "q", "label": "intent"})
    assert named == recertify(predictor, rows)
    with pytest.raises(DataError, match="no column 'text', 'label'; found 'q', 'intent'"):
        recertify(predictor, other)


def test_another_format_may_be_named(bundle: Path, rows: Path) -> None:
    entries = [json.loads(line) for line in rows.read_text().splitlines()]
    table = rows.with_name("rows.txt")
    table.write_text("text\tlabel\n" + "".join(f"{one['text']}\t{one['label']}\n" for one in entries))
    predictor = Predictor.load(bundle)
    assert recertify(predictor, table, file_format="tsv") == recertify(predictor, rows)


@pytest.mark.parametrize(
    ("lines", "columns", "message"),
    [
        ([{"text": "a", "label": "sadness"}], {}, r"rows\.jsonl:1: unknown label 'sadness'$"),
        ([{"text": "", "label": LABELS[0]}] * 3, {}, r"rows\.jsonl:1: .*text.* \(and 2 more bad rows\)$"),
        ([{"text": "a", "label": LABELS[0]}], {"question": "text"}, "columns question=text: expected one of its own"),
        ([{"text": "a", "label": LABELS[0]}], {"text": "label"}, "columns text=label: expected one of its own"),
    ],
)
def test_what_is_wrong_with_the_rows_is_one_line(
    bundle: Path, tmp_path: Path, lines: Sequence[object], columns: dict[str, str], message: str
) -> None:
    with pytest.raises(DataError, match=message) as error:
        recertify(Predictor.load(bundle), write_jsonl(tmp_path / "rows.jsonl", lines), columns=columns)
    assert "\n" not in str(error.value)


def test_table_shows_metrics_and_gates_in_columns(bundle: Path, rows: Path) -> None:
    result = recertify(Predictor.load(bundle), rows)
    lines = to_table(result).splitlines()
    assert [line.split()[0] for line in lines[1:]] == [*result.metrics, "calibration", "max_batch_delta"]
    assert f"95 % interval {result.metric.low:.4f} to {result.metric.high:.4f}" in lines[1]
    assert lines[-1].endswith("limit <= 0.0001: pass")
    assert (
        len({line.index(f"{value:.4f}") for line, value in zip(lines[1:], result.metrics.values(), strict=False)}) == 1
    )


@pytest.mark.real
def test_against_the_checkpoint_the_certificates_gates_hold(tiny_export: Path, tiny_checkpoint: Path) -> None:
    rows = tiny_checkpoint.parent / "data" / "test.jsonl"
    predictor = Predictor.load(tiny_export)
    result = recertify(predictor, rows, checkpoint=tiny_checkpoint)
    certificate = json.loads((tiny_export / "certificate.json").read_text())
    published = next(one for one in certificate["variants"] if one["name"] == certificate["published"])
    assert result.failed == []
    assert [gate.name for gate in result.gates] == [gate["name"] for gate in published["gates"]]
    assert result.metrics == pytest.approx(published["metrics"])
    assert result.pytorch == pytest.approx(certificate["pytorch"])
    assert result.parity is not None
    assert result.parity.agreement == published["agreement"]
    plain = result.to_json()
    assert plain["parity"]["delta_quantiles"] == pytest.approx(published["delta_quantiles"], abs=1e-5)
    assert plain["parity"].keys().isdisjoint({"gates", "metrics", "points", "relative_time"})


@pytest.mark.real
def test_a_graph_that_no_longer_says_what_pytorch_says_fails(
    tiny_export: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """The weights of the head change sign, and manifest and golden rows agree with it: only PyTorch can tell."""
    from bundle.golden import GoldenRow, read_golden, write_golden

    other = shutil.copytree(tiny_export, tmp_path / "bundle")
    model = onnx.load(other / "model.onnx")
    output = model.graph.output[0].name
    last = next(node for node in model.graph.node if output in node.output)
    last.output[0] = "right"
    model.graph.node.append(helper.make_node("Neg", ["right"], [output]))
    onnx.save(model, other / "model.onnx")
    seal(other, read_manifest(other))
    predictor = Predictor.load(other)
    golden = read_golden(other / "golden.jsonl", predictor.task.input_types)
    write_golden(
        other / "golden.jsonl", [GoldenRow(row.input, tuple(-output for output in row.outputs)) for row in golden]
    )
    seal(other, read_manifest(other))
    predictor = Predictor.load(other)
    assert predictor.replay_golden().passed
    rows = tiny_checkpoint.parent / "data" / "test.jsonl"
    result = recertify(predictor, rows, checkpoint=tiny_checkpoint)
    assert {gate.name.split()[0] for gate in result.failed} & {"min_agreement", "agreement"}
    assert recertify(predictor, rows).failed == [], "which nothing but the checkpoint shows"


@pytest.mark.real
def test_another_checkpoint_is_refused(bundle: Path, rows: Path, tiny_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=r"not the checkpoint that .* was made from"):
        recertify(Predictor.load(bundle), rows, checkpoint=tiny_checkpoint)
