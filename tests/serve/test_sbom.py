import importlib.metadata
import json
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.utils import canonicalize_name

from serve.sbom import main


def test_every_distribution_is_a_component_of_a_valid_document(tmp_path: Path) -> None:
    assert main([str(tmp_path / "sbom.json")]) == 0
    text = (tmp_path / "sbom.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    components = {one["name"]: one for one in json.loads(text)["components"]}
    assert components.keys() == {canonicalize_name(one.metadata["Name"]) for one in importlib.metadata.distributions()}
    numpy = importlib.metadata.version("numpy")
    assert (components["numpy"]["version"], components["numpy"]["purl"]) == (numpy, f"pkg:pypi/numpy@{numpy}")


def test_without_a_file_it_says_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert capsys.readouterr().err == "usage: python -m serve.sbom FILE\n"
