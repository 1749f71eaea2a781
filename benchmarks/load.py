"""Load on running services: closed-loop clients, each of which asks again as soon as it is answered.

    python -m benchmarks.load http://127.0.0.1:3000 http://127.0.0.1:3001

The services take turns in rounds, and every figure stands beside its ratio to the first service's in the same round:
the clients share the machine with them, so only the ratios say something. A table for people, then one line of JSON.
"""

import asyncio
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import aiohttp
import click
import numpy as np
from pydantic import BaseModel, ConfigDict, TypeAdapter

from benchmarks.report import markdown_table
from export.timing import Spread

__all__ = ["Load", "Round", "read_texts", "run_rounds", "summarize", "texts_option"]

_PAUSE_S = 0.3
"""Between two services: the threads of the one that was asked spin on for a moment."""


class Round(BaseModel):
    """What one service answered to a number of clients in one round.

    Attributes:
        service: its address.
        clients: how many asked at once.
        seconds: from the first request to the last answer.
        ms: milliseconds of each request that was answered with a 200.
        errors: requests that were answered with anything else.
    """

    model_config = ConfigDict(frozen=True)

    service: str
    clients: int
    seconds: float
    ms: tuple[float, ...]
    errors: int

    @property
    def texts_per_s(self) -> float:
        """Throughput; a request counts as one text."""
        return len(self.ms) / self.seconds

    def quantile(self, share: float) -> float:
        """Milliseconds that this share of the answers did not exceed."""
        return float(np.quantile(self.ms, share))


class Load(BaseModel):
    """One service under a number of clients over all rounds; ratios to the first service, round by round."""

    model_config = ConfigDict(frozen=True)

    service: str
    clients: int
    answers: int
    errors: int
    p50_ms: Spread
    p99_ms: Spread
    texts_per_s: Spread
    p50_ratio: Spread
    p99_ratio: Spread
    throughput_ratio: Spread


async def run_rounds(
    services: Sequence[str], texts: Sequence[str | list[str]], clients: Sequence[int], *, seconds: float, rounds: int
) -> list[Round]:
    """Asks each service in turn, with each number of clients, round after round.

    Args:
        services: addresses; the order is turned in every second round.
        texts: asked one a request, over and over; a list is asked in one request.
        clients: numbers of closed-loop clients.
        seconds: that each turn takes.
        rounds: how often all of it is done.

    Raises:
        aiohttp.ClientError: if a service cannot be reached.
    """
    seen = []
    for number in range(rounds):
        for count in clients:
            for service in services if number % 2 == 0 else reversed(services):
                seen.append(await _turn(service, itertools.cycle(texts), count, seconds))
                await asyncio.sleep(_PAUSE_S)
    return seen


def summarize(seen: Sequence[Round]) -> list[Load]:
    """One line for each service and number of clients, in the order in which they were asked first."""
    keys = dict.fromkeys((one.clients, one.service) for one in seen)
    first = seen[0].service
    return [
        _load(
            [one for one in seen if (one.clients, one.service) == (clients, service)],
            [one for one in seen if (one.clients, one.service) == (clients, first)],
        )
        for clients, service in keys
    ]


def read_texts(path: Path) -> list[str]:
    """The `text` of every row of a JSON Lines file, in an order that is always the same."""
    rows = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
    return [str(rows[index]) for index in np.random.default_rng(0).permutation(len(rows))]


def _load(own: Sequence[Round], first: Sequence[Round]) -> Load:
    pairs = list(zip(own, first, strict=True))
    return Load(
        service=own[0].service,
        clients=own[0].clients,
        answers=sum(len(one.ms) for one in own),
        errors=sum(one.errors for one in own),
        p50_ms=Spread.of([one.quantile(0.5) for one in own]),
        p99_ms=Spread.of([one.quantile(0.99) for one in own]),
        texts_per_s=Spread.of([one.texts_per_s for one in own]),
        p50_ratio=Spread.of([one.quantile(0.5) / other.quantile(0.5) for one, other in pairs]),
        p99_ratio=Spread.of([one.quantile(0.99) / other.quantile(0.99) for one, other in pairs]),
        throughput_ratio=Spread.of([one.texts_per_s / other.texts_per_s for one, other in pairs]),
    )


async def _turn(service: str, texts: Iterator[str | list[str]], clients: int, seconds: float) -> Round:
    begin = time.perf_counter()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=clients)) as session:
        asked = [_ask(session, service, texts, begin + seconds) for _ in range(clients)]
        found = list(itertools.chain.from_iterable(await asyncio.gather(*asked)))
    return Round(
        service=service,
        clients=clients,
        seconds=time.perf_counter() - begin,
        ms=tuple(ms for status, ms in found if status == 200),
        errors=sum(status != 200 for status, _ in found),
    )


async def _ask(
    session: aiohttp.ClientSession, service: str, texts: Iterator[str | list[str]], end: float
) -> list[tuple[int, float]]:
    """Status and milliseconds of each request of one client."""
    seen = []
    while (begin := time.perf_counter()) < end:
        async with session.post(f"{service}/predict", json={"inputs": next(texts)}) as response:
            await response.read()
        seen.append((response.status, (time.perf_counter() - begin) * 1000))
    return seen


def _table(loads: Sequence[Load]) -> str:
    header = ["clients", "service", "answers", "errors", "p50 ms", "×", "p99 ms", "×", "texts/s", "×"]
    rows = [
        [
            str(one.clients),
            one.service,
            str(one.answers),
            str(one.errors),
            f"{one.p50_ms.median:.1f}",
            _ratio(one.p50_ratio),
            f"{one.p99_ms.median:.1f}",
            _ratio(one.p99_ratio),
            f"{one.texts_per_s.median:.0f}",
            _ratio(one.throughput_ratio),
        ]
        for one in loads
    ]
    return "\n".join(markdown_table(header, rows))


def _ratio(spread: Spread) -> str:
    return f"{spread.median:.2f} ({spread.q1:.2f}–{spread.q3:.2f})"


texts_option = click.option(
    "--texts",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    default=Path("recipes/data/banking77/test.jsonl"),
    show_default=True,
    help="JSON Lines with a `text` each.",
)
"""What the commands that ask a service take their texts from."""


@click.command()
@click.argument("services", nargs=-1, required=True)
@texts_option
@click.option("--clients", multiple=True, type=click.IntRange(min=1), default=(1, 8, 32), show_default=True)
@click.option("--seconds", default=3.0, show_default=True, help="Of each service's turn.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(min=1))
def main(services: Sequence[str], texts: Path, clients: Sequence[int], seconds: float, rounds: int) -> None:
    """Asks SERVICES in turn and compares each with the first."""
    try:
        seen = asyncio.run(run_rounds(services, read_texts(texts), clients, seconds=seconds, rounds=rounds))
    except aiohttp.ClientError as error:
        raise click.ClickException(str(error)) from None
    loads = summarize(seen)
    click.echo(_table(loads))
    click.echo(TypeAdapter(list[Load]).dump_json(loads).decode())


if __name__ == "__main__":
    main()
