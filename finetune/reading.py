"""Rows out of files and hub data sets, each with the place it came from.

Tables go through the `datasets` library, streamed, so that local files leave nothing in a cache. JSON Lines are read as
lines and parsed here: `datasets`' own JSON reader infers types, and turns a column of dates into timestamps.
"""

import csv
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from finetune.formats import read_conll, read_squad
from finetune.recipe import Format
from finetune.rows import Columns, Problem, Row, Table, table_of
from tasks.errors import DataError

__all__ = ["format_of", "read_file", "read_hub"]

_SUFFIXES: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".conll": "conll",
    ".iob2": "conll",
    ".bio": "conll",
    ".json": "squad",
}


def format_of(path: Path) -> Format:
    """The format that a file's suffix tells.

    Raises:
        DataError: for a suffix that tells none.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise DataError(f"{path}: unknown suffix {path.suffix!r}; expected {', '.join(_SUFFIXES)}, or set data.format")
    return _SUFFIXES[path.suffix.lower()]


def read_file(path: Path, file_format: Format, columns: Columns) -> Table:
    """Reads the wanted columns of a file.

    Raises:
        DataError: if the file is missing, empty, unreadable as a whole, or lacks a column.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: empty file; expected rows with {columns.wanted()}")
    if file_format != "parquet" and (broken := _encoding_problems(path)):
        return Table([], broken)
    with _quiet_datasets():
        table = _READERS[file_format](path, columns)
    if not table.rows and not table.problems:
        raise DataError(f"{path}: no rows; expected rows with {columns.wanted()}")
    return table


def read_hub(hub: str, config: str | None, split: str, columns: Columns) -> Table:
    """Reads the wanted columns of a split of a hub data set, or of a local directory of one.

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
        chosen = columns.find(f"{hub}[{split}]", dataset.column_names)
        values = {field: _named(dataset.features[column], list(dataset[column])) for field, column in chosen.items()}
        places = [f"{hub}[{split}]:{number}" for number in range(1, len(dataset) + 1)]
    return Table(_rows(places, values), [])


def _rows(places: Sequence[str], values: Mapping[str, Sequence[Any]]) -> list[Row]:
    """Rows of columns of equal length, by their fields."""
    return [
        Row(place, dict(zip(values, row, strict=True)))
        for place, row in zip(places, zip(*values.values(), strict=True), strict=True)
    ]


def _read_json_lines(path: Path, columns: Columns) -> Table:
    entries: list[tuple[str, dict[str, Any]]] = []
    problems = []
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        entry = _json_object(line)
        if isinstance(entry, str):
            problems.append(Problem(f"{path}:{number}", entry))
        else:
            entries.append((f"{path}:{number}", entry))
    return table_of(str(path), entries, columns, problems)


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


def _read_separated(path: Path, columns: Columns, separator: str) -> Table:
    import datasets

    header, numbers, problems = _records(path, separator)
    chosen = columns.find(str(path), header)
    if problems:
        return Table([], problems)
    # every column as text: type inference would make 7 of 007, and nothing of NA
    features = datasets.Features({name: datasets.Value("string") for name in chosen.values()})
    options = {"sep": separator, "keep_default_na": False, "encoding": "utf-8-sig", "features": features}
    values: dict[str, list[Any]] = {field: [] for field in chosen}
    for table in _stream("csv", path, **options):
        for field, column in chosen.items():
            values[field].extend(table.column(column).to_pylist())
    count = len(next(iter(values.values())))
    places = [f"{path}:{number}" for number in numbers] if len(numbers) == count else _row_places(path, count)
    return Table(_rows(places, values), [])


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


def _read_parquet(path: Path, columns: Columns) -> Table:
    import datasets

    tables = list(_stream("parquet", path))
    chosen = columns.find(str(path), tables[0].column_names if tables else [])
    features = datasets.Features.from_arrow_schema(tables[0].schema)
    values = {
        field: _named(features[column], [one for table in tables for one in table.column(column).to_pylist()])
        for field, column in chosen.items()
    }
    return Table(_rows(_row_places(path, sum(map(len, tables))), values), [])


_READERS: dict[Format, Callable[[Path, Columns], Table]] = {
    "csv": partial(_read_separated, separator=","),
    "tsv": partial(_read_separated, separator="\t"),
    "jsonl": _read_json_lines,
    "parquet": _read_parquet,
    "conll": read_conll,
    "squad": read_squad,
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
    convert = _converter(feature)
    return values if convert is None else [convert(value) for value in values]


def _converter(feature: Any) -> Callable[[Any], Any] | None:
    """What puts names for class numbers, also in lists and structures; None where there are none."""
    if hasattr(feature, "int2str"):
        # -1 is the library's mark of a row without a label
        names = dict(enumerate(feature.names)) | {-1: None}
        return lambda value: names.get(value, value)
    if isinstance(feature, dict):
        inner = {key: one for key, part in feature.items() if (one := _converter(part))}
        return (lambda value: value and value | {key: one(value[key]) for key, one in inner.items()}) if inner else None
    item = _converter(feature.feature) if hasattr(feature, "feature") else None
    return (lambda values: values and [item(value) for value in values]) if item else None


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


def _row_places(path: Path, count: int) -> list[str]:
    return [f"{path}:row {number}" for number in range(1, count + 1)]


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
