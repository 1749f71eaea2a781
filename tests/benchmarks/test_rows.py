import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.batching import main
from benchmarks.report import BenchSettings
from benchmarks.rows import sample_windows
from benchmarks.rows import test_inputs as inputs_of
from benchmarks.run import PADDED, SORTED, bench, make_workloads
from bundle import read_manifest
from bundle.batching import BATCH_COST, TOKEN_BUDGET
from tasks import TextInput
from tasks.errors import CheckpointError, DataError


def test_texts_are_the_test_split_of_the_checkpoints_recipe(tiny_checkpoint: Path) -> None:
    recipe = json.loads((tiny_checkpoint / "run.json").read_bytes())["recipe"]
    file = Path(recipe["data"]["test"])
    found = inputs_of(tiny_checkpoint)
    assert found
    assert all(one.text in file.read_text(encoding="utf-8") for one in found)


def test_a_checkpoint_that_names_no_data_is_told_apart(tiny_checkpoint: Path, tmp_path: Path) -> None:
    foreign = shutil.copytree(tiny_checkpoint, tmp_path / "foreign")
    (foreign / "run.json").unlink()
    with pytest.raises(CheckpointError, match=r"run\.json"):
        inputs_of(foreign)


def test_the_sample_is_seeded_and_bounded_in_tokens(tiny_export: Path) -> None:
    manifest = read_manifest(tiny_export)
    inputs = [TextInput("card " * count) for count in range(1, 21)]

    def lengths(seed: int) -> list[int]:
        return [len(window) for window in sample_windows(manifest, tiny_export, inputs, 8, seed)]

    assert len(lengths(0)) == 8
    assert lengths(0) == lengths(0)
    assert len({tuple(lengths(seed)) for seed in range(5)}) > 1
    many = [TextInput("card " * 40)] * 700
    kept = [len(window) for window in sample_windows(manifest, tiny_export, many, 700, 0)]
    assert 0 <= 24_576 - sum(kept) < 48


def test_padded_and_sorted_batches_hold_the_same_texts(tiny_export: Path) -> None:
    manifest = read_manifest(tiny_export)
    inputs = [TextInput("card " * (1 + count % 7)) for count in range(70)]
    loads = {one.name: one for one in make_workloads(manifest, tiny_export, inputs, BenchSettings(sample=70))}

    assert [len(batch["input_ids"]) for batch in loads[PADDED].batches] == [32, 32, 6]
    real = {name: sum(int(batch["attention_mask"].sum()) for batch in loads[name].batches) for name in (PADDED, SORTED)}
    run = {name: sum(batch["input_ids"].size for batch in loads[name].batches) for name in (PADDED, SORTED)}
    assert loads[PADDED].texts == loads[SORTED].texts == 70
    assert real[PADDED] == real[SORTED] <= run[SORTED] < run[PADDED]


def test_nothing_to_time_on_is_an_error_before_anything_starts(
    tiny_export: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="no texts to time on"):
        bench(tiny_export, tiny_checkpoint, output=tmp_path / "out", inputs=[])
    with pytest.raises(CheckpointError, match="gone: not a checkpoint"):
        bench(tiny_export, tmp_path / "gone", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_batching_study_prints_a_table_and_one_json_line(tiny_export: Path, tiny_checkpoint: Path) -> None:
    arguments = [str(tiny_export), "--checkpoint", str(tiny_checkpoint), "--sample", "24", "--rounds", "1"]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)

    table, last = result.stdout.strip().rsplit("\n", 1)
    plans = {one["plan"]: one for one in json.loads(last)}
    present = plans[f"budget {TOKEN_BUDGET}, cost {BATCH_COST}"]
    assert present["ratio"] == {"median": 1.0, "q1": 1.0, "q3": 1.0}
    assert all(one["texts_per_s"]["median"] > 0 and 0 <= one["padding"] < 1 for one in plans.values())
    assert all(f"| {name} " in table for name in plans)
