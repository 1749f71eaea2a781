"""Fills the README's blocks that come from elsewhere: the measured table and the recipe keys.

python -m paritybit.readme          # writes them
python -m paritybit.readme build/banking77    # first takes that run's results as the committed ones
"""

import json
import shutil
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from benchmarks.report import BenchReport, tables
from finetune.recipe import Recipe
from paritybit.summary import summary_table
from tasks.catalogue import TASKS

__all__ = ["filled", "key_table", "take_results"]

RESULTS = Path("benchmarks/results/banking77")
_TAKEN = ("bench/bench.json", "bench/bench.png", "bench/bench.md", "bundle/certificate.json")


def filled(readme: str, root: Path) -> str:
    """The README with its generated blocks as they should be now."""
    blocks = {"measured": _measured(root / RESULTS), "keys": key_table()}
    for name, content in blocks.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        before, found, rest = readme.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"README.md: expected a block {begin} … {end}")
        readme = f"{before}{begin}\n{content}\n{end}{after}"
    return readme


def take_results(build: Path, root: Path) -> None:
    """Copies what a run measured to where the committed results stand."""
    (root / RESULTS).mkdir(parents=True, exist_ok=True)
    for name in _TAKEN:
        shutil.copyfile(build / name, root / RESULTS / Path(name).name)


def key_table() -> str:
    """Every recipe key with its type, default and meaning, as Markdown."""
    rows = "\n".join(
        f"| `{key}` | {kind} | {default} | {text} |" for key, kind, default, text in [*_keys(Recipe), *_option_keys()]
    )
    return f"| key | type | default | |\n|---|---|---|---|\n{rows}"


def _measured(results: Path) -> str:
    certificate = json.loads((results / "certificate.json").read_bytes())
    report = BenchReport.model_validate_json((results / "bench.json").read_bytes())
    facts = tables(report).partition("\n\n")[0].replace("\n", "; ")
    summary = "\n".join(f"    {line}".rstrip() for line in summary_table(certificate, report).splitlines())
    return (
        f"{summary}\n\n![Latency and throughput against PyTorch]({RESULTS.as_posix()}/bench.png)\n\n"
        f"Measured by `paritybit bench` after `finetune` and `export`: {facts}.\nThe figures with their spread are in "
        f"[`bench.md`]({RESULTS.as_posix()}/bench.md), the gates and the rows that changed in\n"
        f"[`certificate.json`]({RESULTS.as_posix()}/certificate.json)."
    )


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    for name, field in model.model_fields.items():
        section = _section(field.annotation)
        if isinstance(section, type) and issubclass(section, BaseModel):
            yield from _keys(section, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _kind(section), _default(field), (field.description or "").replace("|", "\\|")


def _section(annotation: object) -> object:
    """A section that may be missing as the section."""
    given = [one for one in typing.get_args(annotation) if one is not NoneType]
    optional = typing.get_origin(annotation) in (typing.Union, UnionType) and len(given) == 1
    return given[0] if optional and isinstance(given[0], type) and issubclass(given[0], BaseModel) else annotation


def _option_keys() -> Iterator[tuple[str, str, str, str]]:
    """The keys of `[options]`, each with the tasks that know it."""
    tasks: dict[tuple[str, str, str, str], list[str]] = {}
    for task in TASKS.values():
        for row in _keys(task.options, "options."):
            tasks.setdefault(row, []).append(task.name)
    for (key, kind, default, text), names in tasks.items():
        yield key, kind, default, f"{text} ({', '.join(names)})"


def _kind(annotation: object) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _kind(arguments[0])
    if origin is typing.Literal:
        return " \\| ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, UnionType):
        return " \\| ".join(_kind(one) for one in arguments if one is not NoneType)
    if origin is dict:
        return "table"
    if origin is tuple:
        return f"list of {_kind(arguments[0])}"
    return {str: "string", int: "integer", float: "number", bool: "boolean"}.get(typing.cast(type, annotation), "value")


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return ""
    if field.default is PydanticUndefined:
        return "required"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return "" if value is None else f"`{json.dumps(value)}`"


def main() -> None:
    """Writes the blocks, after taking a run's results when its folder is given."""
    root = Path(__file__).resolve().parents[1]
    if len(sys.argv) > 1:
        take_results(Path(sys.argv[1]), root)
    readme = root / "README.md"
    content = filled(readme.read_text(encoding="utf-8"), root)
    readme.write_text(content, encoding="utf-8")
    click.echo(f"{readme.name}: blocks written", err=True)


if __name__ == "__main__":
    main()
