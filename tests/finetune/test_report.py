import json
from pathlib import Path
from typing import Any

import pytest

from finetune.data import LabelledData, Split, load_data
from finetune.report import DataReport, data_report
from tasks.base import TaskSpec
from tasks.catalogue import load_task
from tasks.encoding import Tokenizer
from tasks.errors import InputError
from tasks.inputs import TextInput
from tests.finetune.data_files import recipe_of
from tests.toy import write_jsonl


def split(name: str, rows: list[tuple[str, str]]) -> Split:
    return Split(name, [TextInput(text) for text, _ in rows], [label for _, label in rows])


def report_of(splits: tuple[Split, Split, Split], base: Path, max_length: int, **options: Any) -> DataReport:
    spec = TaskSpec(task="single_label", labels=("a", "b", "c"), max_length=max_length, options=options)
    data = LabelledData(*splits, spec=spec, fingerprint="")
    return data_report(data, load_task(spec), Tokenizer(base / "tokenizer.json", max_length))


def report_of_file(path: Path, base: Path, max_length: int, task: str, **options: Any) -> DataReport:
    data = load_data(recipe_of(path, task=task, max_length=max_length, options=options))
    return data_report(data, load_task(data.spec), Tokenizer(base / "tokenizer.json", max_length))


def test_counts_lengths_duplicates_and_overlaps(tiny_base: Path) -> None:
    train = [("cat", "a")] * 2 + [("dog", "a")] * 1 + [(f"dog {'cat ' * n}", "b") for n in range(1, 12)]
    splits = (
        split("train", train),
        split("validation", [("cat", "a"), ("lion", "b")]),
        split("test", [("dog", "a"), ("cat", "a"), ("horse", "b"), ("cat " * 30, "a")]),
    )
    report = report_of(splits, tiny_base, 8)
    assert report.splits["train"].rows == 14
    assert report.splits["train"].duplicates == 1
    # [CLS] dog cat*n [SEP] passes 8 tokens from n = 6 on
    assert report.splits["train"].truncated_rows == 6
    assert report.splits["train"].truncated_share == 6 / 14
    assert report.splits["train"].windowed_rows == 0
    assert report.splits["test"].tokens["max"] == 32
    assert report.splits["test"].truncated_rows == 1
    assert report.label_rows == {"a": 3, "b": 11, "c": 0}
    assert (report.train_and_validation, report.train_and_test) == (1, 2)
    assert report.labels_missing_from_test == ("c",)

    text = report.to_text()
    assert "6 (42.9%)" in text
    assert "1 validation rows stand in train too" in text
    assert "2 test rows stand in train too" in text
    assert "training rows of each label: a 3, b 11, c 0" in text
    assert "labels without training rows: c" in text
    assert "labels without test rows: c" in text
    assert "labels with fewer than 10 training rows: a (3)" in text
    assert json.loads(json.dumps(report.to_json()))["splits"]["test"]["truncated_share"] == 0.25

    windows = report_of(splits, tiny_base, 8, truncation="windows", stride=2)
    assert (windows.splits["train"].truncated_rows, windows.splits["train"].windowed_rows) == (0, 6)
    assert "6 train rows are read in several windows\n1 test rows are read in several windows" in windows.to_text()


def test_the_same_words_as_a_pair_are_another_input(tiny_base: Path) -> None:
    one, pair = TextInput("cat"), TextInput("cat", "dog")
    splits = (
        Split("train", [one, pair], ["a", "b"]),
        Split("validation", [pair], ["a"]),
        Split("test", [TextInput("cat", "cat")], ["b"]),
    )
    report = report_of(splits, tiny_base, 16)
    assert report.splits["train"].duplicates == 0
    assert (report.train_and_validation, report.train_and_test) == (1, 0)
    assert report.splits["train"].tokens["max"] == 5


def test_many_labels_are_summed_up(tiny_base: Path, tmp_path: Path) -> None:
    rows = [{"text": "cat", "label": label} for label in range(12) for _ in range(12 + label)]
    report = report_of_file(write_jsonl(tmp_path / "a.jsonl", rows), tiny_base, 8, "single_label")
    assert "training rows of each label: 12 to 23, median 17.5, of 12 labels" in report.to_text()


def test_rows_with_entities_of_each_type(tiny_base: Path, tmp_path: Path) -> None:
    rows = [
        {"words": ["cat", "dog", "cat"], "tags": ["B-x", "B-x", "B-y"]},
        {"words": ["cat"] * 20, "tags": ["B-x"] + ["O"] * 19},
        {"words": ["dog"], "tags": ["O"]},
    ]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    report = report_of_file(path, tiny_base, 8, "token_classification", joiner=" ")
    assert report.label_rows == {"x": 2, "y": 1}
    train = report.splits["train"]
    assert (train.truncated_rows, train.windowed_rows, train.tokens["max"]) == (0, 1, 22)


def test_questions_with_and_without_an_answer(tiny_base: Path, tmp_path: Path) -> None:
    rows = [
        {
            "question": "where is it ?",
            "context": "cat " * n + "dog",
            "answers": [{"text": "cat", "answer_start": 0}][:n],
        }
        for n in (0, 1, 40)
    ]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    report = report_of_file(path, tiny_base, 24, "question_answering")
    assert report.label_rows == {"answerable": 2, "unanswerable": 1}
    assert (report.splits["train"].windowed_rows, report.splits["train"].truncated_rows) == (1, 0)


def test_a_question_that_fills_the_window_is_told_by_its_row(tiny_base: Path, tmp_path: Path) -> None:
    answers = [{"text": "cat", "answer_start": 0}]
    rows = [{"question": question, "context": "cat dog", "answers": answers} for question in ("who ?", "who " * 40)]
    with pytest.raises(InputError, match=r"^row 2 of the train rows: .*token"):
        report_of_file(write_jsonl(tmp_path / "a.jsonl", rows), tiny_base, 24, "question_answering")


def test_numbers_have_no_labels_to_report(tiny_base: Path, tmp_path: Path) -> None:
    rows = [{"text": "cat", "label": number} for number in (1.5, 2, 3)]
    report = report_of_file(write_jsonl(tmp_path / "a.jsonl", rows), tiny_base, 24, "regression")
    assert report.label_rows == {}
    assert report.labels_missing_from_test == ()
    assert "label" not in report.to_text()
