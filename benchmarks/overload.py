"""A service below and far beyond its saturation: open-loop clients, who ask at a rate whatever is answered.

    python -m benchmarks.overload http://127.0.0.1:3000 --process PID

First closed-loop clients find how much the service answers at most; then requests arrive as a Poisson process at 0.8
and at 3 times that rate. A table for people, then one line of JSON. The clients share the machine with the service, so
that beyond saturation they take from it, too; how late they asked stands beside the figures.
"""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import click
import numpy as np
import psutil
from pydantic import BaseModel, ConfigDict

from benchmarks.load import read_texts, run_rounds, texts_option
from benchmarks.machine import machine_facts
from benchmarks.report import markdown_table

__all__ = ["Arrivals", "Overload", "arrive", "measure", "memory_mb"]

_SATURATING_CLIENTS = 32
_CONNECTIONS = 1000
_PAUSE_S = 2.0


class Arrivals(BaseModel):
    """What became of requests that arrived at a rate.

    Attributes:
        rate: requests a second that were to arrive.
        seconds: from the first to the last answer.
        answers: how many were answered with each status; "none" where the connection broke.
        accepted_p50_ms, accepted_p99_ms: of those answered with a 200, from sending to the whole answer.
        refused_p99_ms, refused_max_ms: of those answered with a 429; None where there were none.
        late_p99_ms: how much later than planned the clients asked.
        memory_mb: of the service and its children, before, and the most while it was asked; None where not watched.
    """

    model_config = ConfigDict(frozen=True)

    rate: float
    seconds: float
    answers: dict[str, int]
    accepted_p50_ms: float
    accepted_p99_ms: float
    refused_p99_ms: float | None
    refused_max_ms: float | None
    late_p99_ms: float
    memory_mb: tuple[float, float] | None


class Overload(BaseModel):
    """All of it.

    Attributes:
        saturation: requests answered a second by closed-loop clients, at most.
        runs: by the share of the saturation.
    """

    model_config = ConfigDict(frozen=True)

    saturation: float
    runs: dict[str, Arrivals]
    machine: dict[str, str]


async def measure(
    service: str, texts: Sequence[str], *, shares: Sequence[float], seconds: float, process: int | None, seed: int = 0
) -> Overload:
    """Finds the saturation, then asks at each share of it.

    Args:
        service: its address.
        texts: asked one a request, over and over.
        shares: of the saturation.
        seconds: that requests arrive at each.
        process: id of the service's process, whose memory is watched with that of its children.
        seed: of the arrivals.

    Raises:
        aiohttp.ClientError: if the service cannot be reached.
    """
    rounds = await run_rounds([service], texts, [_SATURATING_CLIENTS], seconds=seconds / 4, rounds=3)
    saturation = max(one.texts_per_s for one in rounds[1:])  # the first warms up
    runs = {}
    for share in shares:
        await asyncio.sleep(_PAUSE_S)
        runs[f"{share:g}"] = await arrive(service, texts, saturation * share, seconds, process, seed)
    return Overload(saturation=saturation, runs=runs, machine=machine_facts())


async def arrive(
    service: str, texts: Sequence[str], rate: float, seconds: float, process: int | None = None, seed: int = 0
) -> Arrivals:
    """Sends requests as a Poisson process, each at its time whether or not others were answered.

    Args:
        service: its address.
        texts: asked one a request, over and over.
        rate: requests a second.
        seconds: that they arrive.
        process: whose memory is watched; None for nobody's.
        seed: of the arrivals.
    """
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(rate * seconds))
    asked: list[asyncio.Task[tuple[str, float]]] = []
    late = []
    before = memory_mb(process)
    most = before
    connector = aiohttp.TCPConnector(limit=_CONNECTIONS)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as session:
        begin = watched = time.perf_counter()
        for due, text in zip(begin + np.cumsum(gaps), itertools.cycle(texts)):
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            now = time.perf_counter()
            late.append((now - due) * 1000)
            asked.append(asyncio.create_task(_ask(session, service, text)))
            if before is not None and now - watched > 1:
                most, watched = max(most or 0.0, memory_mb(process) or 0.0), now
        seen = await asyncio.gather(*asked)
        elapsed = time.perf_counter() - begin
    accepted, refused = ([ms for status, ms in seen if status == wanted] for wanted in ("200", "429"))
    return Arrivals(
        rate=rate,
        seconds=elapsed,
        answers=dict(Counter(status for status, _ in seen)),
        accepted_p50_ms=float(np.quantile(accepted, 0.5)),
        accepted_p99_ms=float(np.quantile(accepted, 0.99)),
        refused_p99_ms=float(np.quantile(refused, 0.99)) if refused else None,
        refused_max_ms=max(refused, default=None),
        late_p99_ms=float(np.quantile(late, 0.99)),
        memory_mb=None if before is None or most is None else (before, most),
    )


async def _ask(session: aiohttp.ClientSession, service: str, text: str) -> tuple[str, float]:
    begin = time.perf_counter()
    try:
        async with session.post(f"{service}/predict", json={"inputs": text}) as response:
            await response.read()
            status = str(response.status)
    except (aiohttp.ClientError, TimeoutError):
        status = "none"
    return status, (time.perf_counter() - begin) * 1000


def memory_mb(process: int | None) -> float | None:
    """Resident memory of a process and its children."""
    if process is None:
        return None
    root = psutil.Process(process)
    return float(sum(one.memory_info().rss for one in (root, *root.children(recursive=True))) / 1e6)


def _table(found: Overload) -> str:
    header = [
        "× saturation",
        "requests/s",
        "answers",
        "p50 ms",
        "p99 ms",
        "429: p99 ms",
        "429: most ms",
        "asked late, p99 ms",
        "memory, MB",
    ]
    rows = [
        [
            share,
            f"{one.rate:.0f}",
            ", ".join(f"{count} × {status}" for status, count in sorted(one.answers.items())),
            f"{one.accepted_p50_ms:.1f}",
            f"{one.accepted_p99_ms:.1f}",
            "" if one.refused_p99_ms is None else f"{one.refused_p99_ms:.1f}",
            "" if one.refused_max_ms is None else f"{one.refused_max_ms:.1f}",
            f"{one.late_p99_ms:.1f}",
            "" if one.memory_mb is None else f"{one.memory_mb[0]:.0f}, then at most {one.memory_mb[1]:.0f}",
        ]
        for share, one in found.runs.items()
    ]
    return "\n".join([f"saturation: {found.saturation:.0f} requests/s", "", *markdown_table(header, rows)])


@click.command()
@click.argument("service")
@texts_option
@click.option("--share", "shares", multiple=True, type=float, default=(0.8, 3.0), show_default=True)
@click.option("--seconds", default=60.0, show_default=True, help="That requests arrive at each share.")
@click.option("--process", type=int, help="Id of the service's process, to watch its memory.")
def main(service: str, texts: Path, shares: Sequence[float], seconds: float, process: int | None) -> None:
    """Asks SERVICE below and beyond its saturation."""
    try:
        found = asyncio.run(measure(service, read_texts(texts), shares=shares, seconds=seconds, process=process))
    except (aiohttp.ClientError, psutil.Error) as error:
        raise click.ClickException(str(error)) from None
    click.echo(_table(found))
    click.echo(found.model_dump_json())


if __name__ == "__main__":
    main()
