from pathlib import Path

from finetune.data import LabelledData, Split
from finetune.report import data_report
from tasks.encoding import TextInput, Tokenizer


def split(name: str, rows: list[tuple[str, str]]) -> Split:
    return Split(name, [TextInput(text) for text, _ in rows], [label for _, label in rows])


def test_counts_lengths_duplicates_and_overlaps(tiny_base: Path) -> None:
    train = [("cat", "a")] * 2 + [("dog", "a")] * 1 + [(f"dog {'cat ' * n}", "b") for n in range(1, 12)]
    data = LabelledData(
        train=split("train", train),
        validation=split("validation", [("cat", "a"), ("lion", "b")]),
        test=split("test", [("dog", "a"), ("cat", "a"), ("horse", "b"), ("cat " * 30, "a")]),
        labels=("a", "b", "c"),
        fingerprint="",
    )
    report = data_report(data, Tokenizer(tiny_base / "tokenizer.json", max_length=8))
    assert report.splits["train"].rows == 14
    assert report.splits["train"].duplicates == 1
    # [CLS] dog cat*n [SEP] passes 8 tokens from n = 6 on
    assert report.splits["train"].truncated_rows == 6
    assert report.splits["train"].truncated_share == 6 / 14
    assert report.splits["test"].tokens["max"] == 32
    assert report.splits["test"].truncated_rows == 1
    assert report.label_rows == {"min": 0, "median": 3.0, "max": 11}
    assert report.rare_labels == {"a": 3}
    assert (report.train_and_validation, report.train_and_test) == (1, 2)
    assert report.labels_missing_from_train == ("c",)
    assert report.labels_missing_from_test == ("c",)

    text = report.to_text()
    assert "6 (42.9%)" in text
    assert "1 validation rows stand in train too" in text
    assert "2 test rows stand in train too" in text
    assert "labels without training rows: c" in text
    assert "labels with fewer than 10 training rows: a (3)" in text
    assert report.to_json()["splits"]["test"]["truncated_share"] == 0.25


def test_the_same_words_as_a_pair_are_another_input(tiny_base: Path) -> None:
    one, pair = TextInput("cat"), TextInput("cat", "dog")
    data = LabelledData(
        Split("train", [one, pair], ["a", "b"]),
        Split("validation", [pair], ["a"]),
        Split("test", [TextInput("cat", "cat")], ["b"]),
        ("a", "b"),
        "",
    )
    report = data_report(data, Tokenizer(tiny_base / "tokenizer.json", max_length=16))
    assert report.splits["train"].duplicates == 0
    assert (report.train_and_validation, report.train_and_test) == (1, 0)
    assert report.splits["train"].tokens["max"] == 5
