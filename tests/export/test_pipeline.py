import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import export.jury
import export.pipeline
from bundle import Predictor, read_manifest
from bundle.manifest import SessionSettings, verify_files
from export.certificate import VariantReport
from export.embeddings import quantize_embeddings
from export.gates import at_most
from export.graph import GraphInfo, export_graph
from export.judge import judge
from export.pipeline import ExportResult, export_bundle
from export.publication import inputs_digest, is_current
from finetune.checkpoint import Checkpoint, load_checkpoint
from finetune.data import load_data
from finetune.recipe import Recipe, recipe_of_run
from tasks.errors import GateError, ParitybitError
from tests.toy import LENIENT

pytestmark = pytest.mark.usefixtures("quick_export")


@pytest.fixture(scope="module")
def recipe(tiny_checkpoint: Path) -> Recipe:
    return recipe_of_run(tiny_checkpoint, LENIENT)


@pytest.fixture(scope="module")
def exported(tiny_export: Path) -> ExportResult:
    return ExportResult(tiny_export, json.loads((tiny_export / "certificate.json").read_text()), reused=False)


def quick(tiny_checkpoint: Path, *overrides: str) -> Recipe:
    return recipe_of_run(tiny_checkpoint, (*LENIENT, *overrides))


def test_bundle_is_whole_and_answers_like_pytorch(exported: ExportResult, checkpoint: Checkpoint) -> None:
    manifest = read_manifest(exported.bundle)
    verify_files(exported.bundle, manifest)
    names = {"model.onnx", "tokenizer.json", "config.json", "certificate.json", "certificate.html", "golden.jsonl"}
    assert names | {"README.md"} == set(manifest.files)
    assert manifest.task == checkpoint.spec
    assert manifest.checkpoint_digest == checkpoint.digest
    predictor = Predictor.load(exported.bundle)
    report = predictor.replay_golden()
    assert report.passed
    assert report.max_delta == 0
    assert len(predictor(["where is my card", "卡 😀"], top_k=2)) == 2


def test_published_variant_does_not_depend_on_company(exported: ExportResult) -> None:
    verdicts = {one["name"]: one["verdict"] for one in exported.certificate["variants"]}
    assert verdicts["fp32"] == "pass"
    assert exported.certificate["published"] in {name for name, verdict in verdicts.items() if verdict == "pass"}
    published = next(
        one for one in exported.certificate["variants"] if one["name"] == exported.certificate["published"]
    )
    assert published["max_batch_delta"] <= 1e-6


def test_certificate_tells_the_evidence(exported: ExportResult, recipe: Recipe) -> None:
    certificate = json.loads((exported.bundle / "certificate.json").read_text())
    assert certificate["verdict"] == "pass"
    assert certificate["evidence"]["test_rows"] == len(Path(recipe.data.test).read_text().splitlines())
    fp32 = next(one for one in certificate["variants"] if one["name"] == "fp32")
    assert {gate["name"] for gate in fp32["gates"]} == {
        "max_logit_delta on the test rows",
        "max_logit_delta on the edge cases",
        "agreement",
        "max_batch_delta",
    }
    assert fp32["agreement"] == 1.0
    page = (exported.bundle / "certificate.html").read_text()
    assert "https://" not in page
    assert "http://" not in page
    assert certificate["evidence"]["calibration_digest"] in page


def test_candidates_are_kept_for_the_benchmarks(exported: ExportResult) -> None:
    variants = exported.bundle.parent / "variants"
    entries = json.loads((variants / "variants.json").read_text())
    assert set(entries) == {"fp32", "int8-dynamic", "int8-static"}
    assert all((variants / entry["file"]).is_file() for entry in entries.values())
    assert (variants / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert not any(entry["needs_exact_int8"] for entry in entries.values())


def test_second_export_of_the_same_reuses_and_a_changed_limit_does_not(
    exported: ExportResult, tiny_checkpoint: Path, recipe: Recipe
) -> None:
    created = read_manifest(exported.bundle).created
    again = export_bundle(tiny_checkpoint, exported.bundle, recipe=recipe)
    assert again.reused
    assert read_manifest(exported.bundle).created == created
    fewer = quick(tiny_checkpoint, "export.golden_rows=2")
    checkpoint = load_checkpoint(tiny_checkpoint)
    data = load_data(recipe, spec=checkpoint.spec)
    assert is_current(exported.bundle, inputs_digest(checkpoint, recipe, data))
    assert not is_current(exported.bundle, inputs_digest(checkpoint, fewer, data))


def test_damaged_bundle_is_made_again(exported: ExportResult, tmp_path: Path) -> None:
    bundle = shutil.copytree(exported.bundle.parent, tmp_path / "copy") / "bundle"
    digest = read_manifest(bundle).inputs_digest
    assert is_current(bundle, digest)
    with (bundle / "model.onnx").open("r+b") as file:
        file.seek(100)
        file.write(b"\0\1\2\3")
    assert not is_current(bundle, digest)


def test_wrong_graph_fails_its_gate_by_name_with_rows_and_nothing_is_published(
    exported: ExportResult, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exporter is made to write another model's head: a real defect of a real graph."""

    def export_another(model: object, path: Path, opset: int) -> GraphInfo:
        import copy

        import torch

        other = copy.deepcopy(model)
        with torch.no_grad():
            other.classifier.weight.mul_(-1)  # type: ignore[attr-defined]
        return export_graph(other, path, opset)  # type: ignore[arg-type]

    bundle = shutil.copytree(exported.bundle.parent, tmp_path / "copy") / "bundle"
    recipe = quick(tiny_checkpoint, 'export.variants=["fp32"]')
    before = (bundle / "manifest.json").read_bytes()
    monkeypatch.setattr(export.pipeline, "export_graph", export_another)
    with pytest.raises(GateError) as error:
        export_bundle(tiny_checkpoint, bundle, recipe=recipe)
    message = str(error.value)
    assert "max_logit_delta on the test rows" in message
    assert "test row" in message
    assert "no bundle was published" in message
    assert (bundle / "manifest.json").read_bytes() == before, "the bundle of before is still there"
    assert sorted(path.name for path in bundle.parent.iterdir()) == ["bundle", "variants"]


def test_int8_beyond_its_limits_is_not_published_and_fp32_ships_with_the_reason(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    recipe = quick(tiny_checkpoint, 'export.variants=["fp32", "int8-dynamic"]')
    result = export_bundle(tiny_checkpoint, tmp_path / "bundle", recipe=recipe)
    assert result.certificate["published"] == "fp32"
    assert "int8-dynamic failed max_batch_delta" in result.certificate["reason"]
    assert read_manifest(result.bundle).default_variant == "fp32"
    dynamic = next(one for one in result.certificate["variants"] if one["name"] == "int8-dynamic")
    assert dynamic["relative_time"] is None, "what failed on the first rows is not measured further"
    assert not any(graph.startswith("int8-dynamic") for graph in result.certificate["speeds"])
    assert (tmp_path / "variants" / "int8-dynamic.onnx").is_file()


def test_int8_that_fails_on_the_test_rows_is_replaced_by_the_next_of_the_ladder(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limits that the test rows are held to are made impossible for the first two graphs that come to them."""
    came: list[str] = []

    def unlucky(name: str, model: Path, settings: SessionSettings, *others: Any) -> VariantReport:
        report = judge(name, model, settings, *others)
        if name != "int8-static":
            return report
        came.extend({report.sha256}.difference(came))
        return replace(report, gates=(at_most("luck", 2.0, 1.0),)) if report.sha256 in came[:2] else report

    monkeypatch.setattr(export.jury, "judge", unlucky)
    result = export_bundle(tiny_checkpoint, tmp_path / "bundle", recipe=quick(tiny_checkpoint))
    attempts = result.certificate["attempts"]
    refused = [one["how"] for one in attempts if one["refused"]]
    (chosen,) = [one["how"] for one in attempts if one["chosen"]]
    assert len(came) == 3
    assert len(refused) == 2
    assert chosen not in refused
    static = next(one for one in result.certificate["variants"] if one["name"] == "int8-static")
    assert (static["sha256"], static["verdict"]) == (came[2], "pass")
    page = (result.bundle / "certificate.html").read_text()
    assert all(f"{how} (failed on the test rows)" in page for how in refused)


@pytest.mark.parametrize("steps", [0, 20])
def test_weights_are_trained_for_int8_where_nothing_else_passes(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """Every graph of the weights as they are fails on the test rows."""
    lines: list[str] = []
    trained = f"quantization-aware fine-tuning, {steps} steps"

    def strict(name: str, *others: Any) -> VariantReport:
        report = judge(name, *others)
        lucky = name != "int8-static" or trained in lines
        return report if lucky else replace(report, gates=(at_most("luck", 2.0, 1.0),))

    monkeypatch.setattr(export.jury, "judge", strict)
    recipe = quick(tiny_checkpoint, f"export.quantization_aware_steps={steps}")
    result = export_bundle(tiny_checkpoint, tmp_path / "bundle", recipe=recipe, report=lines.append)
    static = next(one for one in result.certificate["variants"] if one["name"] == "int8-static")
    (chosen,) = [one["how"] for one in result.certificate["attempts"] if one["chosen"]]
    assert (trained in lines) == chosen.startswith("quantization-aware") == (static["verdict"] == "pass") == bool(steps)
    assert result.certificate["published"] in ("fp32", "int8-static")[: 1 + bool(steps)]


def test_a_wanted_variant_that_fails_is_an_error(tiny_checkpoint: Path, tmp_path: Path) -> None:
    recipe = quick(tiny_checkpoint, 'export.variants=["int8-dynamic"]')
    with pytest.raises(GateError, match="int8-dynamic: max_batch_delta"):
        export_bundle(tiny_checkpoint, tmp_path / "bundle", recipe=recipe)
    assert list(tmp_path.iterdir()) == []


def test_somebody_elses_folder_is_not_replaced(tiny_checkpoint: Path, tmp_path: Path) -> None:
    recipe = quick(tiny_checkpoint, 'export.variants=["fp32"]')
    for name, marker in (("bundle", "manifest"), ("variants", "variants")):
        folder = tmp_path / name / name
        folder.mkdir(parents=True)
        (folder / "thesis.tex").write_text("years of work")
        with pytest.raises(ParitybitError, match=rf"holds no {marker}\.json"):
            export_bundle(tiny_checkpoint, folder.parent / "bundle", recipe=recipe)
        assert (folder / "thesis.tex").read_text() == "years of work"
        assert [path.name for path in folder.parent.iterdir()] == [name]


def test_golden_rows_are_certified_outputs(exported: ExportResult) -> None:
    from bundle.golden import read_golden

    predictor = Predictor.load(exported.bundle)
    golden = read_golden(exported.bundle / "golden.jsonl", predictor.task.input_types)
    outputs = predictor.outputs(predictor.task.encode(predictor.tokenizer, [row.input for row in golden]).windows)
    assert all(np.array_equal(row.outputs[0], output) for row, output in zip(golden, outputs, strict=True))


@pytest.mark.real
def test_int8_embeddings_make_the_bundle_smaller_where_asked_for(
    tiny_checkpoint: Path, exported: ExportResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export.pipeline, "quantize_embeddings", partial(quantize_embeddings, min_rows=10))
    recipe = quick(tiny_checkpoint, "export.int8_embeddings=true", 'export.variants=["int8-static"]')
    result = export_bundle(tiny_checkpoint, tmp_path / "bundle", recipe=recipe)
    assert {one["name"] for one in result.certificate["variants"]} == {"fp32", "int8-static"}
    smaller = result.bundle
    plain = exported.bundle.parent / "variants" / "int8-static.onnx"
    assert (smaller / "model.onnx").stat().st_size < plain.stat().st_size
    assert Predictor.load(smaller).replay_golden().passed


@pytest.mark.real
def test_smallest_that_passes_is_published_where_size_is_the_objective(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export.pipeline, "quantize_embeddings", partial(quantize_embeddings, min_rows=10))
    recipe = quick(tiny_checkpoint, "export.objective=size", 'export.variants=["fp32", "int8-static"]')
    result = export_bundle(tiny_checkpoint, tmp_path / "bundle", recipe=recipe)
    sizes = {one["name"]: one["size"] for one in result.certificate["variants"] if one["verdict"] == "pass"}
    assert sizes.keys() == {"fp32", "int8-static", "int8-static-embeddings"}
    assert min(sizes, key=lambda name: sizes[name]) == result.certificate["published"] == "int8-static-embeddings"
    ratio = sizes["int8-static"] / sizes["int8-static-embeddings"]
    assert result.certificate["reason"].startswith("the smallest that passes every gate")
    assert f"int8-static has {ratio:.2f} of its bytes" in result.certificate["reason"]
    assert Predictor.load(result.bundle).replay_golden().passed


@pytest.mark.real
def test_fp16_is_published_where_it_alone_is_asked_for(tiny_checkpoint: Path, tmp_path: Path) -> None:
    recipe = quick(tiny_checkpoint, 'export.variants=["fp16"]')
    result = export_bundle(tiny_checkpoint, tmp_path / "bundle", recipe=recipe)
    assert read_manifest(result.bundle).default_variant == result.certificate["published"] == "fp16"
    sizes = {one["name"]: one["size"] for one in result.certificate["variants"]}
    assert sizes["fp16"] < 0.8 * sizes["fp32"]
    assert Predictor.load(result.bundle).replay_golden().passed


@pytest.mark.real
def test_what_keeps_attention_from_being_fused_reaches_the_certificate(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = export.pipeline.export_graph
    monkeypatch.setattr(
        export.pipeline, "export_graph", lambda *given: replace(made(*given), obstacle="the operator is on strike")
    )
    recipe = quick(tiny_checkpoint, 'export.variants=["fp32"]')
    result = export_bundle(tiny_checkpoint, tmp_path / "bundle", recipe=recipe)
    assert result.certificate["obstacle_to_fusion"] == "the operator is on strike"
    assert "the operator is on strike" in (result.bundle / "certificate.html").read_text()
