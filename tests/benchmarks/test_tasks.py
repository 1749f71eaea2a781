import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import references
from benchmarks.references import Comparison, side_by_side
from benchmarks.tasks import RESULTS, TABLE, table


def test_the_committed_table_is_that_of_the_committed_results() -> None:
    assert TABLE.read_text(encoding="utf-8") == table(RESULTS)


def test_both_sides_train_on_the_same_evenly_spread_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "snli").mkdir()
    for split, count in {"train": 10, "validation": 4, "test": 3}.items():
        rows = "".join(json.dumps({"text": f"{split} {number}"}) + "\n" for number in range(count))
        (tmp_path / "snli" / f"{split}.jsonl").write_text(rows)
    seen: list[dict[str, list[int]]] = []

    def score(name: str, data: Path, *_: Any) -> tuple[float, float]:
        files = {path.stem: path.read_text().splitlines() for path in (data / name).iterdir()}
        seen.append({split: [int(json.loads(row)["text"].split()[1]) for row in rows] for split, rows in files.items()})
        return 0.5, 1.0

    monkeypatch.setattr(references, "_ours", score)
    monkeypatch.setattr(references, "_theirs", score)
    shared = {"epochs": 1, "batch_size": 16, "learning_rate": 1e-4}
    how = Comparison(tmp_path, tmp_path, alike=True, shared=shared, rows={"train": 4, "test": 5})
    result = side_by_side("snli", [1], how)
    assert seen == [{"train": [0, 2, 5, 7], "validation": [0, 1, 2, 3], "test": [0, 1, 2]}] * 2
    assert [run["seed"] for run in result["runs"]] == [1]
    assert result["rows"] == {"train": 4, "test": 5}
