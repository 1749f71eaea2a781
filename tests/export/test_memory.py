"""Calibration streams: what it holds does not grow with the rows."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).resolve().parents[2]

WRITE = """
import sys
from pathlib import Path
from benchmarks.peers.bert_base import write_bert_base
from export.first_token import write_narrowed
from export.graph import export_graph
from finetune.checkpoint import load_checkpoint
folder = Path(sys.argv[1])
write_bert_base(folder / "checkpoint", ["no", "yes"])
export_graph(load_checkpoint(folder / "checkpoint").model, folder / "wide.onnx", 20)
write_narrowed(folder / "wide.onnx", folder / "fp32.onnx")
"""

CALIBRATE = """
import sys
from pathlib import Path
import numpy as np
from export.calibration import calibrate, collect_histograms, ranges_of
from export.quantization import quantizable_inputs, quantize
from export.smoothing import channel_maxima, smooth
from tests.export.graphs import windows_of
folder, rows = Path(sys.argv[1]), int(sys.argv[2])
generator = np.random.default_rng(0)
windows = windows_of([generator.integers(1000, 30000, 128) for _ in range(rows)])
fp32 = folder / "fp32.onnx"
extremes = calibrate(fp32, quantizable_inputs(fp32), windows, 0)
histograms = collect_histograms(fp32, extremes, windows, 0)
for method in ("percentile-99.99", "mse", "entropy"):
    quantize(fp32, folder / "int8.onnx", ranges_of(histograms, method))
smooth(fp32, folder / "smooth.onnx", channel_maxima(fp32, windows, 0))
status = Path("/proc/self/status").read_text()
print(int(status.split("VmHWM:", 1)[1].split(maxsplit=1)[0]) / 2**20)
"""


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.timeout(600)
def test_calibrating_bert_base_takes_less_than_3_gib_whatever_the_number_of_rows(tmp_path: Path) -> None:
    run(WRITE, tmp_path)
    few, many = (float(run(CALIBRATE, tmp_path, rows)) for rows in (8, 128))
    assert many < 3
    assert many < few + 0.1, "GiB; a histogram for each tensor, whatever the number of rows"
