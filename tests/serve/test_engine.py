import asyncio
import json
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bundle import Predictor, read_manifest
from serve.engine import Engine, open_engine
from serve.settings import ServeSettings
from tasks import TextInput
from tasks.errors import BundleError, InputError
from tests.bundles import seal


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy that a test may spoil."""
    yield Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def change_golden(bundle: Path, factor: float) -> None:
    """Scales all golden outputs and makes the checksums right again, as a build with another model would have."""
    path = bundle / "golden.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["outputs"] = [[factor * value for value in output] for output in row["outputs"]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    seal(bundle, read_manifest(bundle))


def test_it_answers_and_says_what_it_serves(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="bentoml.paritybit"):
        engine = open_engine(ServeSettings(bundle=bundle, threads=1))
    inputs = [TextInput("my card"), TextInput("lost", "card")]
    parameters = engine.predictor.parameters({"top_k": 2})
    assert asyncio.run(engine.answer(inputs, parameters)) == Predictor.load(bundle)(inputs, top_k=2)
    (line,) = caplog.messages
    assert f"serving tiny (single_label, fp32) of checkpoint cccccccccccc from {bundle} with 1 threads" in line


def test_other_answers_than_certified_are_refused(bundle: Path) -> None:
    change_golden(bundle, -1.0)
    with pytest.raises(BundleError, match="not served, 6 of 6 golden rows have another answer here than certified"):
        open_engine(ServeSettings(bundle=bundle))


def test_other_outputs_than_certified_are_refused(bundle: Path) -> None:
    change_golden(bundle, 1.01)
    with pytest.raises(BundleError, match=r"not served, the golden rows differ by .* here, certified is 1.00e-05"):
        open_engine(ServeSettings(bundle=bundle))


def test_a_changed_file_is_refused_by_name(bundle: Path) -> None:
    content = bytearray((bundle / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / "model.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.onnx: changed: its SHA-256"):
        open_engine(ServeSettings(bundle=bundle))


def test_an_error_in_the_thread_reaches_the_caller(bundle: Path) -> None:
    engine = open_engine(ServeSettings(bundle=bundle))
    with pytest.raises(InputError, match="input 0: expected Unicode text, got a lone surrogate"):
        asyncio.run(engine.answer([TextInput("\ud800")], engine.predictor.parameters({})))


def test_runs_do_not_block_the_loop_nor_overlap_and_a_cancelled_one_is_not_run() -> None:
    runs: list[tuple[str, float, float]] = []

    def predict(inputs: list[TextInput], _: Any) -> list[Any]:
        start = time.monotonic()
        time.sleep(0.1)
        runs.append((inputs[0].text, start, time.monotonic()))
        return []

    async def three_of_which_one_is_cancelled() -> int:
        engine = Engine(cast(Predictor, SimpleNamespace(predict=predict)), ServeSettings())
        tasks = [asyncio.create_task(engine.answer([TextInput(name)], cast(Any, None))) for name in "abc"]
        ticks = 0
        while not tasks[2].done():
            await asyncio.sleep(0.01)
            tasks[1].cancel()
            ticks += 1
        return ticks

    assert asyncio.run(three_of_which_one_is_cancelled()) >= 5
    assert [name for name, _, _ in runs] == ["a", "c"]
    assert runs[0][2] <= runs[1][1]
