"""What is installed, as a CycloneDX document: `python -m serve.sbom FILE`.

It is run while the image is built, once all packages are there (`uv.sh`); the document lies beside the Bento's files.
"""

import importlib.metadata
import json
import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

__all__ = ["main", "sbom"]


def sbom() -> dict[str, Any]:
    """Every distribution of this environment with version, package URL and licence (https://cyclonedx.org/docs/1.6)."""
    found = {_name(one): one for one in importlib.metadata.distributions()}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": "paritybit", "bom-ref": "paritybit"}},
        "components": [_component(name, one) for name, one in sorted(found.items())],
        "dependencies": [{"ref": "paritybit", "dependsOn": [_purl(name, one) for name, one in sorted(found.items())]}],
    }


def main(arguments: list[str]) -> int:
    """Entry point: writes the document to the file that is named."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m serve.sbom FILE\n")
        return 2
    Path(arguments[0]).write_text(json.dumps(sbom(), indent=1) + "\n", encoding="utf-8")
    return 0


def _component(name: str, one: importlib.metadata.Distribution) -> dict[str, Any]:
    purl = _purl(name, one)
    component: dict[str, Any] = {"type": "library", "bom-ref": purl, "name": name, "version": one.version, "purl": purl}
    if "License-Expression" in one.metadata:
        component["licenses"] = [{"expression": one.metadata["License-Expression"]}]
    return component


def _name(one: importlib.metadata.Distribution) -> str:
    """Normalized (https://packaging.python.org/en/latest/specifications/name-normalization)."""
    return re.sub(r"[-_.]+", "-", one.metadata["Name"]).lower()


def _purl(name: str, one: importlib.metadata.Distribution) -> str:
    return f"pkg:pypi/{name}@{quote(one.version)}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
