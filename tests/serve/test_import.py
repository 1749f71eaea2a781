"""What importing the service pulls in, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serve.conftest import ROOT, environment

WITHOUT_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "optimum", "datasets", "onnx", "sklearn"}:
            raise ImportError(f"{name} must not be imported")
sys.meta_path.insert(0, Refuse())
"""


def run(script: str, *arguments: str, **settings: str) -> str:
    finished = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        env=environment(**settings),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_the_service_answers_with_torch_unimportable(tiny_bundle: Path) -> None:
    script = (
        WITHOUT_TORCH
        + """
import serve.service, serve.bento
from serve.engine import open_engine
from serve.settings import read_settings
print(open_engine(read_settings()).predictor("my card", top_k=1)[0]["labels"][0]["label"])
try:
    import torch
except ImportError:
    print("no torch")
"""
    )
    label, torch = run(script, PARITYBIT_BUNDLE=str(tiny_bundle)).split("\n", 1)
    assert label in {"card_arrival", "lost_card", "pin_blocked", "exchange_rate", "top_up_failed"}
    assert torch.strip() == "no torch"


TELEMETRY = """
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name in ("onnxruntime", "bentoml"):
            print(name, os.environ.get("ORT_DISABLE_TELEMETRY"), os.environ.get("BENTOML_DO_NOT_TRACK"))
sys.meta_path.insert(0, Watch())
import serve.service
print(sorted((env.name, env.value) for env in serve.service.ParitybitService.envs))
"""


def test_telemetry_is_off_before_its_libraries_are_imported() -> None:
    lines = run(TELEMETRY).splitlines()
    assert sorted(lines[:2]) == ["bentoml 1 True", "onnxruntime 1 True"]
    assert lines[2] == str(
        [("BENTOML_DO_NOT_TRACK", "True"), ("HF_HUB_DISABLE_TELEMETRY", "1"), ("ORT_DISABLE_TELEMETRY", "1")]
    )


def test_bentoml_asks_again_when_it_was_imported_first() -> None:
    script = """
from bentoml._internal.utils.analytics.usage_stats import do_not_track
print(do_not_track())
import serve
print(do_not_track())
"""
    assert run(script).split() == ["False", "True"]


@pytest.mark.parametrize(("exporter", "traced"), [("", False), ("zipkin", True)])
def test_nothing_is_traced_until_an_exporter_is_named(exporter: str, traced: bool, tmp_path: Path) -> None:
    config = tmp_path / "bentoml.yaml"
    tracing = {"exporter_type": exporter, "sample_rate": 1.0} if exporter else {"sample_rate": 1.0}
    config.write_text(json.dumps({"tracing": tracing}))
    code = """
import serve.service
from bentoml._internal.configuration.containers import BentoMLContainer
serve.service.ParitybitService.to_asgi()
print(not BentoMLContainer.tracing_excluded_urls.get().url_disabled("http://here/predict"))
"""
    assert run(code, BENTOML_CONFIG=str(config)).splitlines()[-1] == str(traced)
