"""Cuts the small two-label set of `recipes/data/feelings` from GoEmotions.

python -m benchmarks.feelings GOEMOTIONS_FOLDER
"""

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["cut"]

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "recipes" / "data" / "feelings"
LABELS = {
    "pleasant": {"joy", "love", "gratitude", "admiration"},
    "unpleasant": {"anger", "annoyance", "sadness", "disgust"},
}
ROWS = {"train": 256, "validation": 300, "test": 1000}


def cut(folder: Path) -> dict[str, list[dict[str, str]]]:
    """As many rows of each label, each text once in all files.

    Args:
        folder: of train.jsonl, validation.jsonl and test.jsonl, a line `{"text": …, "labels": […]}` each.
    """
    generator, seen, files = random.Random(42), set[str](), {}
    for split, count in ROWS.items():
        found: dict[str, list[str]] = {label: [] for label in LABELS}
        for label, text in _single(folder / f"{split}.jsonl"):
            if text not in seen:
                seen.add(text)
                found[label].append(text)
        rows = [
            {"text": text, "label": label}
            for label, texts in found.items()
            for text in generator.sample(texts, count // len(LABELS))
        ]
        generator.shuffle(rows)
        files[split] = rows
    return files


def _single(path: Path) -> Iterator[tuple[str, str]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if len(row["labels"]) == 1:
            for label, emotions in LABELS.items():
                if row["labels"][0] in emotions:
                    yield label, row["text"]


def main() -> None:
    """Writes the files."""
    for split, rows in cut(Path(sys.argv[1])).items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (OUTPUT / f"{split}.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main()
