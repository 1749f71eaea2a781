"""Our int8 beside the usual recipe of optimum-onnx, OpenVINO with NNCF, and PyTorch.

python -m benchmarks.peers bert-base build/bert-base     # random weights, exported by the rows of BANKING77
python -m benchmarks.peers compare build/banking77 build/bert-base
python -m benchmarks.peers table                         # writes benchmarks/PEERS.md from the committed results

The peers' environments are built in build/peers, gigabytes of packages.
"""

import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import click

from benchmarks.peers.bert_base import write_bert_base
from benchmarks.peers.comparison import OURS, PeersReport, PeerTiming, compare
from benchmarks.report import markdown_table
from export.timing import Spread
from finetune.data import load_data
from finetune.recipe import load_recipe

__all__ = ["main", "table"]

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "peers"
TABLE = ROOT / "benchmarks" / "PEERS.md"
RECIPE = ROOT / "recipes" / "banking77.toml"

_RANDOM_ANSWERS = ("export.min_agreement=0.0", "export.max_metric_loss=1.0")
"""What answers of random weights are worth."""


@click.group()
def main() -> None:
    """Times a bundle's published variant beside other ways to int8."""


@main.command("bert-base")
@click.argument("folder", type=click.Path(path_type=Path))
def _bert_base(folder: Path) -> None:
    """Write a BERT-base with random weights into FOLDER/checkpoint, and export it."""
    write_bert_base(folder / "checkpoint", load_data(load_recipe(RECIPE)).spec.labels)
    sets = [part for one in (f'name="{folder.name}"', *_RANDOM_ANSWERS) for part in ("--set", one)]
    command = [sys.executable, "-m", "paritybit", "export", str(folder / "checkpoint"), "--recipe", str(RECIPE), *sets]
    sys.exit(subprocess.run(command, check=False).returncode)


@main.command("compare")
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--threads", multiple=True, type=click.IntRange(min=1), default=(1, 2), show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=9, show_default=True)
def _compare(folders: Sequence[Path], threads: Sequence[int], rounds: int) -> None:
    """Time the bundle of each folder beside the peers."""
    for folder in folders:
        found = compare(
            folder / "bundle",
            folder / "checkpoint",
            recipe=load_recipe(RECIPE),
            environments=ROOT / "build" / "peers",
            threads=threads,
            rounds=rounds,
            report=lambda line: click.echo(line, err=True),
        )
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{found.name}.json").write_text(found.model_dump_json(indent=2) + "\n", encoding="utf-8")
        click.echo("\n".join(_section(found)))
        click.echo(found.model_dump_json())


@main.command("table")
def _table() -> None:
    """Write benchmarks/PEERS.md from the results."""
    TABLE.write_text(table(RESULTS), encoding="utf-8")


_HEAD = """# Beside the peers

Written by `python -m benchmarks.peers table` from `benchmarks/results/peers`. The same checkpoint four times: the
bundle's published variant; optimum-onnx's export, `O2` and dynamic `avx512_vnni` int8, run by the same ONNX Runtime;
OpenVINO with NNCF's int8 for transformers, calibrated on the rows that ours was calibrated on; PyTorch. One process
each, rounds interleaved. ms is the median (quartiles) of a batch of texts × tokens; × says how many times as fast ours
was in the same round, above 1 where ours is faster.
"""


def table(results: Path) -> str:
    """`benchmarks/PEERS.md` from the committed results."""
    reports = [PeersReport.model_validate_json(path.read_bytes()) for path in sorted(results.glob("*.json"))]
    return "\n".join([_HEAD, *(line for one in reports for line in (*_section(one), ""))])


def _section(report: PeersReport) -> list[str]:
    machine = report.machine
    peers = ", ".join(pin.replace("==", " ") for pins in report.peers.values() for pin in pins)
    lines = [
        f"## {report.name}",
        "",
        f"{report.variant}; {machine['cpu']} ({machine['instruction_set']}), {report.rounds} interleaved rounds; "
        f"torch {machine['torch']}, onnxruntime {machine['onnxruntime']}; peers: {peers}.",
    ]
    for threads in dict.fromkeys(one.threads for one in report.timings):
        timings = [one for one in report.timings if one.threads == threads]
        lines += ["", f"{threads} thread{'s' if threads > 1 else ''}", "", *_rows(timings)]
    return lines


def _rows(timings: Sequence[PeerTiming]) -> list[str]:
    workloads = _distinct(one.workload for one in timings)
    by_place = {(one.engine, one.workload): one for one in timings}
    rows = []
    for engine in _distinct(one.engine for one in timings):
        row = [engine]
        for workload in workloads:
            one = by_place[engine, workload]
            row += [_spread(one.ms), "" if engine == OURS else _spread(one.ours_times_as_fast)]
        rows.append(row)
    return markdown_table(["engine", *(cell for name in workloads for cell in (f"{name}, ms", "×"))], rows)


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _spread(spread: Spread) -> str:
    return f"{spread.median:.2f} ({spread.q1:.2f}–{spread.q3:.2f})"


if __name__ == "__main__":
    main()
