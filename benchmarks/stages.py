"""A shipped recipe on real data through every stage, each by its command."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine_facts
from benchmarks.rows import test_inputs
from bundle import Predictor
from bundle.manifest import CERTIFICATE_FILE, read_manifest
from bundle.session import Session
from export.parity import batch_deltas
from finetune.recipe import load_recipe
from tasks import Tokenizer, load_task
from tasks.errors import ParitybitError

__all__ = ["ROOT", "data_overrides", "paritybit", "run", "set_options", "stage_rows", "stages"]

ROOT = Path(__file__).resolve().parents[1]
_COMPANY_ROWS = 5000


def stages(name: str, data: Path, build: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Fine-tunes, exports and asks a shipped recipe's model, each by its command, and says what came of it."""
    settings = [*data_overrides(name, data), *overrides]
    checkpoint, bundle = build / "checkpoint", build / "bundle"
    paritybit("finetune", f"recipes/{name}.toml", "--output", checkpoint, *set_options(settings))
    paritybit("export", checkpoint, "--output", bundle)
    certificate = json.loads((bundle / CERTIFICATE_FILE).read_bytes())
    record = json.loads((checkpoint / "run.json").read_bytes())
    predictor = Predictor.load(bundle)
    golden = predictor.replay_golden()
    by_name = {variant["name"]: variant for variant in certificate["variants"]}
    return {
        "name": name,
        "task": predictor.manifest.task.task,
        "test_rows": certificate["evidence"]["test_rows"],
        "primary_metric": certificate["primary_metric"],
        "training_seconds": record["timings"]["training_seconds"],
        "train": record["recipe"]["train"],
        "overrides": list(overrides),
        "pytorch": certificate["pytorch"],
        "published": certificate["published"],
        "variants": {
            name: {
                "metric": one["metrics"][certificate["primary_metric"]],
                "agreement": one["agreement"],
                "rows": one["rows"],
                "max_logit_delta": one["delta_quantiles"]["p100"],
                "max_batch_delta": one["max_batch_delta"],
                "size": one["size"],
                "verdict": one["verdict"],
            }
            for name, one in by_name.items()
        },
        "golden": {"rows": golden.rows, "passed": golden.passed},
        "company": _company(bundle, checkpoint),
        "machine": machine_facts(),
    }


def _company(bundle: Path, checkpoint: Path) -> dict[str, Any]:
    """Largest |Δlogit| of what is published between a text alone and in company, on at most 5,000 test rows."""
    manifest = read_manifest(bundle)
    inputs = test_inputs(checkpoint)
    rows = np.unique(np.linspace(0, len(inputs) - 1, _COMPANY_ROWS).round().astype(int))
    tokenizer = Tokenizer(bundle / "tokenizer.json", manifest.task.max_length, manifest.pad_token_id)
    windows = load_task(manifest.task).encode(tokenizer, [inputs[row] for row in rows]).windows
    engine = Session(bundle / manifest.variant.file, manifest.variant.session).run
    deltas = batch_deltas(engine, windows, manifest.pad_token_id)
    return {"rows": len(rows), "windows": len(windows), "max_delta": float(deltas.max())}


def data_overrides(name: str, data: Path) -> list[str]:
    """The files of a data set folder in place of those that the recipe points to."""
    recipe = load_recipe(ROOT / "recipes" / f"{name}.toml")
    splits = {"train": recipe.data.train, "validation": recipe.data.validation, "test": recipe.data.test}
    folder = (data / name).resolve()
    return [f"data.{split}={json.dumps(str(folder / Path(file).name))}" for split, file in splits.items() if file]


def set_options(overrides: Sequence[str]) -> list[str]:
    """The overrides as arguments of the command."""
    return [part for override in overrides for part in ("--set", override)]


def paritybit(*arguments: object) -> None:
    """Runs the command; raises ParitybitError if it fails."""
    run([sys.executable, "-m", "paritybit", *map(str, arguments)])


def run(command: Sequence[str]) -> None:
    """Runs a program in the repository's root; raises ParitybitError with the end of what it said if it fails."""
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise ParitybitError(f"{' '.join(command[:4])} … ended with {done.returncode}:\n{done.stderr[-2000:]}")


def stage_rows(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rows of the table, one a run."""
    return [" | ".join(["", *_stage_cells(run), ""]).strip() for run in runs]


def _stage_cells(run: Mapping[str, Any]) -> list[str]:
    metric = run["primary_metric"]
    fp32, int8 = run["variants"]["fp32"], run["variants"]["int8-static"]
    return [
        run["name"],
        run["task"],
        f"{run['test_rows']:,}",
        f"{run['training_seconds']:.0f}",
        metric,
        f"{run['pytorch'][metric]:.4f}",
        f"{int8['metric']:.4f}",
        f"{run['pytorch'][metric] - int8['metric']:+.4f}",
        f"{int8['agreement']:.2%}",
        f"{fp32['max_logit_delta']:.1e}",
        f"{run.get('company', {'max_delta': int8['max_batch_delta']})['max_delta']:.0e}",
        run["published"],
    ]
