"""The end of `make demo`: the whole run in a table, and an answer over HTTP from a service that is started and stopped.

python -m paritybit.demo build/banking77/bundle
"""

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

import click

from benchmarks.report import BenchReport
from benchmarks.services import OURS, running_service
from bundle.golden import read_golden
from bundle.manifest import CERTIFICATE_FILE, GOLDEN_FILE, read_manifest
from paritybit.summary import summary_table
from tasks import load_task
from tasks.errors import ParitybitError
from tasks.inputs import input_to_json

__all__: list[str] = []


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
        with running_service(OURS, bundle, bundle.parent / "serve.log") as service:
            click.echo(f"\nservice ready after {service.ready_s:.1f} s at {service.address}")
            answer = _ask(f"{service.address}/predict", question)
        click.echo(f"service stopped, exit code {service.exit_code}", err=True)
        click.echo(f"\nPOST /predict {json.dumps(question)}")
        click.echo(json.dumps(answer))
    except FileNotFoundError as error:
        sys.exit(f"paritybit: {error.filename}: missing; run make demo")
    except ParitybitError as error:
        sys.exit(f"paritybit: {error}")


def _ask(address: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        address, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.loads(response.read())


if __name__ == "__main__":
    main()
