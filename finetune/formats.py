"""The text formats of two fields: columns of words (CoNLL shared tasks) and questions on paragraphs (SQuAD)."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.rows import Columns, Problem, Row, Table, table_of
from tasks.errors import DataError

__all__ = ["read_conll", "read_squad"]

_CONLL_DEFAULTS = {"words": ("0",), "tags": ("-1",)}
_COMMENT = "# "
_NEW_DOCUMENT = "-DOCSTART-"


@dataclass(frozen=True, slots=True)
class _Layout:
    """How the lines of a file are cut: at tabs where its first word has one, so that words may hold spaces."""

    tabs: bool
    width: int

    @classmethod
    def of(cls, lines: Sequence[str]) -> "_Layout":
        """The layout of the first line that can be no comment."""
        words = (line for line in lines if line.strip(" \t") and not _starts_document(line))
        first = next((line for line in words if not line.startswith(_COMMENT)), None)
        if first is None:
            return cls(False, 0)
        tabs = "\t" in first
        return cls(tabs, len(cls(tabs, 0).cells(first)))

    def cells(self, line: str) -> list[str]:
        """The columns of a line."""
        return line.rstrip(" \t").split("\t") if self.tabs else re.split(r"[ \t]+", line.strip(" \t"))


def read_conll(path: Path, columns: Columns) -> Table:
    """One word a line in columns, an empty line after each sentence; a column's name is its number, from 0 or from -1.

    Lines whose first word is `-DOCSTART-` are left out. So are comments as CoNLL-U has them
    (universaldependencies.org/format.html): lines before the first word of a sentence that begin with `# `, unless
    they have as many columns as a word's line, since `#` may be a word.

    Raises:
        DataError: if a wanted column is missing.
    """
    lines = [line.rstrip("\r") for line in path.read_bytes().decode("utf-8-sig").split("\n")]
    layout = _Layout.of(lines)
    found = [str(number) for number in (*range(layout.width), *range(-layout.width, 0))]
    chosen = columns.find(str(path), found, _CONLL_DEFAULTS)
    rows, problems = [], []
    for sentence in _sentences(lines, layout):
        cells = [(number, layout.cells(line)) for number, line in sentence]
        broken = [
            Problem(f"{path}:{number}", f"{len(words)} columns, expected {layout.width}")
            for number, words in cells
            if len(words) != layout.width
        ]
        problems += broken
        if not broken:
            values = {field: [words[int(column)] for _, words in cells] for field, column in chosen.items()}
            rows.append(Row(f"{path}:{sentence[0][0]}", values))
    return Table(rows, problems)


def _sentences(lines: Sequence[str], layout: _Layout) -> Iterator[list[tuple[int, str]]]:
    """The numbered lines of each sentence."""
    sentence: list[tuple[int, str]] = []
    for number, line in enumerate([*lines, ""], start=1):
        if not line.strip(" \t") or _starts_document(line):
            if sentence:
                yield sentence
            sentence = []
        elif sentence or not line.startswith(_COMMENT) or len(layout.cells(line)) == layout.width:
            sentence.append((number, line))


def _starts_document(line: str) -> bool:
    return line.split()[:1] == [_NEW_DOCUMENT]


def read_squad(path: Path, columns: Columns) -> Table:
    """The questions of a file as SQuAD v1.1 and v2.0 nest them (rajpurkar.github.io/SQuAD-explorer).

    Raises:
        DataError: if the file is not JSON, is nested otherwise, or lacks a wanted column.
    """
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else error
        raise DataError(f'{path}: not valid JSON: {reason}; JSON Lines need data.format = "jsonl"') from None
    return table_of(str(path), list(_questions(path, content)), columns, [])


def _questions(path: Path, content: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    for article_place, article in _items(content, "data", f"{path}:"):
        for place, paragraph in _items(article, "paragraphs", f"{article_place}."):
            for question_place, question in _items(paragraph, "qas", f"{place}."):
                name = f"{path}:{question['id']}" if "id" in question else question_place
                yield name, {**question, "context": paragraph.get("context")}


def _items(entry: dict[str, Any], key: str, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    items = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(items, list):
        raise DataError(f"{place}{key}: expected a list, as SQuAD nests data, paragraphs and qas")
    for number, item in enumerate(items):
        if not isinstance(item, dict):
            raise DataError(f"{place}{key}[{number}]: expected a JSON object, found {type(item).__name__}")
        yield f"{place}{key}[{number}]", item
