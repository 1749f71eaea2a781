"""Bentos: what they hold, what their image installs, and that they serve without configuration."""

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from serve.requirements import LOCK_FILE, serving_requirements
from tasks.errors import BundleError
from tests.serve.conftest import ROOT, environment, serving

PACKAGES = [line for line in (ROOT / "serve" / "requirements.in").read_text().splitlines() if not line.startswith("#")]
BENTO_FILES = ("serve/service.py", "serve/page.html", "bundle/predictor.py", "tasks/single_label.py")


def run(home: Path, cwd: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=cwd,
        env=environment(BENTOML_HOME=str(home)),
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bentoml")


@pytest.fixture(scope="module")
def tag(home: Path, tiny_bundle: Path) -> str:
    """A Bento of the tiny bundle, made as the Makefile makes it."""
    finished = run(home, ROOT, "serve.bento", str(tiny_bundle))
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


def directory(home: Path, tag: str) -> Path:
    return home / "bentos" / tag.replace(":", "/")


def test_it_holds_the_service_and_exactly_this_bundle(home: Path, tag: str, tiny_bundle: Path) -> None:
    assert tag.startswith("paritybit-tiny:")
    source = directory(home, tag) / "src"
    assert {path.name for path in source.iterdir()} == {"serve", "bundle", "tasks", "build", "bentofile.yaml"}
    assert all((source / name).is_file() for name in BENTO_FILES)
    (bundle,) = source.glob("build/*/bundle")
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == {
        path.name: path.read_bytes() for path in tiny_bundle.iterdir()
    }


def test_its_image_is_slim_and_not_root(home: Path, tag: str) -> None:
    dockerfile = (directory(home, tag) / "env" / "docker" / "Dockerfile").read_text()
    assert f"FROM python:{sys.version_info.major}.{sys.version_info.minor}-slim" in dockerfile
    assert "apt-get" not in dockerfile
    assert dockerfile.rindex("USER bentoml") > dockerfile.rindex("RUN ")
    assert all(f"ENV {name}" in dockerfile for name in ("ORT_DISABLE_TELEMETRY", "BENTOML_DO_NOT_TRACK"))
    requirements = (directory(home, tag) / "env" / "python" / "requirements.txt").read_text().lower()
    requirements = requirements.replace("\\\n", "").replace("\n\n", "\n")
    assert all(f"\n{name}==" in f"\n{requirements}" for name in PACKAGES)
    assert all("--hash=sha256:" in line for line in requirements.splitlines() if not line.startswith("bentoml=="))
    assert (directory(home, tag) / "src" / "serve" / LOCK_FILE).exists() is False, "nothing is built there any more"
    assert not any(f"\n{name}" in f"\n{requirements}" for name in ("torch", "transformers", "onnx=", "optimum"))


def test_it_serves_its_own_bundle_without_configuration(home: Path, tag: str, tmp_path: Path) -> None:
    source = directory(home, tag) / "src"
    log = tmp_path / "log"
    with serving(log, tag, cwd=tmp_path, BENTOML_HOME=str(home)) as server:
        assert httpx.get(server.url + "/model").json()["name"] == "tiny"
    assert f"from {source}/build/tiny/bundle with" in log.read_text()


def test_bentoml_build_takes_the_default_recipe_s_bundle(home: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    for name in ("serve", "bundle", "tasks", "recipes"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", checkout)
    for recipe in ("banking77", "another"):
        shutil.copytree(tiny_bundle, checkout / "build" / recipe / "bundle")
    finished = run(home, checkout, "bentoml", "build", "-o", "tag")
    assert finished.returncode == 0, finished.stderr
    tag = finished.stdout.strip().splitlines()[-1].removeprefix("__tag__:")
    source = directory(home, tag) / "src"
    assert [path.parent.name for path in source.glob("build/*/bundle")] == ["banking77"]
    assert {path.name for path in source.iterdir()} == {"serve", "bundle", "tasks", "build", "bentofile.yaml"}
    assert all((source / name).is_file() for name in BENTO_FILES)
    envs = yaml.safe_load((directory(home, tag) / "bento.yaml").read_text())["envs"]
    assert {"name": "ORT_DISABLE_TELEMETRY", "value": "1", "stage": "all"} in envs


def test_a_damaged_bundle_makes_no_bento(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    (bundle / "config.json").unlink()
    finished = run(tmp_path / "home", ROOT, "serve.bento", str(bundle))
    assert finished.returncode == BundleError.exit_code
    assert finished.stderr == f"{bundle}/config.json: missing; the manifest lists it\n"
    assert finished.stdout == ""
    assert not list((tmp_path / "home").glob("bentos/*"))


def test_the_lock_has_all_that_serving_needs_in_the_versions_of_the_tests_with_hashes() -> None:
    locked = {}
    for line in serving_requirements():
        requirement = Requirement(line.partition(" --hash")[0])
        locked[canonicalize_name(requirement.name)] = str(requirement.specifier)
        assert re.search(r"( --hash=sha256:[0-9a-f]{64})+$", line)
    pins = map(Requirement, (line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line))
    tested = {canonicalize_name(one.name): str(one.specifier) for one in pins}
    needed = closure(PACKAGES) - {"bentoml"}
    assert {name: locked.get(name) for name in needed} == {name: tested[name] for name in needed}
    assert locked.keys().isdisjoint({"torch", "transformers", "bentoml"})


def closure(names: list[str]) -> set[str]:
    """The packages and all that they need, as installed here."""
    found: set[str] = set()
    waiting = [canonicalize_name(name) for name in names]
    while waiting:
        if (name := waiting.pop()) not in found:
            found.add(name)
            needs = map(Requirement, importlib.metadata.requires(name) or [])
            waiting += [
                canonicalize_name(one.name) for one in needs if one.marker is None or one.marker.evaluate({"extra": ""})
            ]
    return found


def test_without_a_lock_there_is_nothing_to_install(tmp_path: Path) -> None:
    assert serving_requirements(tmp_path) == []


def test_the_image_has_all_that_the_served_rooms_import() -> None:
    # scikit-learn only scores splits; these come with BentoML, httpx for the client that nobody runs there
    brought = {"httpx", "starlette", "prometheus_client", "pydantic_core", "uvicorn"}
    elsewhere = {"sklearn", "bentoml", "serve", "bundle", "tasks"} | brought
    imported = set()
    for room in ("serve", "bundle", "tasks"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    imported.update(alias.name.partition(".")[0] for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.module:
                    imported.add(node.module.partition(".")[0])
    # what uvicorn imports
    assert imported - sys.stdlib_module_names - elsewhere == set(PACKAGES) - {"httptools", "bentoml"}
