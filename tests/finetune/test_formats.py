import json
from pathlib import Path
from typing import Any

import pytest

from finetune.formats import read_conll, read_squad
from finetune.reading import format_of
from finetune.rows import Columns, Table
from tasks.base import Fields
from tasks.errors import DataError
from tests.finetune.data_files import write

WORDS = (Fields(("words", "tags")),)
QUESTIONS = (Fields(("question", "context", "answers"), ("id", "is_impossible")),)


def conll(folder: Path, content: str, **named: str) -> Table:
    return read_conll(write(folder / "a.conll", content), Columns(WORDS, named))


def sentences(table: Table) -> list[list[str]]:
    assert not table.problems
    pairs = [zip(row.values["words"], row.values["tags"], strict=True) for row in table.rows]
    return [[f"{word}/{tag}" for word, tag in pair] for pair in pairs]


def test_suffixes_tell_the_formats() -> None:
    assert [format_of(Path(f"a{suffix}")) for suffix in (".conll", ".iob2", ".bio", ".JSON")] == ["conll"] * 3 + [
        "squad"
    ]


def test_four_columns_of_conll_2003_with_document_marks(tmp_path: Path) -> None:
    content = (
        "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG \nrejects VBZ B-VP O\n\n-DOCSTART- -X- O O\nPeter NNP B-NP B-PER\n"
    )
    table = conll(tmp_path, content)
    assert sentences(table) == [["EU/B-ORG", "rejects/O"], ["Peter/B-PER"]]
    assert [row.place.rpartition(":")[2] for row in table.rows] == ["3", "7"]
    assert sentences(conll(tmp_path, content, words="1", tags="-2")) == [["NNP/B-NP", "VBZ/B-VP"], ["NNP/B-NP"]]


def test_comments_of_conll_u_are_skipped_and_a_hash_may_be_a_word(tmp_path: Path) -> None:
    universal = "# newdoc id = 1\n# text = # 1 of us\n1\t#\tO\n2\t1\tB-x\n\n# text = two\n1\ttwo\tB-x\n"
    assert sentences(conll(tmp_path, universal, words="1")) == [["#/O", "1/B-x"], ["two/B-x"]]
    plain = "# O\nbig B-x\n# O\n\n# O\n\n# a comment of many words\n#tag O\n"
    assert sentences(conll(tmp_path, plain)) == [["#/O", "big/B-x", "#/O"], ["#/O"], ["#tag/O"]]


def test_words_with_spaces_and_invisible_words_between_tabs(tmp_path: Path) -> None:
    content = "New York\tB-x\r\n\u00a0\tO\r\n\u200b\tO\r\n\u2028\tO\r\n\t\r\n \tO\r\n\tO\r\nend\tO"
    assert sentences(conll(tmp_path, content)) == [
        ["New York/B-x", "\u00a0/O", "\u200b/O", "\u2028/O"],
        [" /O", "/O", "end/O"],
    ]


def test_a_byte_order_mark_and_runs_of_spaces(tmp_path: Path) -> None:
    assert sentences(conll(tmp_path, "\ufeff  a   O\nb\t \tO\n")) == [["a/O", "b/O"]]


def test_broken_lines_are_named_and_their_sentences_left_out(tmp_path: Path) -> None:
    table = conll(tmp_path, "a O\nb\n\nc O\n\nd O\n# no comment here\ne B - x\n")
    path = tmp_path / "a.conll"
    assert [row.values["words"] for row in table.rows] == [["c"]]
    assert list(map(str, table.problems)) == [
        f"{path}:2: 1 columns, expected 2",
        f"{path}:7: 4 columns, expected 2",
        f"{path}:8: 4 columns, expected 2",
    ]


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column '2'; found '0', '1', '-2', '-1'"):
        conll(tmp_path, "a O\n", words="2")
    with pytest.raises(DataError, match="no column '0', '-1'; found none"):
        conll(tmp_path, "\n\n-DOCSTART- O\n\n# \n")


def squad(folder: Path, content: Any, **named: str) -> Table:
    text = content if isinstance(content, str) else json.dumps(content)
    return read_squad(write(folder / "a.json", text), Columns(QUESTIONS, named))


def test_questions_of_both_squad_versions(tmp_path: Path) -> None:
    answer = {"text": "Ann", "answer_start": 5}
    asked = [
        {"id": "q1", "question": "Who?", "answers": [answer, answer]},
        {"id": "q2", "question": "Why?", "answers": [], "is_impossible": True, "plausible_answers": [answer]},
        {"question": "Where?", "answers": []},
    ]
    article = {"title": "t", "paragraphs": [{"context": "Then Ann came.", "qas": asked}, {"context": "x", "qas": []}]}
    table = squad(tmp_path, {"version": "v2.0", "data": [{"title": "s", "paragraphs": []}, article]})
    path = tmp_path / "a.json"
    assert [row.place for row in table.rows] == [f"{path}:q1", f"{path}:q2", f"{path}:data[1].paragraphs[0].qas[2]"]
    assert table.rows[0].values == {"question": "Who?", "context": "Then Ann came.", "answers": [answer, answer]}
    assert [row.values["answers"] for row in table.rows[1:]] == [[], []]
    named = squad(tmp_path, {"data": [article]}, is_impossible="is_impossible")
    assert [row.values["is_impossible"] for row in named.rows] == [None, True, None]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"question": 1}\n{"question": 2}\n', 'not valid JSON: .*; JSON Lines need data.format = "jsonl"'),
        ("[" * 100_000, "not valid JSON: nested too deep"),
        ([], "a.json:data: expected a list, as SQuAD nests"),
        ({"data": [{"paragraphs": [{"context": "c"}]}]}, r"a.json:data\[0\].paragraphs\[0\].qas: expected a list"),
        ({"data": [[]]}, r"a.json:data\[0\]: expected a JSON object, found list"),
        ({"data": [{"paragraphs": [{"context": "c", "qas": [{"question": "q"}]}]}]}, "no column 'answers'; found"),
    ],
)
def test_files_that_are_not_squad(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        squad(tmp_path, content)
