"""The export stage: checkpoint in, certified bundle out."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bundle.cpu import available_cpus, instruction_set
from bundle.manifest import CERTIFICATE_FILE, MANIFEST_FILE, VARIANTS_FILE
from export.calibration import choose_rows, rows_digest
from export.certificate import Certificate, Evidence, VariantReport
from export.embeddings import quantize_embeddings
from export.first_token import write_narrowed
from export.gates import bootstrap_interval, failed
from export.graph import GraphInfo, export_graph
from export.half_precision import write_fp16
from export.judge import Reference, judge, make_reference
from export.ladder import Attempt, Rehearsal, climb
from export.publication import (
    inputs_digest,
    is_current,
    publish_bundle,
    publish_variants,
    tool_versions,
    variants_directory,
    workplace,
)
from export.quantization import quantize
from export.selection import Candidate, choose_settings
from finetune.checkpoint import Checkpoint, load_checkpoint
from finetune.data import LabelledData, load_data
from finetune.recipe import ExportSection, Recipe
from tasks import Task, Window, load_task
from tasks.directory import check_replaceable
from tasks.errors import GateError

__all__ = ["ExportResult", "export_bundle"]

Report = Callable[[str], None]

_INT8_TABLES = "-embeddings"
"""Ends the name of a variant's twin with int8 embeddings."""


@dataclass(frozen=True, slots=True)
class ExportResult:
    """Where the bundle is, its certificate, and whether an earlier run had made it from the same inputs."""

    bundle: Path
    certificate: dict[str, Any]
    reused: bool


def export_bundle(
    location: str | Path,
    output: Path,
    *,
    recipe: Recipe,
    allow_pickle: bool = False,
    force: bool = False,
    report: Report = lambda _: None,
) -> ExportResult:
    """Exports, quantizes, judges and publishes.

    Args:
        location: a checkpoint directory, a foreign Hugging Face directory, or a hub id.
        output: the bundle's directory; all candidates go into `variants` beside it.
        recipe: where the data and the limits stand; a checkpoint's own is `finetune.recipe.recipe_of_run`.
        allow_pickle: whether pickled weights may be read where there are no others.
        force: export again even when a whole bundle of the same inputs is there.
        report: told of each step in a line.

    Raises:
        CheckpointError: if the checkpoint cannot be used.
        RecipeError: if the recipe is for another task, or names too few or too many labels.
        DataError: if the data cannot be read or does not fit the labels.
        GateError: if no variant passes; nothing is published then.
        ParitybitError: if `output` or `variants` beside it is somebody else's directory, another export is at work on
            it, or the disk is full.
    """
    # before hours of work, not after them
    check_replaceable(output, MANIFEST_FILE)
    check_replaceable(variants_directory(output), VARIANTS_FILE)
    checkpoint = load_checkpoint(location, recipe=recipe, allow_pickle=allow_pickle, report=report)
    data = load_data(recipe, spec=checkpoint.spec)
    digest = inputs_digest(checkpoint, recipe, data)
    with workplace(output) as work:
        if not force and is_current(output, digest):
            return ExportResult(output, json.loads((output / CERTIFICATE_FILE).read_bytes()), reused=True)
        certificate = _export(checkpoint, recipe, data, digest, work, output, report)
    return ExportResult(output, certificate.to_json(), reused=False)


def _export(
    checkpoint: Checkpoint,
    recipe: Recipe,
    data: LabelledData,
    digest: str,
    work: Path,
    output: Path,
    report: Report,
) -> Certificate:
    task = load_task(checkpoint.spec)
    report("PyTorch answers the test rows")
    encoded = task.encode(checkpoint.tokenizer, data.test.inputs)
    reference = make_reference(checkpoint, task, encoded, data.test.golds, recipe.seed, _bar("PyTorch"))
    report("exporting the graph")
    graph = export_graph(checkpoint.model, work / "fp32.onnx", recipe.export.opset)
    if graph.obstacle:
        report(f"attention is not fused: {graph.obstacle}")
    training = task.encode(checkpoint.tokenizer, data.train.inputs).windows
    rows = choose_rows([len(window) for window in training], recipe.export.calibration_rows, recipe.seed)
    calibration = [training[row] for row in rows]
    rehearsal = _rehearsal(checkpoint, task, data, recipe)
    graphs, attempts = _make_variants(work, recipe.export, calibration, rehearsal, report)
    report("timing the candidates, interleaved")
    candidates, speeds = choose_settings(graphs, reference, checkpoint, recipe.export.objective)
    reports = _judge_all(candidates, reference, recipe, report)
    published, reason = _choose(reports, recipe.export)
    evidence = Evidence(
        test_rows=len(reference.encoded),
        data_fingerprint=data.fingerprint,
        edge_case_rows=sum(len(batch["input_ids"]) for batch in reference.edge_batches),
        batch_invariance_rows=len(reference.invariance_windows()),
        calibration_rows=len(calibration),
        calibration_digest=rows_digest(calibration),
        seed=recipe.seed,
    )
    certificate = _certificate(
        checkpoint, recipe, reference, graph, evidence, reports, attempts, (published, reason), speeds
    )
    by_name = {candidate.name: candidate for candidate in candidates}
    publish_variants(variants_directory(output), candidates, certificate)
    publish_bundle(output, checkpoint, recipe, reference, certificate, by_name[published.name], digest)
    return certificate


def _rehearsal(checkpoint: Checkpoint, task: Task, data: LabelledData, recipe: Recipe) -> Rehearsal:
    validation, limits = data.validation, recipe.export
    lengths = checkpoint.tokenizer.lengths([task.texts(one) for one in validation.inputs])
    rows = choose_rows(lengths.tolist(), limits.rehearsal_rows, recipe.seed)
    return Rehearsal(
        task=task,
        encoded=task.encode(checkpoint.tokenizer, [validation.inputs[row] for row in rows]),
        golds=[validation.golds[row] for row in rows],
        pad_id=checkpoint.pad_token_id,
        min_agreement=task.min_agreement if limits.min_agreement is None else limits.min_agreement,
        max_loss=limits.max_metric_loss,
    )


def _make_variants(
    work: Path, settings: ExportSection, calibration: Sequence[Window], rehearsal: Rehearsal, report: Report
) -> tuple[dict[str, Path], list[Attempt]]:
    graphs = {"fp32": work / "fp32.onnx"}
    attempts: list[Attempt] = []
    narrowed = work / "narrowed.onnx"
    write_narrowed(graphs["fp32"], narrowed)
    if "int8-dynamic" in settings.variants:
        graphs["int8-dynamic"] = work / "int8-dynamic.onnx"
        quantize(narrowed, graphs["int8-dynamic"])
    if "int8-static" in settings.variants:
        report(f"static int8, on {len(rehearsal.encoded)} validation rows:")
        graphs["int8-static"] = work / "int8-static.onnx"
        attempts = climb(narrowed, graphs["int8-static"], calibration, rehearsal, report)
    if settings.int8_embeddings:
        for name in _int8(graphs):
            quantize_embeddings(graphs[name], graphs[name])
    elif settings.objective == "size":
        for name in _int8(graphs):
            path = work / f"{name}{_INT8_TABLES}.onnx"
            if quantize_embeddings(graphs[name], path):
                graphs[path.stem] = path
    if "fp16" in settings.variants:
        graphs["fp16"] = work / "fp16.onnx"
        # not the narrowed graph: products of one row round otherwise than those of many
        write_fp16(graphs["fp32"], graphs["fp16"])
    return graphs, attempts


def _int8(graphs: Mapping[str, Path]) -> list[str]:
    return [name for name in graphs if name.startswith("int8")]


def _judge_all(
    candidates: Sequence[Candidate], reference: Reference, recipe: Recipe, report: Report
) -> list[VariantReport]:
    """Every candidate's report, fastest first.

    Raises:
        GateError: if fp32 itself is not PyTorch's equal; nothing made from it can be trusted then.
    """
    reports = []
    for one in candidates:
        report(f"judging {one.name}")
        reports.append(judge(one.name, one.model, one.settings, reference, recipe.export, one.relative_time))
    fp32 = next(one for one in reports if one.name == "fp32")
    if not fp32.passed:
        raise GateError(_refusal([fp32]))
    return reports


def _choose(reports: Sequence[VariantReport], settings: ExportSection) -> tuple[VariantReport, str]:
    candidates = [one for one in reports if one.name.removesuffix(_INT8_TABLES) in settings.variants]
    passing = [one for one in candidates if one.passed]
    if not passing:
        raise GateError(_refusal(candidates))
    if settings.objective == "size":
        passing.sort(key=lambda one: one.size)
        best, behind = "smallest", [f"has {one.size / passing[0].size:.2f} of its bytes" for one in passing]
    else:
        best = "fastest"
        behind = [f"takes {one.relative_time / passing[0].relative_time:.2f} of its time" for one in passing]
    others = [f"{one.name} failed {'; '.join(map(str, failed(one.gates)))}" for one in candidates if not one.passed] + [
        f"{one.name} {how}" for one, how in zip(passing[1:], behind[1:], strict=True)
    ]
    return passing[0], "; ".join([f"the {best} that passes every gate", *others])


def _refusal(reports: Sequence[VariantReport]) -> str:
    lines = ["no variant passed its gates; no bundle was published"]
    for one in reports:
        lines += [f"  {one.name}: {gate}" for gate in failed(one.gates)]
        lines += [
            f"    test row {row.row}: {row.text!r}: PyTorch says {row.pytorch}, {one.name} says {row.variant}, "
            f"|Δlogit| {row.delta:.3g}"
            for row in one.worst_rows[:3]
        ]
    return "\n".join(lines)


def _certificate(
    checkpoint: Checkpoint,
    recipe: Recipe,
    reference: Reference,
    graph: GraphInfo,
    evidence: Evidence,
    reports: Sequence[VariantReport],
    attempts: Sequence[Attempt],
    choice: tuple[VariantReport, str],
    speeds: dict[str, dict[str, float]],
) -> Certificate:
    task, encoded, golds = reference.task, reference.encoded, reference.golds
    statistics = task.statistics(reference.outputs, encoded, golds)
    return Certificate(
        name=recipe.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        checkpoint_digest=checkpoint.digest,
        evidence=evidence,
        primary_metric=task.primary_metric,
        pytorch=task.metrics(reference.outputs, encoded, golds),
        pytorch_metric=bootstrap_interval(lambda rows: task.score(statistics[rows]), len(encoded), recipe.seed),
        opset=graph.opset,
        fused_attentions=graph.fused_attentions,
        layers=graph.layers,
        variants=tuple(reports),
        attempts=tuple(attempts),
        published=choice[0].name,
        reason=choice[1],
        speeds=speeds,
        machine={"threads": available_cpus(), "instruction_set": list(instruction_set())},
        versions=tool_versions(),
        limits=recipe.export.model_dump(mode="json"),
        obstacle_to_fusion=graph.obstacle,
    )


def _bar(description: str) -> Callable[[Any], Any]:
    return lambda items: tqdm(items, desc=description, leave=False, disable=None)
