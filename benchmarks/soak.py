"""A service asked without pause for a quarter of an hour, with texts of all lengths: does its memory stay?

    python -m benchmarks.soak build/banking77/bundle

Writes `soak.json` and `soak.md` under `--out`.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import numpy as np
from pydantic import BaseModel, ConfigDict

from benchmarks.load import read_texts, run_rounds, texts_option
from benchmarks.machine import machine_facts
from benchmarks.overload import memory_mb
from benchmarks.report import markdown_table
from benchmarks.services import OURS, running_service
from tasks.errors import ParitybitError

__all__ = ["Soak", "random_lengths", "soak", "table"]

_MOST_WORDS = 300
_SETTLED_S = 60.0


class Soak(BaseModel):
    """What was seen.

    Attributes:
        clients: that asked at once, one text a request.
        seconds: when the memory was read, since the first request.
        memory_mb: then, resident, of the service and its children.
        answers: with a 200 until then.
        errors: all others.
    """

    model_config = ConfigDict(frozen=True)

    bundle: str
    clients: int
    seconds: tuple[float, ...]
    memory_mb: tuple[float, ...]
    answers: tuple[int, ...]
    errors: int
    machine: dict[str, str]

    def settled(self) -> list[float]:
        """The memory after the first minute."""
        return [one for one, at in zip(self.memory_mb, self.seconds, strict=True) if at >= _SETTLED_S]

    def deviation(self) -> float:
        """How far it then went from its median at most, as a share of it."""
        middle = statistics.median(self.settled())
        return max(abs(one - middle) for one in self.settled()) / middle


def random_lengths(texts: Sequence[str], seed: int = 0) -> Iterator[str]:
    """Texts of one word to 300, of the words of real ones, without end."""
    words = " ".join(texts).split()
    generator = np.random.default_rng(seed)
    while True:
        # as many short as long ones, by the order of magnitude
        count = int(np.exp(generator.uniform(0, np.log(_MOST_WORDS))))
        begin = int(generator.integers(0, len(words) - count))
        yield " ".join(words[begin : begin + count])


def soak(bundle: Path, texts: Sequence[str], *, clients: int, seconds: float, every: float) -> Soak:
    """Starts the service, asks for so long and reads its memory every so often.

    Raises:
        ParitybitError: if the service does not start.
    """
    endless = random_lengths(texts)
    asked = [next(endless) for _ in range(20_000)]
    times: list[float] = []
    memory: list[float] = []
    answers: list[int] = []
    errors = 0
    with tempfile.TemporaryDirectory() as folder, running_service(OURS, bundle, Path(folder) / "log") as service:
        begin = time.perf_counter()
        while time.perf_counter() - begin < seconds:
            # other texts each time
            asked = asked[len(answers) + 1 :] + asked[: len(answers) + 1]
            (seen,) = asyncio.run(run_rounds([service.address], asked, [clients], seconds=every, rounds=1))
            times.append(round(time.perf_counter() - begin, 1))
            memory.append(round(memory_mb(service.process) or 0.0, 1))
            answers.append(len(seen.ms) + (answers[-1] if answers else 0))
            errors += seen.errors
            click.echo(f"{times[-1]:.0f} s: {memory[-1]:.0f} MB, {answers[-1]} answers, {errors} errors", err=True)
    return Soak(
        bundle=bundle.parent.name,
        clients=clients,
        seconds=tuple(times),
        memory_mb=tuple(memory),
        answers=tuple(answers),
        errors=errors,
        machine=machine_facts(),
    )


def table(found: Soak) -> str:
    """For people."""
    rows = [
        [f"{at / 60:.1f}", str(count), f"{memory:.1f}"]
        for at, count, memory in zip(found.seconds, found.answers, found.memory_mb, strict=True)
    ]
    step = max(1, len(rows) // 15)
    settled = found.settled()
    return "\n".join(
        [
            f"# {found.bundle}: memory of the service, {found.clients} clients, texts of 1 to {_MOST_WORDS} words",
            "",
            f"After the first minute {min(settled):.1f} to {max(settled):.1f} MB, at most {found.deviation():.1%} from "
            f"the median; {found.errors} errors in {found.answers[-1]:,} requests.",
            "",
            *markdown_table(["minute", "answers", "MB"], rows[::step]),
            "",
        ]
    )


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True, file_okay=False))
@texts_option
@click.option("--clients", default=4, show_default=True, type=click.IntRange(min=1))
@click.option("--minutes", default=15.0, show_default=True)
@click.option("--every", default=10.0, show_default=True, help="Seconds between two looks at the memory.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/serving"), show_default=True)
def main(bundle: Path, texts: Path, clients: int, minutes: float, every: float, out: Path) -> None:
    """Asks a service of BUNDLE for a quarter of an hour."""
    try:
        found = soak(bundle, read_texts(texts), clients=clients, seconds=minutes * 60, every=every)
    except ParitybitError as error:
        raise click.ClickException(str(error)) from None
    out.mkdir(parents=True, exist_ok=True)
    (out / "soak.json").write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
    (out / "soak.md").write_text(table(found), encoding="utf-8")
    click.echo(table(found))


if __name__ == "__main__":
    main()
