import json
from collections import Counter
from pathlib import Path

import datasets
import pytest

from finetune.data import LabelledData, load_data, stratified_split
from finetune.recipe import DataSection
from tasks.encoding import TextInput
from tasks.errors import DataError
from tests.toy import toy_rows, write_jsonl

ROWS = [
    {"text": 'a line\nbreak, and a "quote"', "label": "x", "other": 1},
    {"text": "U+2028 \u2028 inside", "label": "y", "other": 2},
    {"text": "NA", "label": "007", "other": 3},
    {"text": "2020-01-01", "label": "2020-01-01", "other": 4},
]


def section(train: Path, test: Path | None = None, **more: object) -> DataSection:
    files = {"train": str(train), "validation": str(train), "test": str(test or train)}
    return DataSection.model_validate({**files, **more})


def load(data: DataSection, labels: tuple[str, ...] | None = None) -> LabelledData:
    return load_data(data, seed=1, labels=labels)


def error_of(data: DataSection, labels: tuple[str, ...] | None = None) -> str:
    with pytest.raises(DataError) as caught:
        load(data, labels)
    return str(caught.value)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


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
    data = load(section(path))
    assert data.train.inputs == [TextInput(str(row["text"])) for row in ROWS]
    assert data.train.labels == ["x", "y", "007", "2020-01-01"]
    assert data.labels == ("007", "2020-01-01", "x", "y")
    assert capsys.readouterr() == ("", "")


def test_a_set_format_beats_the_suffix(tmp_path: Path) -> None:
    path = write_rows(tmp_path, ".csv").rename(tmp_path / "rows.txt")
    assert "unknown suffix '.txt'" in error_of(section(path))
    assert len(load(section(path, format="csv")).train) == len(ROWS)


def test_text_pairs_numbers_and_a_byte_order_mark(tmp_path: Path) -> None:
    rows = b'{"q": "a", "p": "b", "y": 10}\n\n{"q": "c", "p": "d", "y": 2}\n'
    path = write(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + rows)
    data = load(section(path, text_column="q", text_pair_column="p", label_column="y"))
    assert data.train.inputs == [TextInput("a", "b"), TextInput("c", "d")]
    assert data.labels == ("2", "10")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_wrong_column_names_those_found(tmp_path: Path, suffix: str) -> None:
    path = write_rows(tmp_path, suffix)
    assert error_of(section(path, text_column="txt")) == f"{path}: no column 'txt'; found 'text', 'label', 'other'"


def test_missing_empty_and_rowless_files(tmp_path: Path) -> None:
    assert "no such file" in error_of(section(tmp_path / "none.csv"))
    assert "empty file" in error_of(section(write(tmp_path / "empty.jsonl", "")))
    assert "no rows" in error_of(section(write(tmp_path / "head.csv", "text,label\n")))
    assert "no rows" in error_of(section(write(tmp_path / "blank.jsonl", "\n\n")))
    assert "cannot be read" in error_of(section(write(tmp_path / "a.parquet", "no parquet")))


def test_invalid_utf8_is_found_by_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b"text,label\nfine,x\nd\xe9j\xe0,y\nfine,x\n\xff,y\n")
    message = error_of(section(path))
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
    data = DataSection(train=str(path), validation=str(test), test=str(test))
    headline, *problems = error_of(data).split("\n")
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
    message = error_of(section(path))
    assert f"{path}:5: empty text" in message
    assert f"{path}:6: no label (found '')" in message


def test_csv_rows_with_too_many_fields(tmp_path: Path) -> None:
    # pandas alone would take the first column for an index
    path = write(tmp_path / "a.csv", "text,label\na, b,x\nc, d,y\n")
    assert f"{path}:2: 3 fields, expected 2" in error_of(section(path))


def test_csv_with_an_open_quote(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,label\n"open,x\nb,y\n')
    assert f"{path}: cannot be read" in error_of(section(path))


def test_the_first_ten_bad_rows_and_their_number(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "", "label": "x"}] * 25)
    good = write_jsonl(tmp_path / "b.jsonl", toy_rows(6, 0))
    data = DataSection(train=str(good), validation=str(path), test=str(good))
    headline, *problems = error_of(data).split("\n")
    assert headline == "25 bad rows; the first 10:"
    assert problems == [f"  {path}:{line}: empty text" for line in range(1, 11)]


def test_unknown_labels(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "a.jsonl", toy_rows(6, 0))
    test = write_jsonl(tmp_path / "b.jsonl", [*toy_rows(2, 1), {"text": "a", "label": "aminal"}])
    assert f"{test}:3: unknown label 'aminal'" in error_of(section(train, test))
    assert f"{train}:1: unknown label 'animal'" in error_of(section(train), labels=("food", "vehicle"))
    assert load(section(train), labels=("vehicle", "food", "animal")).labels == ("vehicle", "food", "animal")


def test_one_label_is_too_few(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": "x"}])
    assert "one label only, 'x'" in error_of(section(path))


def test_a_directory_of_a_hub_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    for name in ("train", "test"):
        write_jsonl(folder / f"{name}.jsonl", toy_rows(30, 0))
    data = DataSection(hub=str(folder), train="train", test="test")
    loaded = load(data)
    assert [row["text"] for row in toy_rows(30, 0)] == [one.text for one in loaded.test.inputs]
    assert (len(loaded.train), len(loaded.validation)) == (27, 3)
    assert not (tmp_path / "cache").exists()
    assert f"{folder}[dev]: cannot be loaded" in error_of(data.model_copy(update={"validation": "dev"}))
    assert f"{folder}[train]: no column 'txt'" in error_of(data.model_copy(update={"text_column": "txt"}))


def test_a_hub_data_set_by_id_with_named_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    asked = []

    def load_dataset(hub: str, *, name: str | None, split: str, **_: object) -> datasets.Dataset:
        asked.append((hub, name, split))
        return datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0 if split == "train" else -1]}, features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = DataSection(hub="owner/set", hub_config="en", train="train", validation="train", test="train")
    assert load(data).train.labels == ["yes", "no"]
    assert set(asked) == {("owner/set", "en", "train")}
    assert "owner/set[hidden]:2: no label" in error_of(data.model_copy(update={"test": "hidden"}))


def test_local_files_leave_nothing_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for suffix in (".csv", ".jsonl", ".parquet"):
        load(section(write_rows(tmp_path, suffix)))
    assert not (tmp_path / "cache").exists()


def test_stratified_split_is_seeded_and_in_proportion(tmp_path: Path) -> None:
    labels = ["a"] * 100 + ["b"] * 50 + ["c"] * 7 + ["d"]
    chosen = stratified_split(labels, 0.1, seed=3)
    assert chosen == stratified_split(labels, 0.1, seed=3) != stratified_split(labels, 0.1, seed=4)
    counts = Counter(labels[row] for row in chosen)
    assert sum(counts.values()) == round(len(labels) * 0.1)
    assert (counts["a"], counts["b"], counts["d"]) == (10, 5, 0)
    # many small labels: not one of them is owed a whole row, and yet a tenth is chosen
    small = [str(label) for label in range(40) for _ in range(3)]
    assert len(stratified_split(small, 0.1, seed=0)) == 12

    path = write_jsonl(tmp_path / "a.jsonl", toy_rows(60, 0))
    data = DataSection(train=str(path), test=str(path), validation_fraction=0.2)
    loaded = load(data)
    assert Counter(loaded.validation.labels) == {"animal": 4, "food": 4, "vehicle": 4}
    texts = [one.text for one in [*loaded.train.inputs, *loaded.validation.inputs]]
    assert sorted(texts) == sorted(row["text"] for row in toy_rows(60, 0))


def test_every_label_once_leaves_nothing_for_validation(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}])
    assert "every label has one row" in error_of(DataSection(train=str(path), test=str(path)))


def test_the_fingerprint_knows_content_columns_split_and_labels(tmp_path: Path) -> None:
    rows = [{"text": row["text"], "other": row["text"] + "!", "label": row["label"]} for row in toy_rows(30, 0)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    base = DataSection(train=str(path), test=str(path))
    plain = load(base).fingerprint
    assert load(base).fingerprint == plain
    others = [
        load_data(base, seed=2, labels=None),
        load(base, labels=("vehicle", "food", "animal")),
        load(base.model_copy(update={"text_column": "other"})),
        load(base.model_copy(update={"text_pair_column": "other"})),
        load(base.model_copy(update={"validation_fraction": 0.5})),
    ]
    write_jsonl(path, [*rows[:-1], rows[-1] | {"text": "changed"}])
    others.append(load(base))
    assert len({plain, *(other.fingerprint for other in others)}) == len(others) + 1


def test_json_lines_are_cut_at_line_feeds_only(tmp_path: Path) -> None:
    texts = ["a\u2028b", "c\u2029d", "e\u0085f", "g\x0bh\x0ci"]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": t, "label": t[0]}, ensure_ascii=False) + "\n" for t in texts))
    assert [one.text for one in load(section(path)).train.inputs] == texts
