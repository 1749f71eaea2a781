import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundle import read_manifest
from bundle.manifest import verify_files
from tasks.errors import BundleError


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


def edit(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads((bundle / "manifest.json").read_text())
    change(content)
    (bundle / "manifest.json").write_text(json.dumps(content))


def test_whole_bundle_is_accepted(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    verify_files(bundle, manifest)
    assert manifest.variant.file == "model.onnx"


def test_no_manifest_no_bundle(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "absent"):
        with pytest.raises(BundleError, match=r"not a bundle \(manifest.json is missing\)"):
            read_manifest(place)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(schema_version=2), "schema_version 2; this version reads 1"),
        (lambda m: m.update(verdict="fail"), "verdict is 'fail'"),
        (lambda m: m["variants"]["fp32"].update(verdict="fail"), "not 'pass'; it is not served"),
        (lambda m: m.update(default_variant="int4"), "default_variant 'int4' is not among the variants"),
        (lambda m: m.pop("pad_token_id"), "pad_token_id: Field required"),
        (lambda m: m.update(surprise=1), "surprise: Extra inputs"),
        (lambda m: m["files"].pop("tokenizer.json"), r"files does not list tokenizer\.json"),
        (lambda m: m["files"].update({"../outside": m["files"]["model.onnx"]}), "points out of the bundle"),
        (lambda m: m["files"]["model.onnx"].update(sha256="12"), r"files\.model\.onnx\.sha256"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(
    bundle: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    edit(bundle, change)
    with pytest.raises(BundleError, match=message):
        read_manifest(bundle)


def test_manifest_that_is_not_json(bundle: Path) -> None:
    (bundle / "manifest.json").write_text('{"schema_version": 1, ')
    with pytest.raises(BundleError, match=r"manifest\.json: content: Invalid JSON"):
        read_manifest(bundle)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "golden.jsonl", "certificate.json"])
def test_one_flipped_byte_is_found_and_named(bundle: Path, name: str) -> None:
    manifest = read_manifest(bundle)
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{name}: changed: its SHA-256"):
        verify_files(bundle, manifest)


def test_missing_and_cut_files_are_named(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    (bundle / "tokenizer.json").write_bytes((bundle / "tokenizer.json").read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"tokenizer\.json: changed: \d+ bytes, expected \d+"):
        verify_files(bundle, manifest)
    (bundle / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match=r"tokenizer\.json: missing"):
        verify_files(bundle, manifest)
