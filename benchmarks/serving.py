"""The service beside the `Predictor` that it holds, and beside BentoML's own batches, in one run.

    python -m benchmarks.serving build/banking77/bundle

Each round asks an in-process `Predictor`, the service and `benchmarks.peers.batchable` in turn, with the same texts and
threads; ratios are of the same round. The clients share the machine with the services. Writes `serving.json` and
`serving.md` under `--out`.
"""

import asyncio
import itertools
import multiprocessing
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import aiohttp
import click
import numpy as np
from pydantic import BaseModel, ConfigDict

from benchmarks.load import Round, read_texts, run_rounds, texts_option
from benchmarks.machine import machine_facts
from benchmarks.report import markdown_table
from benchmarks.services import OURS, running_service
from bundle import Predictor
from export.timing import Spread
from tasks.errors import ParitybitError

__all__ = ["InProcess", "Serving", "compare", "summarize"]

_PEER = "benchmarks.peers.batchable:Batchable"
_CHUNK = 512
"""Texts that the `Predictor` is given at once: it can sort them by length."""


class InProcess(BaseModel):
    """What a `Predictor` without a server did in a round: milliseconds of single texts, texts a second in bulk."""

    model_config = ConfigDict(frozen=True)

    ms: tuple[float, ...]
    texts_per_s: float


class Saturation(BaseModel):
    """The services when many ask: `texts` a request, `clients` at once."""

    model_config = ConfigDict(frozen=True)

    clients: int
    texts: int
    in_process: Spread
    ours: Spread
    batchable: Spread
    ours_to_in_process: Spread
    ours_to_batchable: Spread
    errors: int


class Serving(BaseModel):
    """`serving.json`.

    Attributes:
        threads: of each engine.
        p50_ms: of one client's requests of one text: in-process, ours and batchable.
        added_p50_ms: ours less in-process, by round.
        saturation: texts a second, by form of the load.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    threads: int
    rounds: int
    p50_ms: dict[str, Spread]
    added_p50_ms: Spread
    saturation: tuple[Saturation, ...]
    machine: dict[str, str]


Seen = tuple[InProcess, list[Round], list[Round]]
"""Of one round: in-process, then the turns of ours and of the peer, in the same order."""


def compare(
    bundle: Path, texts: Sequence[str], logs: Path, *, loads: Sequence[tuple[int, int]], threads: int, seconds: float
) -> Generator[Seen]:
    """Runs rounds for ever; the services stop when the iterator is closed.

    Args:
        bundle: all answer with it.
        texts: asked over and over.
        logs: a directory, which gets what the services write.
        loads: clients, and texts of a request.
        threads: of each engine.
        seconds: that each turn takes.

    Raises:
        ParitybitError: if a service does not start.
        aiohttp.ClientError: if a service does not answer.
    """
    with ExitStack() as stack:
        services = [
            stack.enter_context(running_service(target, bundle, logs / log, PARITYBIT_THREADS=str(threads)))
            for target, log in ((OURS, "ours.log"), (_PEER, "batchable.log"))
        ]
        pool = stack.enter_context(ProcessPoolExecutor(1, multiprocessing.get_context("spawn")))
        while True:
            alone = pool.submit(_in_process, bundle, texts, threads, seconds).result()
            by_service: list[list[Round]] = [[], []]
            for clients, size in loads:
                asked = [list(texts[start : start + size]) for start in range(0, len(texts) - size + 1, size)]
                for service, turns in zip(services, by_service, strict=True):
                    turns.extend(
                        asyncio.run(run_rounds([service.address], asked, [clients], seconds=seconds, rounds=1))
                    )
            yield alone, by_service[0], by_service[1]


def summarize(name: str, seen: Sequence[Seen], loads: Sequence[tuple[int, int]], threads: int) -> Serving:
    """Spreads over rounds; the first of the loads is the one client with one text."""
    alone = [float(np.quantile(one.ms, 0.5)) for one, _, _ in seen]
    ours = [turns[0].quantile(0.5) for _, turns, _ in seen]
    return Serving(
        name=name,
        threads=threads,
        rounds=len(seen),
        p50_ms={
            "in-process": Spread.of(alone),
            "ours": Spread.of(ours),
            "batchable": Spread.of([turns[0].quantile(0.5) for _, _, turns in seen]),
        },
        added_p50_ms=Spread.of(np.subtract(ours, alone)),
        saturation=tuple(
            _saturation(seen, place, clients, size) for place, (clients, size) in enumerate(loads) if place > 0
        ),
        machine=machine_facts(),
    )


def _saturation(seen: Sequence[Seen], place: int, clients: int, size: int) -> Saturation:
    alone = np.array([one.texts_per_s for one, _, _ in seen])
    ours = np.array([turns[place].texts_per_s * size for _, turns, _ in seen])
    peer = np.array([turns[place].texts_per_s * size for _, _, turns in seen])
    return Saturation(
        clients=clients,
        texts=size,
        in_process=Spread.of(alone),
        ours=Spread.of(ours),
        batchable=Spread.of(peer),
        ours_to_in_process=Spread.of(ours / alone),
        ours_to_batchable=Spread.of(ours / peer),
        errors=sum(turns[place].errors for _, turns, _ in seen),
    )


_predictors: dict[tuple[Path, int], Predictor] = {}
"""Of the in-process worker, which is asked once a round."""


def _in_process(bundle: Path, texts: Sequence[str], threads: int, seconds: float) -> InProcess:
    predictor = _predictors.get((bundle, threads))
    if predictor is None:
        predictor = _predictors[bundle, threads] = Predictor.load(bundle, threads=threads)
        predictor.warm_up()
    ms = []
    waiting = itertools.cycle(texts)
    end = time.perf_counter() + seconds
    while (begin := time.perf_counter()) < end:
        predictor(next(waiting))
        ms.append((time.perf_counter() - begin) * 1000)
    chunks = itertools.cycle([list(texts[start : start + _CHUNK]) for start in range(0, len(texts), _CHUNK)])
    count, begin = 0, time.perf_counter()
    while time.perf_counter() < begin + seconds:
        chunk = next(chunks)
        predictor(chunk)
        count += len(chunk)
    return InProcess(ms=tuple(ms), texts_per_s=count / (time.perf_counter() - begin))


def markdown(found: Serving) -> str:
    """The tables for people."""
    added = found.added_p50_ms
    latency = [[who, f"{spread.median:.2f} ({spread.q1:.2f}–{spread.q3:.2f})"] for who, spread in found.p50_ms.items()]
    header = ["clients", "texts a request", "in-process", "ours", "batchable", "ours / in-process", "ours / batchable"]
    rows = [
        [
            str(one.clients),
            str(one.texts),
            *(f"{spread.median:.0f}" for spread in (one.in_process, one.ours, one.batchable)),
            *(f"{r.median:.2f} ({r.q1:.2f}–{r.q3:.2f})" for r in (one.ours_to_in_process, one.ours_to_batchable)),
        ]
        for one in found.saturation
    ]
    machine = ", ".join(f"{key} {value}" for key, value in found.machine.items())
    lines = [
        f"# {found.name}: the service, {found.threads} threads, {found.rounds} interleaved rounds",
        "",
        f"Machine: {machine}. Medians and quartiles over rounds; clients on the same processors.",
        "",
        "One client, one text a request:",
        "",
        *markdown_table(["", "p50, ms"], latency),
        "",
        f"The service adds {added.median:.2f} ms ({added.q1:.2f}–{added.q3:.2f}).",
        "",
        "Texts a second when many ask:",
        "",
        *markdown_table(header, rows),
    ]
    return "\n".join(lines) + "\n"


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True, file_okay=False))
@texts_option
@click.option("--threads", default=2, show_default=True, type=click.IntRange(min=1))
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(min=1))
@click.option("--seconds", default=3.0, show_default=True, help="Of each turn.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("benchmarks/results/serving"),
    show_default=True,
)
def main(bundle: Path, texts: Path, threads: int, rounds: int, seconds: float, out: Path) -> None:
    """Compares the service of BUNDLE with its Predictor and with a batchable endpoint of BentoML's."""
    loads = [(1, 1), (32, 1), (64, 1), (4, 32)]
    out.mkdir(parents=True, exist_ok=True)
    asked = read_texts(texts)
    rounds_seen = compare(bundle, asked, bundle.parent, loads=loads, threads=threads, seconds=seconds)
    try:
        next(rounds_seen)  # warms up
        seen = list(itertools.islice(rounds_seen, rounds))
        rounds_seen.close()
    except (aiohttp.ClientError, ParitybitError) as error:
        raise click.ClickException(str(error)) from None
    found = summarize(bundle.resolve().parent.name, seen, loads, threads)
    (out / "serving.json").write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
    (out / "serving.md").write_text(markdown(found), encoding="utf-8")
    click.echo(markdown(found))
    click.echo(found.model_dump_json())


if __name__ == "__main__":
    main()
