"""Rows out of files and hub data sets, each with the place it came from.

Everything goes through the `datasets` library, streamed, so that local files leave nothing in a cache. JSON Lines are
read as lines and parsed here: `datasets`' own JSON reader infers types, and turns a column of dates into timestamps.
"""

import csv
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.recipe import Format
from tasks.errors import DataError

__all__ = ["Problem", "Row", "Table", "format_of", "read_file", "read_hub"]

_SUFFIXES: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
_SEPARATORS = {"csv": ",", "tsv": "\t"}


@dataclass(frozen=True, slots=True)
class Row:
    """The wanted columns of one row, in the order asked for; None where a value is missing."""

    place: str
    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one row; `place` is `file:line`."""

    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Table:
    """What a file gave: its readable rows, and what is wrong with the others."""

    rows: list[Row]
    problems: list[Problem]


def format_of(path: Path) -> Format:
    """The format that a file's suffix tells.

    Raises:
        DataError: for a suffix that tells none.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise DataError(f"{path}: unknown suffix {path.suffix!r}; expected {', '.join(_SUFFIXES)}, or set data.format")
    return _SUFFIXES[path.suffix.lower()]


def read_file(path: Path, file_format: Format, columns: Sequence[str]) -> Table:
    """Reads the named columns of a file.

    Raises:
        DataError: if the file is missing, empty, unreadable as a whole, or lacks a column.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: empty file; expected rows with {_listed(columns)}")
    if file_format != "parquet" and (broken := _encoding_problems(path)):
        return Table([], broken)
    with _quiet_datasets():
        table = _READERS[file_format](path, file_format, columns)
    if not table.rows and not table.problems:
        raise DataError(f"{path}: no rows; expected rows with {_listed(columns)}")
    return table


def read_hub(hub: str, config: str | None, split: str, columns: Sequence[str]) -> Table:
    """Reads the named columns of a split of a hub data set, or of a local directory of one.

    A hub data set is kept in the library's own cache; a local directory leaves nothing there.

    Raises:
        DataError: if the data set, its configuration, the split or a column is missing.
    """
    import datasets

    with _quiet_datasets(), tempfile.TemporaryDirectory() as folder:
        cache = folder if Path(hub).is_dir() else None
        try:
            dataset = datasets.load_dataset(
                hub, name=config, split=split, cache_dir=cache, keep_in_memory=cache is not None
            )
        except Exception as error:  # the library raises many unrelated types
            raise DataError(f"{hub}[{split}]: cannot be loaded: {_first_line(error)}") from None
        _check_columns(f"{hub}[{split}]", dataset.column_names, columns)
        values = [_named(dataset.features[column], list(dataset[column])) for column in columns]
    return Table([Row(f"{hub}[{split}]:{i}", row) for i, row in enumerate(zip(*values, strict=True), 1)], [])


def _read_json_lines(path: Path, _: Format, columns: Sequence[str]) -> Table:
    rows, problems, seen = [], [], dict.fromkeys(columns, False)
    first_keys: list[str] = []
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        entry = _json_object(line)
        if isinstance(entry, str):
            problems.append(Problem(f"{path}:{number}", entry))
            continue
        first_keys = first_keys or list(entry)
        for column in columns:
            seen[column] |= column in entry
        rows.append(Row(f"{path}:{number}", tuple(entry.get(column) for column in columns)))
    if rows and not all(seen.values()):
        _check_columns(str(path), [*first_keys, *(key for key in columns if seen[key])], columns)
    return Table(rows, problems)


def _lines(path: Path) -> Iterator[str]:
    """The lines of a file, cut at line feeds only; U+2028 may stand in a JSON string."""
    for table in _stream("text", path, encoding="utf-8-sig"):
        yield from table.column("text").to_pylist()


def _json_object(line: str) -> dict[str, Any] | str:
    """The object, or what is wrong with the line."""
    try:
        entry = json.loads(line)
    except ValueError as error:
        return f"not valid JSON: {error}"
    except RecursionError:
        return "not valid JSON: nested too deep"
    return entry if isinstance(entry, dict) else f"expected a JSON object, found {type(entry).__name__}"


def _read_separated(path: Path, file_format: Format, columns: Sequence[str]) -> Table:
    import datasets

    separator = _SEPARATORS[file_format]
    header, numbers, problems = _records(path, separator)
    _check_columns(str(path), header, columns)
    if problems:
        return Table([], problems)
    # every column as text: type inference would make 7 of 007, and nothing of NA
    features = datasets.Features({name: datasets.Value("string") for name in columns})
    options = {"sep": separator, "keep_default_na": False, "encoding": "utf-8-sig", "features": features}
    values: list[tuple[Any, ...]] = []
    for table in _stream("csv", path, **options):
        values.extend(zip(*(table.column(name).to_pylist() for name in columns), strict=True))
    exact = len(numbers) == len(values)
    places = [f"{path}:{number}" for number in numbers] if exact else _row_places(path, len(values))
    return Table([Row(place, row) for place, row in zip(places, values, strict=True)], [])


def _records(path: Path, separator: str) -> tuple[list[str], list[int], list[Problem]]:
    """The header of a file, the line on which each record after it begins, and the records that are too long.

    pandas would take the first column of a file of too long records for an index, and shift all others.
    """
    csv.field_size_limit(2**31 - 1)
    numbers, problems = [], []
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=separator)
        header = next((record for record in reader if _holds_something(record)), [])
        begin = reader.line_num + 1
        for record in reader:
            if len(record) > len(header):
                problems.append(Problem(f"{path}:{begin}", f"{len(record)} fields, expected {len(header)}"))
            if _holds_something(record):
                numbers.append(begin)
            begin = reader.line_num + 1
    return header, numbers, problems


def _holds_something(record: list[str]) -> bool:
    return len(record) > 1 or bool(record and record[0].strip())


def _read_parquet(path: Path, _: Format, columns: Sequence[str]) -> Table:
    import datasets

    tables = list(_stream("parquet", path))
    _check_columns(str(path), tables[0].column_names if tables else [], columns)
    features = datasets.Features.from_arrow_schema(tables[0].schema)
    values = [
        _named(features[name], [one for table in tables for one in table.column(name).to_pylist()]) for name in columns
    ]
    rows = list(zip(*values, strict=True))
    return Table([Row(place, row) for place, row in zip(_row_places(path, len(rows)), rows, strict=True)], [])


_READERS: dict[Format, Callable[[Path, Format, Sequence[str]], Table]] = {
    "csv": _read_separated,
    "tsv": _read_separated,
    "jsonl": _read_json_lines,
    "parquet": _read_parquet,
}


def _stream(builder: str, path: Path, **options: Any) -> Iterator[Any]:
    """Arrow tables of a local file, read without a cache."""
    import datasets

    with tempfile.TemporaryDirectory() as cache:
        try:
            dataset = datasets.load_dataset(
                builder, data_files=str(path), split="train", streaming=True, cache_dir=cache, **options
            )
            yield from dataset.with_format("arrow").iter(batch_size=100_000)
        except DataError:
            raise
        except Exception as error:  # pandas, pyarrow and the library raise unrelated types
            raise DataError(f"{path}: cannot be read: {_first_line(error)}") from None


def _named(feature: Any, values: list[Any]) -> list[Any]:
    """Class numbers as the names that the data set gives them; anything else as it is."""
    if not hasattr(feature, "int2str"):
        return values
    # -1 is the library's mark of a row without a label
    names = dict(enumerate(feature.names)) | {-1: None}
    return [names.get(value, value) for value in values]


def _encoding_problems(path: Path) -> list[Problem]:
    content = path.read_bytes()
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        pass
    else:
        return []
    problems = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            found = f"byte 0x{line[error.start]:02x} in column {error.start + 1}"
            problems.append(Problem(f"{path}:{number}", f"not valid UTF-8 ({found})"))
    return problems


def _check_columns(place: str, found: Sequence[str], wanted: Sequence[str]) -> None:
    for column in wanted:
        if column not in found:
            raise DataError(f"{place}: no column {column!r}; found {_listed(list(dict.fromkeys(found)))}")


def _row_places(path: Path, count: int) -> list[str]:
    return [f"{path}:row {number}" for number in range(1, count + 1)]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


@contextmanager
def _quiet_datasets() -> Iterator[None]:
    """Keeps the library's progress bars and log lines off the screen; errors are raised anyway."""
    import datasets

    bars, logger = datasets.are_progress_bars_disabled(), logging.getLogger("datasets")
    level = logger.level
    datasets.disable_progress_bars()
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
