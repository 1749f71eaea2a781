"""The end of `make demo`: the whole run in a table, and an answer over HTTP from a service that is started and stopped.

python -m paritybit.demo build/banking77/bundle
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from benchmarks.report import BenchReport
from bundle.golden import read_golden
from bundle.manifest import CERTIFICATE_FILE, GOLDEN_FILE, read_manifest
from paritybit.summary import summary_table
from tasks import load_task
from tasks.errors import ParitybitError
from tasks.inputs import input_to_json

__all__: list[str] = []

_READY_WITHIN_S = 60.0
_STOPPED_WITHIN_S = 15.0


def main() -> None:
    """Prints the table, then asks the service."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m paritybit.demo BUNDLE")
    bundle = Path(sys.argv[1])
    try:
        task = load_task(read_manifest(bundle).task)
        certificate = json.loads((bundle / CERTIFICATE_FILE).read_bytes())
        results = BenchReport.model_validate_json((bundle.parent / "bench" / "bench.json").read_bytes())
        click.echo(summary_table(certificate, results))
        question = {"inputs": input_to_json(read_golden(bundle / GOLDEN_FILE, task.input_types)[0].input)}
        if "top_k" in task.parameters.model_fields:
            question["parameters"] = {"top_k": 3}
        with _service(bundle) as address:
            answer = _ask(f"{address}/predict", question)
        click.echo(f"\nPOST /predict {json.dumps(question)}")
        click.echo(json.dumps(answer))
    except FileNotFoundError as error:
        sys.exit(f"paritybit: {error.filename}: missing; run make demo")
    except ParitybitError as error:
        sys.exit(f"paritybit: {error}")


@contextmanager
def _service(bundle: Path) -> Iterator[str]:
    """`bentoml serve` of the bundle on a free loopback port; stopped with SIGTERM at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("bentoml")), "serve", "serve.service:ParitybitService"]
    log = bundle.parent / "serve.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PARITYBIT_BUNDLE": str(bundle)},
        )
    try:
        address = f"http://127.0.0.1:{port}"
        started = time.monotonic()
        _wait_until_ready(f"{address}/readyz", server, log)
        click.echo(f"\nservice ready after {time.monotonic() - started:.1f} s at {address}")
        yield address
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            code = server.wait(_STOPPED_WITHIN_S)
        except subprocess.TimeoutExpired:
            server.kill()
            code = server.wait()
        click.echo(f"service stopped, exit code {code}", err=True)


def _wait_until_ready(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _READY_WITHIN_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise ParitybitError(f"the service ended with exit code {server.returncode}; see {log}")
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise ParitybitError(f"the service was not ready within {_READY_WITHIN_S:.0f} s; see {log}")


def _ask(address: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        address, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.loads(response.read())


if __name__ == "__main__":
    main()
