"""Open-loop load on a small real server."""

import asyncio
import os

import pytest
from aiohttp import web

from benchmarks.overload import Arrivals, Overload, arrive, measure

RATE = 200


async def asked(process: int | None = None) -> Arrivals:
    """One second of a server that answers two requests and then refuses one, slowly."""
    async with _Server() as url:
        return await arrive(url, ["a", "b"], RATE, 1.0, process)


class _Server:
    def __init__(self) -> None:
        self.seen: list[str] = []

    async def __aenter__(self) -> str:
        app = web.Application()
        app.router.add_post("/predict", self._predict)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0]
        return f"http://{host}:{port}"

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _predict(self, request: web.Request) -> web.Response:
        self.seen.append((await request.json())["inputs"])
        if len(self.seen) % 3:
            return web.Response()
        await asyncio.sleep(0.2)
        return web.Response(status=429)


def test_what_was_refused_is_told_apart_from_what_was_answered() -> None:
    arrivals = asyncio.run(asked())
    assert arrivals.answers == {"200": RATE - RATE // 3, "429": RATE // 3}
    assert arrivals.accepted_p50_ms < 200 <= (arrivals.refused_p99_ms or 0) <= (arrivals.refused_max_ms or 0)
    assert arrivals.seconds > 0.7
    assert arrivals.memory_mb is None


def test_memory_is_that_of_the_process_named() -> None:
    arrivals = asyncio.run(asked(os.getpid()))
    assert arrivals.memory_mb is not None
    before, most = arrivals.memory_mb
    assert 10 < before <= most


def test_the_rates_are_shares_of_what_closed_loop_clients_reached() -> None:
    async def run() -> Overload:
        async with _Server() as url:
            return await measure(url, ["a"], shares=[0.1, 0.2], seconds=0.4, process=None)

    found = asyncio.run(run())
    assert [found.runs[share].rate for share in ("0.1", "0.2")] == pytest.approx(
        [found.saturation * 0.1, found.saturation * 0.2]
    )
