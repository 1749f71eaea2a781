"""What schemathesis makes of the OpenAPI document, sent to the real server: right requests, wrong ones, nonsense."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bundles import write_bundle
from tests.serve.conftest import serving

pytestmark = pytest.mark.thorough

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
# a caller who gives a millisecond is told with a 504 that it is over
CONFIG = '[checks]\nnot_a_server_error.expected-statuses = ["2xx", "4xx", "504"]\n'


@pytest.mark.parametrize(("task", "examples", "cases"), [("single_label", 600, 2000), ("question_answering", 60, 500)])
def test_every_answer_is_one_that_the_document_promises(task: str, examples: int, cases: int, tmp_path: Path) -> None:
    bundle, report, config = tmp_path / "bundle", tmp_path / "report.json", tmp_path / "schemathesis.toml"
    bundle.mkdir()
    write_bundle(bundle, task=task)
    config.write_text(CONFIG)
    with serving(tmp_path / "log", PARITYBIT_BUNDLE=str(bundle)) as server:
        what = f"--config-file {config} run {server.url}/docs.json --phases examples,coverage,fuzzing --checks {CHECKS}"
        how = f"--max-examples {examples} --seed 1 --continue-on-failure --report json --report-json-path {report}"
        command = [str(Path(sys.executable).with_name("st")), *what.split(), *how.split()]
        finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=280)
    assert finished.returncode == 0, finished.stdout
    found = json.loads(report.read_text())
    assert found["operations"]["tested"] == found["operations"]["total"] == 14
    assert found["test_cases"]["generated"] >= cases
    assert (found["failures"], found["errors"]) == ([], [])
