"""What the container of a Bento installs: five packages beside BentoML, pinned with all that they need; no torch."""

import importlib.metadata
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

__all__ = ["CONSTRAINTS_FILE", "PACKAGES", "serving_requirements"]

CONSTRAINTS_FILE = "constraints.txt"
PACKAGES = ("httptools", "numpy", "onnxruntime", "pydantic", "tokenizers")
"""What serving needs beside BentoML, which adds itself in the version that builds the Bento."""


def serving_requirements(root: Path) -> list[str]:
    """Requirement lines of the serving environment.

    Args:
        root: the source tree, whose pyproject.toml gives the ranges; of an installed paritybit its metadata does.

    Returns:
        Every package of the environment at the version that `constraints.txt` pins; where there is no such file, or it
        does not name a package, only those of `PACKAGES`, with their ranges. Empty inside a Bento, where nothing is
        built any more.
    """
    ranges = {
        one.name: f"{one.name}{one.specifier}" for one in map(Requirement, _declared(root)) if one.name in PACKAGES
    }
    pins = _pins(root / CONSTRAINTS_FILE) if ranges else {}
    # BentoML writes its own line
    needed = _with_dependencies(["bentoml", *ranges]) - {"bentoml"} if pins else set()
    return sorted({**ranges, **{name: line for name, line in pins.items() if name in needed}}.values())


def _declared(root: Path) -> list[str]:
    pyproject = root / "pyproject.toml"
    if pyproject.is_file():
        project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
        return [*project["dependencies"], *project["optional-dependencies"]["serve"]]
    try:
        return importlib.metadata.requires("paritybit") or []
    except importlib.metadata.PackageNotFoundError:
        return []


def _pins(constraints: Path) -> dict[str, str]:
    """Name to line of a constraints file; options and comments are not ours to read."""
    if not constraints.is_file():
        return {}
    pins: dict[str, str] = {}
    for line in constraints.read_text(encoding="utf-8").splitlines():
        try:
            pins[canonicalize_name(Requirement(line).name)] = line.strip()
        except InvalidRequirement:
            continue
    return pins


def _with_dependencies(names: Iterable[str]) -> set[str]:
    """The packages and all that they need, as installed here; canonical names."""
    found: set[str] = set()
    waiting = [canonicalize_name(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        try:
            declared = [Requirement(line) for line in importlib.metadata.requires(name) or []]
        except importlib.metadata.PackageNotFoundError:
            continue
        waiting += [
            canonicalize_name(one.name) for one in declared if one.marker is None or one.marker.evaluate({"extra": ""})
        ]
    return found
