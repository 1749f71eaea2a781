import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from finetune.data import load_data
from finetune.recipe import Recipe
from tasks.inputs import QuestionInput, TextInput
from tests.finetune.data_files import error_of, recipe_of, write
from tests.toy import toy_rows, write_jsonl

ROWS = [
    {"text": 'a line\nbreak, and a "quote"', "label": "x", "other": 1},
    {"text": "U+2028 \u2028 inside", "label": "y", "other": 2},
    {"text": "NA", "label": "007", "other": 3},
    {"text": "2020-01-01", "label": "2020-01-01", "other": 4},
]


def write_rows(folder: Path, suffix: str) -> Path:
    path = folder / f"rows{suffix}"
    if suffix in (".csv", ".tsv"):
        datasets.Dataset.from_list(ROWS).to_pandas().to_csv(path, index=False, sep="," if suffix == ".csv" else "\t")
    elif suffix == ".parquet":
        datasets.Dataset.from_list(ROWS).to_parquet(str(path))
    else:
        write_jsonl(path, ROWS)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_rows(tmp_path, suffix)
    capsys.readouterr()
    data = load_data(recipe_of(path))
    assert data.train.inputs == [TextInput(str(row["text"])) for row in ROWS]
    assert data.train.golds == ["x", "y", "007", "2020-01-01"]
    assert data.spec.labels == ("007", "2020-01-01", "x", "y")
    assert capsys.readouterr() == ("", "")


def test_a_set_format_beats_the_suffix(tmp_path: Path) -> None:
    path = write_rows(tmp_path, ".csv").rename(tmp_path / "rows.txt")
    assert "unknown suffix '.txt'" in error_of(recipe_of(path))
    assert len(load_data(recipe_of(path, data={"format": "csv"})).train) == len(ROWS)


def test_text_pairs_numbers_and_a_byte_order_mark(tmp_path: Path) -> None:
    rows = b'{"q": "a", "p": "b", "y": 10}\n\n{"q": "c", "p": "d", "y": 2}\n'
    path = write(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + rows)
    data = load_data(recipe_of(path, data={"columns": {"text": "q", "text_pair": "p", "label": "y"}}))
    assert data.train.inputs == [TextInput("a", "b"), TextInput("c", "d")]
    assert data.spec.labels == ("2", "10")


def test_a_text_pair_is_read_only_where_the_recipe_names_it(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "text_pair": "b", "label": label} for label in "xy"])
    assert load_data(recipe_of(path)).train.inputs == [TextInput("a")] * 2
    named = recipe_of(path, data={"columns": {"text_pair": "text_pair"}})
    assert load_data(named).train.inputs == [TextInput("a", "b")] * 2


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_wrong_column_names_those_found(tmp_path: Path, suffix: str) -> None:
    path = write_rows(tmp_path, suffix)
    message = error_of(recipe_of(path, data={"columns": {"text": "txt"}}))
    assert message == f"{path}: no column 'txt'; found 'text', 'label', 'other'"
    assert "no column 'pair'; found" in error_of(recipe_of(path, data={"columns": {"text_pair": "pair"}}))


def test_missing_empty_and_rowless_files(tmp_path: Path) -> None:
    assert "no such file" in error_of(recipe_of(tmp_path / "none.csv"))
    assert "empty file" in error_of(recipe_of(write(tmp_path / "empty.jsonl", "")))
    assert "no rows" in error_of(recipe_of(write(tmp_path / "head.csv", "text,label\n")))
    assert "no rows" in error_of(recipe_of(write(tmp_path / "blank.jsonl", "\n\n")))
    assert "cannot be read" in error_of(recipe_of(write(tmp_path / "a.parquet", "no parquet")))


def test_invalid_utf8_is_found_by_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b"text,label\nfine,x\nd\xe9j\xe0,y\nfine,x\n\xff,y\n")
    message = error_of(recipe_of(path))
    assert f"{path}:3: not valid UTF-8 (byte 0xe9 in column 2)" in message
    assert f"{path}:5: not valid UTF-8 (byte 0xff in column 1)" in message
    assert ":2:" not in message


def test_bad_json_rows(tmp_path: Path) -> None:
    lines = [
        '{"text": "fine", "label": "x"}',
        "",
        '{"text": "cut',
        '{"text": 5, "label": "x"}',
        '{"text": "  ", "label": "x"}',
        '{"label": "x"}',
        '{"text": "a", "label": null}',
        '{"text": "a", "label": true}',
        '{"text": "\\ud800", "label": "x"}',
        '["a", "x"]',
        '{"text": "fine \u2028", "label": "y"}',
    ]
    path = write(tmp_path / "a.jsonl", "\n".join(lines))
    test = write(tmp_path / "test.jsonl", '{"text": "fine", "label": "x"}')
    headline, *problems = error_of(recipe_of(path, test, data={"validation": str(test)})).split("\n")
    assert headline == "8 bad rows:"
    found = {problem.strip().removeprefix(f"{path}:").partition(": ")[0]: problem for problem in problems}
    assert sorted(found, key=int) == ["3", "4", "5", "6", "7", "8", "9", "10"]
    assert "not valid JSON" in found["3"]
    assert "the text is int (5), expected a string" in found["4"]
    assert "empty text" in found["5"]
    assert "no text" in found["6"]
    assert "no label (found None)" in found["7"]
    assert "no label (found True)" in found["8"]
    assert "lone surrogate" in found["9"]
    assert "expected a JSON object, found list" in found["10"]


def test_csv_lines_are_right_after_quoted_line_breaks(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,label\n"two\nlines",x\n\n,y\n"three\n\nlines",\nfine,y\n')
    message = error_of(recipe_of(path))
    assert f"{path}:5: empty text" in message
    assert f"{path}:6: no label (found '')" in message


def test_csv_rows_with_too_many_fields(tmp_path: Path) -> None:
    # pandas alone would take the first column for an index
    path = write(tmp_path / "a.csv", "text,label\na, b,x\nc, d,y\n")
    assert f"{path}:2: 3 fields, expected 2" in error_of(recipe_of(path))


def test_csv_with_an_open_quote(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,label\n"open,x\nb,y\n')
    assert f"{path}: cannot be read" in error_of(recipe_of(path))


def test_the_first_ten_bad_rows_and_their_number(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "", "label": "x"}] * 25)
    good = write_jsonl(tmp_path / "b.jsonl", toy_rows(6, 0))
    headline, *problems = error_of(recipe_of(good, data={"validation": str(path)})).split("\n")
    assert headline == "25 bad rows; the first 10:"
    assert problems == [f"  {path}:{line}: empty text" for line in range(1, 11)]


def test_a_directory_of_a_hub_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    for name in ("train", "test"):
        write_jsonl(folder / f"{name}.jsonl", toy_rows(30, 0))

    def hub(**more: Any) -> Recipe:
        return recipe_of("train", "test", data={"hub": str(folder), "validation": None, **more})

    loaded = load_data(hub())
    assert [TextInput(row["text"]) for row in toy_rows(30, 0)] == loaded.test.inputs
    assert (len(loaded.train), len(loaded.validation)) == (27, 3)
    assert not (tmp_path / "cache").exists()
    assert f"{folder}[dev]: cannot be loaded" in error_of(hub(validation="dev"))
    assert f"{folder}[train]: no column 'txt'" in error_of(hub(columns={"text": "txt"}))


def test_a_hub_data_set_by_id_with_named_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    asked = []

    def load_dataset(hub: str, *, name: str | None, split: str, **_: object) -> datasets.Dataset:
        asked.append((hub, name, split))
        return datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0 if split == "train" else -1]}, features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    hub = {"hub": "owner/set", "hub_config": "en"}
    assert load_data(recipe_of("train", data=hub)).train.golds == ["yes", "no"]
    assert set(asked) == {("owner/set", "en", "train")}
    assert "owner/set[hidden]:2: no label" in error_of(recipe_of("train", "hidden", data=hub))


def test_local_files_leave_nothing_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for suffix in (".csv", ".jsonl", ".parquet"):
        load_data(recipe_of(write_rows(tmp_path, suffix)))
    assert not (tmp_path / "cache").exists()


def test_json_lines_are_cut_at_line_feeds_only(tmp_path: Path) -> None:
    texts = ["a\u2028b", "c\u2029d", "e\u0085f", "g\x0bh\x0ci"]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": t, "label": t[0]}, ensure_ascii=False) + "\n" for t in texts))
    assert load_data(recipe_of(path)).train.inputs == [TextInput(text) for text in texts]


def test_class_numbers_in_lists_and_structures_become_names(tmp_path: Path) -> None:
    tags = datasets.ClassLabel(names=["O", "B-x", "I-x"])
    text = datasets.Value("string")
    words = datasets.Features({"tokens": datasets.List(text), "ner_tags": datasets.List(tags)})
    path = tmp_path / "words.parquet"
    datasets.Dataset.from_dict({"tokens": [["a", "b"]], "ner_tags": [[0, 1]]}, words).to_parquet(str(path))
    golds = load_data(recipe_of(path, task="token_classification")).train.golds
    assert [(entity.start, entity.label) for entity in golds[0]] == [(2, "x")]

    number = datasets.Value("int64")
    span = {"start": number, "end": number, "label": datasets.ClassLabel(names=["x", "y"])}
    features = datasets.Features({"text": text, "spans": datasets.List(span)})
    rows = {"text": ["a b"], "spans": [[{"start": 2, "end": 3, "label": 1}]]}
    path = tmp_path / "spans.parquet"
    datasets.Dataset.from_dict(rows, features).to_parquet(str(path))
    golds = load_data(recipe_of(path, task="token_classification")).train.golds
    assert [(entity.start, entity.end, entity.label) for entity in golds[0]] == [(2, 3, "y")]


def test_answers_as_hub_data_sets_nest_them(tmp_path: Path) -> None:
    answers = [{"text": ["Ann"], "answer_start": [5]}, {"text": [], "answer_start": []}]
    columns = {"question": ["Who?", "Why?"], "context": ["Then Ann came."] * 2, "answers": answers}
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_dict(columns).to_parquet(str(path))
    data = load_data(recipe_of(path, task="question_answering"))
    assert data.train.inputs[0] == QuestionInput("Who?", "Then Ann came.")
    assert [gold.texts for gold in data.train.golds] == [("Ann",), ()]
