"""A real container of a Bento: built by BentoML with podman, run without rights, network bridge or writable disk."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.serve.conftest import ROOT, free_port
from tests.serve.test_bento import run

IMAGE = "localhost/paritybit-tiny:test"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
HARDENED = [
    "--network",
    "host",
    "--memory",
    "512m",
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
def image(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if reason := why_not():
        pytest.skip(reason)
    home = tmp_path_factory.mktemp("bentoml")
    tag = run(home, ROOT, "serve.bento", str(tiny_bundle)).stdout.strip()
    # the host's certificates, for an index behind a proxy that signs for itself
    volume = f"volume={CERTIFICATES}:{CERTIFICATES}:ro"
    built = run(home, home, "bentoml", "containerize", tag, "--backend", "podman", "-t", IMAGE, "--opt", volume)
    assert built.returncode == 0, built.stdout + built.stderr
    yield IMAGE
    podman("rmi", "--force", IMAGE)


@pytest.mark.container
def test_a_hardened_container_answers_and_stops(image: str) -> None:
    port = free_port()
    variables = {"BENTOML_HOME": "/tmp/bentoml", "BENTOML_HOST": "127.0.0.1", "BENTOML_PORT": str(port)}
    settings = [word for name, value in variables.items() for word in ("--env", f"{name}={value}")]
    security = ["--security-opt", "no-new-privileges"]
    started = podman("run", "--detach", *HARDENED, *security, *settings, image)
    assert started.returncode == 0, started.stderr
    container = started.stdout.strip()
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, container)
        answer = httpx.post(url + "/predict", json={"inputs": "Where is my card?", "parameters": {"top_k": 1}}).json()
        assert answer["model"] == "tiny"
        assert podman("exec", container, "id", "-u").stdout.strip() != "0"
        for module in ("torch", "transformers"):
            imported = podman("exec", container, "/app/.venv/bin/python", "-c", f"import {module}")
            assert f"No module named '{module}'" in imported.stderr
        podman("stop", "--time", "20", container)
        assert podman("inspect", container, "--format", "{{.State.ExitCode}}").stdout.strip() == "0"
    finally:
        podman("rm", "--force", container)


def wait_until_ready(url: str, container: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if httpx.get(url + "/readyz", timeout=10).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    pytest.fail(f"the container is not ready: {podman('logs', container).stdout}")
