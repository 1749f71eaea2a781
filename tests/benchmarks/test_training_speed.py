"""Training speed beside the reference: what is timed, and that the committed table is that of the committed figures."""

import json
from pathlib import Path

import pytest

from benchmarks.training_speed import ALIKE, GROUPED, OURS, PADDED, RESULTS, measure, table
from tasks.errors import DataError
from tests.toy import write_toy_data, write_toy_recipe


def test_all_ways_are_timed_in_every_round(tmp_path: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_toy_recipe(write_toy_data(tmp_path, train=200), tiny_base)
    result = measure(recipe, steps=6, rounds=2)
    rates = result["examples_per_s"]
    assert list(rates) == [PADDED, GROUPED, OURS, ALIKE]
    assert all(len(found) == 2 and min(found) > 0 for found in rates.values())
    assert f"{OURS}: {rates[OURS][1]} examples/s" in capsys.readouterr().err


def test_fewer_rows_than_are_timed_are_refused(tmp_path: Path, tiny_base: Path) -> None:
    recipe = write_toy_recipe(write_toy_data(tmp_path), tiny_base)
    with pytest.raises(DataError, match="training rows: found 60; expected 192"):
        measure(recipe, steps=6, rounds=1)


def test_ratios_are_those_of_each_round() -> None:
    rates = {PADDED: [10.0, 20.0], GROUPED: [20.0, 20.0], OURS: [40.0, 50.0], ALIKE: [30.0, 30.0]}
    facts = {"recipe": "toy", "rows": 64, "steps": 6, "batch_size": 32, "threads": 2, "machine": {"cpu": "x"}}
    lines = table(facts | {"examples_per_s": rates}).splitlines()
    assert f"| {OURS} | 45.0 (40.0–50.0) | 3.25 (2.50–4.00) | 2.25 (2.00–2.50) |" in lines


def test_the_committed_table_is_of_the_committed_figures() -> None:
    result = json.loads((RESULTS / "speed.json").read_bytes())
    assert (RESULTS / "speed.md").read_text(encoding="utf-8") == table(result)
