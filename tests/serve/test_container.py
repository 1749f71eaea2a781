"""A real container of a Bento: built by BentoML with podman, run without rights, network bridge or writable disk.

`make test-container` brings the podman. The Bento is of the bundle of `make demo` or `make test`, where there is one.
"""

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.utils import canonicalize_name
from uv import find_uv_bin

from bundle import Predictor
from bundle.manifest import MANIFEST_FILE, read_manifest
from tests.serve.conftest import ROOT, free_port
from tests.serve.test_bento import run

IMAGE = "localhost/paritybit:test"
BUNDLES = [ROOT / "build" / name / "bundle" for name in ("banking77", "tests")]
TEXTS = ROOT / "recipes" / "data" / "banking77" / "test.jsonl"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
HARDENED = [
    "--network",
    "host",
    "--memory",
    "1g",
    "--cpus",
    "1",
    "--pids-limit",
    "64",
    "--read-only",
    "--tmpfs",
    "/tmp",
    "--cap-drop",
    "all",
]


def podman(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["podman", *arguments], capture_output=True, text=True, check=False, timeout=280)


def why_not() -> str | None:
    """Why no container can be built here."""
    if shutil.which("podman") is None:
        return "podman is not installed"
    if podman("image", "exists", "python:3.11-slim").returncode != 0:
        return "podman has no image python:3.11-slim"
    return None


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Path:
    return next((one for one in BUNDLES if (one / MANIFEST_FILE).is_file()), tiny_bundle)


@pytest.fixture(scope="module")
def image(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if reason := why_not():
        pytest.skip(reason)
    home = tmp_path_factory.mktemp("bentoml")
    tag = run(home, ROOT, "serve.bento", str(bundle)).stdout.strip()
    # the host's certificates, for an index behind a proxy that signs for itself; uv, since the base here has no pip
    mounted = tmp_path_factory.mktemp("build")
    for file in (CERTIFICATES, find_uv_bin()):
        shutil.copy(file, mounted)
    volume = f"volume={mounted}:/build:ro"
    built = run(home, home, "bentoml", "containerize", tag, "--backend", "podman", "-t", IMAGE, "--opt", volume)
    assert built.returncode == 0, built.stdout + built.stderr
    yield IMAGE
    podman("rmi", "--force", IMAGE)


@pytest.mark.container
def test_it_is_small_and_lists_what_is_in_it(image: str) -> None:
    assert int(podman("image", "inspect", image, "--format", "{{.Size}}").stdout) <= 450e6
    listing = (
        "import importlib.metadata as m; print(*(d.metadata['Name'] + '==' + d.version for d in m.distributions()))"
    )
    there = podman("run", "--rm", "--network", "host", "--entrypoint", "python", image, "-c", listing).stdout.split()
    document = podman("run", "--rm", "--network", "host", "--entrypoint", "cat", image, "sbom.cdx.json").stdout
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(document) is None
    listed = {(one["name"], one["version"]) for one in json.loads(document)["components"]}
    assert listed == {(canonicalize_name(name), version) for name, _, version in (one.partition("==") for one in there)}
    names = {name for name, _ in listed}
    assert {"bentoml", "onnxruntime", "tokenizers", "httptools"} <= names
    assert names.isdisjoint({"hf-xet", "torch", "transformers", "uv"})


@pytest.mark.container
def test_a_hardened_container_answers_and_stops(image: str, bundle: Path) -> None:
    port = free_port()
    variables = {"BENTOML_HOME": "/tmp/bentoml", "BENTOML_HOST": "127.0.0.1", "BENTOML_PORT": str(port)}
    settings = [word for name, value in variables.items() for word in ("--env", f"{name}={value}")]
    security = ["--security-opt", "no-new-privileges"]
    begin = time.monotonic()
    started = podman("run", "--detach", *HARDENED, *security, *settings, image)
    assert started.returncode == 0, started.stderr
    container = started.stdout.strip()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            wait_until_ready(client, container)
            # 5 s are what it has to itself; the machine of the tests has other work
            assert time.monotonic() - begin <= 15
            assert client.get("/model").json()["name"] == read_manifest(bundle).name
            with watched_memory(container) as most:
                assert_says_what_the_bundle_says(client, bundle)
        assert 50 < most() <= 400
        assert podman("exec", container, "id", "-u").stdout.strip() != "0"
        for module in ("torch", "transformers"):
            imported = podman("exec", container, "/app/.venv/bin/python", "-c", f"import {module}")
            assert f"No module named '{module}'" in imported.stderr
        podman("stop", "--time", "20", container)
        assert podman("inspect", container, "--format", "{{.State.ExitCode}}").stdout.strip() == "0"
    finally:
        podman("rm", "--force", container)


def assert_says_what_the_bundle_says(client: httpx.Client, bundle: Path) -> None:
    """For real texts, eight callers at once."""
    texts = [json.loads(line)["text"] for line in TEXTS.read_text().splitlines()[::20]]

    def ask(text: str) -> dict[str, float]:
        response = client.post("/predict", json={"inputs": text, "parameters": {"top_k": 1}})
        assert response.status_code == 200, response.text
        label: dict[str, float] = response.json()["answers"][0]["labels"][0]
        return label

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, texts))
    expected = [answer["labels"][0] for answer in Predictor.load(bundle)(texts, top_k=1)]
    assert len(answers) >= 150
    assert [one["label"] for one in answers] == [one["label"] for one in expected]
    assert [one["score"] for one in answers] == pytest.approx([one["score"] for one in expected], abs=1e-5)


@contextmanager
def watched_memory(container: str) -> Iterator[Callable[[], float]]:
    """Gives what tells the most MiB that the container's processes had together while the block ran."""
    seen: list[float] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set():
            seen.append(sum(map(float, podman("top", container, "rss").stdout.split()[1:])) / 1024)
            ended.wait(0.2)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: max(seen)
    finally:
        ended.set()
        thread.join()


def wait_until_ready(client: httpx.Client, container: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    running = "true"
    while time.monotonic() < deadline and running == "true":
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
        running = podman("inspect", container, "--format", "{{.State.Running}}").stdout.strip()
    logs = podman("logs", container)
    pytest.fail(f"the container is not ready: {logs.stdout}{logs.stderr}")
