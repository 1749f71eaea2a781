"""The small two-label set is what its script cuts from GoEmotions."""

import json
import os
from pathlib import Path

import pytest

from benchmarks.feelings import OUTPUT, ROWS, cut

ROOT = Path(__file__).parents[2]
GOEMOTIONS = Path(os.environ.get("PARITYBIT_DATA", ROOT / "../shared/data")) / "goemotions"


def shipped() -> dict[str, list[dict[str, str]]]:
    return {
        split: [json.loads(line) for line in (OUTPUT / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        for split in ROWS
    }


def test_labels_are_even_and_texts_stand_once() -> None:
    files = shipped()
    assert {split: len(rows) for split, rows in files.items()} == ROWS
    for rows in files.values():
        labels = [row["label"] for row in rows]
        assert labels.count("pleasant") == labels.count("unpleasant")
    texts = [row["text"] for rows in files.values() for row in rows]
    assert len(set(texts)) == len(texts)


@pytest.mark.skipif(not GOEMOTIONS.is_dir(), reason="needs GoEmotions in PARITYBIT_DATA")
def test_the_shipped_rows_are_those_that_the_script_cuts() -> None:
    assert cut(GOEMOTIONS) == shipped()
