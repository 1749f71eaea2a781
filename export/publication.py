"""Contract 2 written down: the bundle's directory, the candidates beside it, and whether both are still current."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from bundle.cpu import instruction_set
from bundle.golden import GoldenRow, write_golden
from bundle.manifest import (
    CERTIFICATE_FILE,
    GOLDEN_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    SCHEMA_VERSION,
    VARIANTS,
    VARIANTS_FILE,
    FileInfo,
    Manifest,
    Variant,
    read_manifest,
    verify_files,
)
from bundle.session import Session
from export.calibration import choose_rows
from export.card import write_card
from export.certificate import Certificate
from export.judge import Reference
from export.page import certificate_page
from export.pareto import draw_pareto
from export.parity import logits_of
from export.selection import Candidate
from finetune.checkpoint import Checkpoint
from finetune.data import LabelledData
from finetune.recipe import Recipe
from tasks.directory import publish_directory, remove_leftovers, scratch_directory, sha256_of
from tasks.errors import BundleError

__all__ = [
    "inputs_digest",
    "is_current",
    "publish_bundle",
    "publish_variants",
    "tool_versions",
    "variants_directory",
    "workplace",
]


def variants_directory(bundle: Path) -> Path:
    """Where every candidate's graph, verdict and settings are kept for the benchmarks: beside the bundle."""
    return bundle.parent / "variants"


@contextmanager
def workplace(output: Path) -> Iterator[Path]:
    """Yields an empty working folder beside a bundle, for the one export that may be at work on it.

    What exports into the same place have left that were killed is removed first.

    Raises:
        ParitybitError: if another export is at work on the same bundle, or the disk is full.
    """
    with scratch_directory(output, "graphs") as work:
        remove_leftovers(output)
        remove_leftovers(variants_directory(output))
        yield work


def publish_variants(target: Path, candidates: Sequence[Candidate], certificate: Certificate) -> None:
    """Writes every candidate's graph, a picture of them where it can be drawn, and `variants.json` last."""
    with publish_directory(target, VARIANTS_FILE) as draft:
        for one in candidates:
            shutil.copyfile(one.model, draft / one.model.name)
        draw_pareto(certificate, draft / "pareto.png")
        entries = {one.name: _variant(one, one.model.name, certificate) for one in candidates}
        (draft / VARIANTS_FILE).write_bytes(VARIANTS.dump_json(entries, indent=2))


def publish_bundle(
    output: Path,
    checkpoint: Checkpoint,
    recipe: Recipe,
    reference: Reference,
    certificate: Certificate,
    chosen: Candidate,
    digest: str,
) -> None:
    """Writes the bundle, `manifest.json` last, and gives it its name."""
    with publish_directory(output, MANIFEST_FILE) as draft:
        shutil.copyfile(chosen.model, draft / MODEL_FILE)
        (draft / "tokenizer.json").write_bytes(checkpoint.tokenizer_json)
        (draft / "config.json").write_bytes(checkpoint.config_json)
        session = Session(draft / MODEL_FILE, chosen.settings)
        write_golden(draft / GOLDEN_FILE, _golden_rows(session, reference, recipe.export.golden_rows))
        content = json.dumps(certificate.to_json(), indent=2, ensure_ascii=False) + "\n"
        (draft / CERTIFICATE_FILE).write_text(content, encoding="utf-8")
        (draft / "certificate.html").write_text(certificate_page(certificate), encoding="utf-8")
        write_card(draft, certificate, recipe, checkpoint.spec, reference.encoded.inputs[0])
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            name=recipe.name,
            task=checkpoint.spec,
            pad_token_id=checkpoint.pad_token_id,
            inputs=session.inputs,
            outputs=session.outputs,
            files={path.name: _file_info(path) for path in sorted(draft.iterdir())},
            default_variant=chosen.name,
            variants={chosen.name: _variant(chosen, MODEL_FILE, certificate)},
            golden_tolerance=recipe.export.max_logit_delta,
            checkpoint_digest=checkpoint.digest,
            inputs_digest=digest,
            opset=certificate.opset,
            versions=certificate.versions,
            instruction_set=instruction_set(),
            created=certificate.created,
            verdict="pass",
        )
        (draft / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")


def is_current(output: Path, digest: str) -> bool:
    """Whether a whole bundle of the same inputs is there, with its own candidates beside it."""
    try:
        manifest = read_manifest(output)
        verify_files(output, manifest)
    except BundleError:
        return False
    return manifest.inputs_digest == digest and _has_its_candidates(output)


def inputs_digest(checkpoint: Checkpoint, recipe: Recipe, data: LabelledData) -> str:
    """Everything that a bundle follows from: model, data, limits, tools, and the processor that chose the variant."""
    inputs = {
        "name": recipe.name,
        "checkpoint": checkpoint.digest,
        "export": recipe.export.model_dump(mode="json"),
        "seed": recipe.seed,
        "data": data.fingerprint,
        "versions": tool_versions(),
        "instruction_set": instruction_set(),
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def tool_versions() -> dict[str, str]:
    """Versions of what made the bundle."""
    return {name: version(name) for name in ("paritybit", "torch", "transformers", "onnx", "onnxruntime", "tokenizers")}


def _has_its_candidates(output: Path) -> bool:
    """Whether the candidates beside a bundle are, byte for byte, those that its certificate judged.

    They are published before the bundle, so an export that was killed in between leaves those of another run.
    """
    folder = variants_directory(output)
    try:
        judged = json.loads((output / CERTIFICATE_FILE).read_bytes())["variants"]
        expected = {one["name"]: (one["verdict"], one["disabled_optimizers"], one["sha256"]) for one in judged}
        found = {
            name: (one.verdict, list(one.session.disabled_optimizers), sha256_of(folder / one.file))
            for name, one in VARIANTS.validate_json((folder / VARIANTS_FILE).read_bytes()).items()
        }
    except (OSError, ValueError, KeyError):  # missing, damaged, or of an older version
        return False
    return found == expected


def _variant(candidate: Candidate, file: str, certificate: Certificate) -> Variant:
    report = next(one for one in certificate.variants if one.name == candidate.name)
    return Variant(
        file=file,
        verdict="pass" if report.passed else "fail",
        session=candidate.settings,
        needs_exact_int8=report.needs_exact_int8,
    )


def _golden_rows(session: Session, reference: Reference, count: int) -> list[GoldenRow]:
    """Test rows spread over the lengths, with the published variant's own outputs."""
    encoded = reference.encoded
    spans = encoded.spans()
    rows = choose_rows(encoded.lengths(), count, reference.seed)
    return [
        GoldenRow(encoded.inputs[row], tuple(logits_of(session.run, encoded.windows[spans[row]], reference.pad_id)))
        for row in rows
    ]


def _file_info(path: Path) -> FileInfo:
    return FileInfo(sha256=sha256_of(path), size=path.stat().st_size)
