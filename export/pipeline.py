"""The export stage: checkpoint in, certified bundle out."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bundle.cpu import available_cpus, instruction_set
from bundle.manifest import CERTIFICATE_FILE, MANIFEST_FILE, VARIANTS_FILE
from export.calibration import choose_rows, rows_digest
from export.certificate import Certificate, Evidence, VariantReport
from export.embeddings import quantize_embeddings
from export.first_token import write_narrowed
from export.gates import bootstrap_interval, failed
from export.graph import GraphInfo, export_graph
from export.half_precision import write_fp16
from export.judge import Reference, make_reference
from export.jury import Jury, Verdict, refusal
from export.ladder import Attempt, Rehearsal, Retrain, climb
from export.progress import bar
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
from finetune.checkpoint import Checkpoint, load_checkpoint
from finetune.data import LabelledData, load_data
from finetune.quantization_aware import tune_for_int8
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
    reference = make_reference(checkpoint, task, encoded, data.test.golds, recipe.seed, bar("PyTorch"))
    report("exporting the graph")
    graph = export_graph(checkpoint.model, work / "fp32.onnx", recipe.export.opset)
    write_narrowed(work / "fp32.onnx", work / "fp32.onnx")
    if graph.obstacle:
        report(f"attention is not fused: {graph.obstacle}")
    jury = Jury(checkpoint, recipe, reference, report)
    jury.screen_fp32(work / "fp32.onnx")
    training = task.encode(checkpoint.tokenizer, data.train.inputs).windows
    rows = choose_rows([len(window) for window in training], recipe.export.calibration_rows, recipe.seed)
    calibration = [training[row] for row in rows]
    retrain = _retraining(checkpoint, training, recipe, report)
    verdict = _best_variants(
        work, recipe.export, calibration, _rehearsal(checkpoint, task, data, recipe), jury, retrain
    )
    published, reason = _choose(verdict.reports, recipe.export)
    evidence = Evidence(
        test_rows=len(reference.encoded),
        data_fingerprint=data.fingerprint,
        edge_case_rows=sum(len(batch["input_ids"]) for batch in reference.edge_batches),
        batch_invariance_rows=len(reference.invariance_windows()),
        calibration_rows=len(calibration),
        calibration_digest=rows_digest(calibration),
        seed=recipe.seed,
    )
    certificate = _certificate(checkpoint, recipe, reference, graph, evidence, verdict, (published, reason))
    by_name = {candidate.name: candidate for candidate in verdict.candidates}
    publish_variants(variants_directory(output), verdict.candidates, certificate)
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


def _retraining(checkpoint: Checkpoint, windows: Sequence[Window], recipe: Recipe, report: Report) -> Retrain | None:
    """The ladder's last rung, of a copy of the model; what it becomes is held against the model as it is."""
    settings = recipe.export

    def retrain(output: Path, weight_limit: int, by_token: bool) -> None:
        report(f"quantization-aware fine-tuning, {settings.quantization_aware_steps} steps")
        tuned = tune_for_int8(
            checkpoint.model,
            windows,
            pad_id=checkpoint.pad_token_id,
            weight_limit=weight_limit,
            by_token=by_token,
            steps=settings.quantization_aware_steps,
            seed=recipe.seed,
            progress=bar("quantization-aware"),
        )
        export_graph(tuned, output, settings.opset)
        write_narrowed(output, output)

    return retrain if settings.quantization_aware_steps else None


def _best_variants(
    work: Path,
    settings: ExportSection,
    calibration: Sequence[Window],
    rehearsal: Rehearsal,
    jury: Jury,
    retrain: Retrain | None,
) -> Verdict:
    """Makes all variants, and climbs on while no int8 graph passes."""
    fp32, static = work / "fp32.onnx", work / "int8-static.onnx"
    graphs = _without_static(work, settings, fp32)
    climbs: Iterable[list[Attempt]] = [[]]
    if "int8-static" in settings.variants:
        jury.report(f"static int8, on {len(rehearsal.encoded)} validation rows:")
        minutes = settings.search_minutes
        climbs = climb(fp32, static, calibration, rehearsal, jury.report, retrain, minutes)
    verdict = None
    for attempts in climbs:
        if attempts:
            graphs |= _with_tables(static, settings)
        int8 = {name: path for name, path in graphs.items() if name.startswith("int8")}
        verdict = jury.judge(graphs) if any(map(jury.passes, int8, int8.values())) else None
        if verdict and any(one.passed for one in verdict.reports if one.name in int8):
            break
    return replace(verdict or jury.judge(graphs), attempts=tuple(attempts))


def _without_static(work: Path, settings: ExportSection, fp32: Path) -> dict[str, Path]:
    graphs = {"fp32": fp32}
    if "int8-dynamic" in settings.variants:
        quantize(fp32, work / "int8-dynamic.onnx")
        graphs |= _with_tables(work / "int8-dynamic.onnx", settings)
    if "fp16" in settings.variants:
        graphs["fp16"] = work / "fp16.onnx"
        write_fp16(fp32, graphs["fp16"])
    return graphs


def _with_tables(graph: Path, settings: ExportSection) -> dict[str, Path]:
    """An int8 graph by its name, and where the objective is size its twin with int8 embeddings."""
    graphs = {graph.stem: graph}
    if settings.int8_embeddings:
        quantize_embeddings(graph, graph)
    elif settings.objective == "size":
        twin = graph.with_stem(f"{graph.stem}{_INT8_TABLES}")
        if quantize_embeddings(graph, twin):
            graphs[twin.stem] = twin
    return graphs


def _choose(reports: Sequence[VariantReport], settings: ExportSection) -> tuple[VariantReport, str]:
    candidates = [one for one in reports if one.name.removesuffix(_INT8_TABLES) in settings.variants]
    passing = [(one, one.relative_time) for one in candidates if one.passed and one.relative_time is not None]
    if not passing:
        raise GateError(refusal(candidates))
    if settings.objective == "size":
        passing.sort(key=lambda one: one[0].size)
    chosen, shortest = passing[0]
    if settings.objective == "size":
        best, behind = "smallest", [f"has {one.size / chosen.size:.2f} of its bytes" for one, _ in passing]
    else:
        best, behind = "fastest", [f"takes {time / shortest:.2f} of its time" for _, time in passing]
    others = [f"{one.name} failed {'; '.join(map(str, failed(one.gates)))}" for one in candidates if not one.passed] + [
        f"{one.name} {how}" for (one, _), how in zip(passing[1:], behind[1:], strict=True)
    ]
    return chosen, "; ".join([f"the {best} that passes every gate", *others])


def _certificate(
    checkpoint: Checkpoint,
    recipe: Recipe,
    reference: Reference,
    graph: GraphInfo,
    evidence: Evidence,
    verdict: Verdict,
    choice: tuple[VariantReport, str],
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
        variants=verdict.reports,
        attempts=verdict.attempts,
        published=choice[0].name,
        reason=choice[1],
        speeds=verdict.speeds,
        machine={"threads": available_cpus(), "instruction_set": list(instruction_set())},
        versions=tool_versions(),
        limits=recipe.export.model_dump(mode="json"),
        obstacle_to_fusion=graph.obstacle,
    )
