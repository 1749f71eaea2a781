"""`pip install .[serve]` alone, in an environment of its own, is all that a bundle needs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bundle import Predictor

ROOT = Path(__file__).resolve().parents[2]
ASK = """
import importlib.util, json, sys
found = [name for name in ("torch", "transformers", "onnx", "datasets") if importlib.util.find_spec(name)]
assert not found, found
import serve.service
from bundle import Predictor
print(json.dumps(Predictor.load(sys.argv[1])(["Where is my card?"])))
"""


@pytest.mark.real
def test_serving_environment_has_no_torch_and_answers(tiny_bundle: Path, tmp_path: Path) -> None:
    def run(*command: str | Path) -> str:
        done = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    run(sys.executable, "-m", "venv", "venv")
    python = tmp_path / "venv" / "bin" / "python"
    install = ("-m", "pip", "install", "--quiet", "--no-compile", "-c", ROOT / "constraints.txt", f"{ROOT}[serve]")
    run(python, *install)
    answered = json.loads(run(python, "-c", ASK, tiny_bundle).splitlines()[-1])
    assert answered == Predictor.load(tiny_bundle)(["Where is my card?"])
