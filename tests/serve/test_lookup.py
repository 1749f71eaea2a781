import json
from pathlib import Path

import pytest

from serve.lookup import find_bundle
from tasks.errors import BundleError


def manifest(root: Path, name: str, content: str) -> Path:
    bundle = root / "build" / name / "bundle"
    bundle.mkdir(parents=True)
    (bundle / "manifest.json").write_text(content)
    return bundle


def test_the_newest_of_all_folders_is_found(tmp_path: Path) -> None:
    manifest(tmp_path / "a", "old", json.dumps({"created": "2026-01-01T00:00:00+00:00"}))
    newest = manifest(tmp_path / "b", "new", json.dumps({"created": "2026-03-01T00:00:00+00:00"}))
    manifest(tmp_path / "b", "older", json.dumps({"created": "2026-02-01T00:00:00+00:00"}))
    assert find_bundle(None, [tmp_path / "a", tmp_path / "b"]) == newest


def test_a_named_bundle_is_taken_as_it_is(tmp_path: Path) -> None:
    manifest(tmp_path, "found", json.dumps({"created": "2026-01-01"}))
    assert find_bundle(Path("elsewhere"), [tmp_path]) == Path("elsewhere")


def test_an_unreadable_manifest_counts_as_oldest_but_is_found(tmp_path: Path) -> None:
    broken = manifest(tmp_path, "broken", "{")
    assert find_bundle(None, [tmp_path]) == broken
    whole = manifest(tmp_path, "whole", json.dumps({"created": "2026-01-01"}))
    assert find_bundle(None, [tmp_path]) == whole


def test_a_bundle_without_manifest_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "build" / "half" / "bundle").mkdir(parents=True)
    with pytest.raises(BundleError, match=r"no bundle at .*build/\*/bundle; make one with `paritybit export"):
        find_bundle(None, [tmp_path])
