import asyncio
import json
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from bundle import Predictor, read_manifest
from serve.engine import DeadlineError, Engine, EngineError, StoppingError, open_engine
from serve.http import TooLargeError
from serve.queue import OverloadedError, Usage
from serve.settings import ServeSettings
from tasks import Encoded, TextInput, Window
from tasks.base import FloatArray
from tasks.errors import BundleError, InputError
from tests.bundles import TINY, seal, write_bundle


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy that a test may spoil."""
    yield Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def change_golden(bundle: Path, factor: float) -> None:
    """Scales all golden outputs and makes the checksums right again, as a build with another model would have."""
    path = bundle / "golden.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["outputs"] = [[factor * value for value in output] for output in row["outputs"]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    seal(bundle, read_manifest(bundle))


def test_it_answers_and_says_what_it_serves(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="bentoml.paritybit"):
        engine = open_engine(ServeSettings(bundle=bundle, threads=1))
    inputs = [TextInput("my card"), TextInput("lost", "card")]
    parameters = engine.predictor.parameters({"top_k": 2})
    assert asyncio.run(engine.answer(inputs, parameters)) == Predictor.load(bundle)(inputs, top_k=2)
    (line,) = caplog.messages
    assert f"serving tiny (single_label, fp32) of checkpoint cccccccccccc from {bundle} with 1 threads" in line


def test_other_answers_than_certified_are_refused(bundle: Path) -> None:
    change_golden(bundle, -1.0)
    with pytest.raises(BundleError, match="not served, 6 of 6 golden rows have another answer here than certified"):
        open_engine(ServeSettings(bundle=bundle))


def test_other_outputs_than_certified_are_refused(bundle: Path) -> None:
    change_golden(bundle, 1.01)
    with pytest.raises(BundleError, match=r"not served, the golden rows differ by .* here, certified is 1.00e-05"):
        open_engine(ServeSettings(bundle=bundle))


def test_a_changed_file_is_refused_by_name(bundle: Path) -> None:
    content = bytearray((bundle / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / "model.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.onnx: changed: its SHA-256"):
        open_engine(ServeSettings(bundle=bundle))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere niceness belongs to the whole process")
def test_only_the_session_s_own_threads_are_nice(tiny_bundle: Path) -> None:
    def threads() -> set[int]:
        return {int(path.name) for path in Path("/proc/self/task").iterdir()}

    before = threads()
    engine = open_engine(ServeSettings(bundle=tiny_bundle, threads=3))
    asyncio.run(engine.answer([TextInput("my card")], engine.predictor.parameters({})))

    def nice() -> int:
        return sum(niceness(thread) == 15 for thread in threads() - before)

    # the thread that opened the session is joined by then, but may not have come to its end
    deadline = time.monotonic() + 20
    while nice() > 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert nice() == 2, "the third is the engine's, which runs them"


def niceness(thread: int) -> int | None:
    try:
        return os.getpriority(os.PRIO_PROCESS, thread)
    except ProcessLookupError:
        return None


def test_an_error_in_the_thread_reaches_the_caller(bundle: Path) -> None:
    engine = open_engine(ServeSettings(bundle=bundle))
    with pytest.raises(InputError, match="input 0: expected Unicode text, got a lone surrogate"):
        asyncio.run(engine.answer([TextInput("\ud800")], engine.predictor.parameters({})))


class Held:
    """An engine whose micro-batches wait until they are let go, and are written down."""

    def __init__(self, bundle: Path, **settings: int) -> None:
        # whatever a busy machine takes for a micro-batch, only the limits that a test sets refuse
        self.engine = Engine(Predictor.load(bundle, threads=1), ServeSettings(**{"max_queue_ms": 60_000} | settings))
        self.parameters = self.engine.predictor.parameters({})
        self.batches: list[list[int]] = []
        self.go = threading.Event()
        self._run = self.engine.predictor.run_batch
        self.engine.predictor.run_batch = self._held  # type: ignore[method-assign]

    def _held(self, windows: Sequence[Window]) -> list[FloatArray]:
        self.batches.append([len(window) for window in windows])
        assert self.go.wait(10)
        return self._run(windows)

    def ask(self, *texts: str, timeout_s: float | None = None, usage: Usage | None = None) -> "asyncio.Task[Any]":
        inputs = [TextInput(text) for text in texts]
        return asyncio.create_task(self.engine.answer(inputs, self.parameters, timeout_s=timeout_s, usage=usage))

    async def running(self, batches: int = 1) -> None:
        """Returns when so many micro-batches have reached the engine."""
        while len(self.batches) < batches:
            await asyncio.sleep(0.001)

    async def queued(self, jobs: int) -> None:
        """Returns when so many requests wait behind the micro-batch that runs."""
        while len({place.job for place in self.engine._queue._waiting}) < jobs:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("task", TINY)
def test_answers_under_concurrency_equal_the_answers_alone(task: str, tmp_path: Path) -> None:
    write_bundle(tmp_path, task=task)
    predictor, golden = Predictor.load(tmp_path, threads=1), TINY[task].golden
    requests = [golden[start::stride] for stride in (1, 2, 3) for start in range(stride)] * 4

    async def all_at_once() -> list[list[Any]]:
        held = Held(tmp_path)
        run = held._run
        # float sums of the tiny graph depend on the company in their last bit, unlike those of a certified int8 graph
        held._run = lambda windows: [run([window])[0] for window in windows]
        asked = [asyncio.create_task(held.engine.answer(inputs, held.parameters)) for inputs in requests]
        await held.running()
        await held.queued(len(requests) - 1)
        held.go.set()
        answers = await asyncio.gather(*asked)
        assert max(map(len, held.batches)) > len(golden), "requests shared a micro-batch"
        return answers

    for inputs, answers in zip(requests, asyncio.run(all_at_once()), strict=True):
        assert answers == [predictor(one)[0] for one in inputs]


def test_what_waits_behind_a_run_shares_the_next_one(tiny_bundle: Path) -> None:
    async def several() -> list[Any]:
        held = Held(tiny_bundle)
        first = held.ask("lost")
        await held.running()
        others = [held.ask("card"), held.ask("my", "blocked"), held.ask("where is my card " * 20)]
        await held.queued(3)
        held.go.set()
        answers = await asyncio.gather(first, *others)
        assert held.batches == [[3], [3, 3, 3], [48]]
        return answers

    lost, card, two, _ = asyncio.run(several())
    predictor = Predictor.load(tiny_bundle, threads=1)
    assert [*lost, *card, *two] == [predictor([text])[0] for text in ("lost", "card", "my", "blocked")]


def test_a_bad_input_fails_alone_and_before_it_reaches_the_engine(tiny_bundle: Path) -> None:
    async def several() -> None:
        held = Held(tiny_bundle)
        held.go.set()
        good, bad = held.ask("lost"), held.ask("card", "\ud800")
        with pytest.raises(InputError, match="input 1: expected Unicode text"):
            await bad
        assert len(await good) == 1
        assert held.batches == [[3]]

    asyncio.run(several())


def test_an_engine_error_fails_only_the_requests_of_its_micro_batch(
    tiny_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def several() -> None:
        held = Held(tiny_bundle)
        run = held._run

        def fails_on_short(windows: Sequence[Window]) -> list[FloatArray]:
            if len(windows) > 1 and len(windows[0]) == 3:
                raise RuntimeError("a fault in a kernel")
            return run(windows)

        held._run = fails_on_short
        first = held.ask("lost")
        await held.running()
        # two share a micro-batch that fails, of which one has a long window too; a third has none in it
        hit = [held.ask("card"), held.ask("my", "where is my card " * 20)]
        spared = held.ask("what is the exchange rate today where is my card")
        await held.queued(3)
        held.go.set()
        found = await asyncio.gather(first, *hit, spared, return_exceptions=True)
        assert [type(one) for one in found] == [list, EngineError, EngineError, list]
        assert all(48 not in batch for batch in held.batches)
        assert len(await held.ask("blocked")) == 1

    asyncio.run(several())
    assert "a micro-batch of 2 windows" in caplog.text
    assert "a fault in a kernel" in caplog.text


def test_past_the_bound_a_request_is_refused_at_once_and_not_tokenized(tiny_bundle: Path) -> None:
    async def several() -> None:
        held = Held(tiny_bundle, max_queue_tokens=6)
        first = held.ask("lost")
        await held.running()
        second = held.ask("my", "card")
        await held.queued(1)
        tokenizer, held.engine.predictor.tokenizer = held.engine.predictor.tokenizer, None  # type: ignore[assignment]
        with pytest.raises(OverloadedError):
            await asyncio.wait_for(held.ask("blocked"), 1)
        held.engine.predictor.tokenizer = tokenizer
        held.go.set()
        assert [len(answers) for answers in await asyncio.gather(first, second)] == [1, 2]

    asyncio.run(several())


def test_only_so_many_requests_wait_to_be_tokenized(tiny_bundle: Path) -> None:
    async def seventy() -> list[type]:
        held = Held(tiny_bundle)
        task, hurry = held.engine.predictor.task, threading.Event()
        encode = task.encode

        def slow(*values: Any) -> Encoded:
            assert hurry.wait(10)
            return encode(*values)

        task.encode = slow  # type: ignore[method-assign]
        held.go.set()
        asked = [held.ask("lost") for _ in range(70)]
        await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        hurry.set()
        return [type(one) for one in await asyncio.gather(*asked, return_exceptions=True)]

    found = asyncio.run(seventy())
    assert found == [list] * 64 + [OverloadedError] * 6


def test_more_tokens_than_a_request_may_have_are_refused_before_they_are_queued(tiny_bundle: Path) -> None:
    async def two() -> None:
        held = Held(tiny_bundle, max_request_tokens=6)
        held.go.set()
        assert len(await held.ask("lost", "card")) == 2
        with pytest.raises(TooLargeError, match=r"^inputs: 9 tokens, at most 6 are taken \(PARITYBIT_MAX_REQUEST_T"):
            await held.ask("lost", "card", "my")
        assert len(held.batches) == 1

    asyncio.run(two())


def test_what_is_late_or_cancelled_does_not_reach_the_engine(tiny_bundle: Path) -> None:
    async def several() -> None:
        held = Held(tiny_bundle)
        first = held.ask("lost")
        await held.running()
        late, gone, good = held.ask("my card", timeout_s=0.05), held.ask("a card is lost"), held.ask("blocked")
        await held.queued(3)
        gone.cancel()
        with pytest.raises(DeadlineError, match=r"^not answered within 50 ms"):
            await late
        assert held.batches == [[3]], "the engine was busy all the time"
        held.go.set()
        await asyncio.gather(first, good)
        assert held.batches == [[3], [3]]

    asyncio.run(several())


def test_a_request_that_names_no_time_has_the_settings(tiny_bundle: Path) -> None:
    async def one() -> None:
        held = Held(tiny_bundle, timeout_ms=30)
        with pytest.raises(DeadlineError, match=r"^not answered within 30 ms"):
            await held.ask("lost")
        held.go.set()

    asyncio.run(one())


def test_a_stopping_engine_answers_what_it_took_and_takes_nothing_new(tiny_bundle: Path) -> None:
    async def several() -> None:
        held = Held(tiny_bundle)
        taken = [held.ask("lost"), held.ask("my card")]
        await held.running()
        await held.queued(1)
        held.engine.stop_taking()
        with pytest.raises(StoppingError, match="the server is stopping"):
            await held.ask("late")
        held.go.set()
        assert [len(answers) for answers in await asyncio.gather(*taken)] == [1, 1]

    asyncio.run(several())


def test_usage_and_metrics_say_what_was_run(tiny_bundle: Path) -> None:
    usages = [Usage(), Usage()]

    async def two() -> Held:
        held = Held(tiny_bundle)
        first = held.ask("lost", usage=usages[0])
        await held.running()
        second = held.ask("card", "my", "where is my card", usage=usages[1])
        await held.queued(1)
        await asyncio.sleep(0.05)
        held.go.set()
        await asyncio.gather(first, second)
        return held

    held = asyncio.run(two())
    assert [usage.tokens for usage in usages] == [3, 12]
    assert usages[0].wait_s < 0.05 <= usages[1].wait_s
    assert usages[0].engine_s >= 0.05
    seen = {
        sample.name: sample.value
        for metric in vars(held.engine.metrics).values()
        if hasattr(metric, "collect")
        for family in metric.collect()
        for sample in family.samples
        if not sample.labels
    }
    assert seen["paritybit_batch_tokens_sum"] == 15
    padded = sum(len(batch) * max(batch) for batch in held.batches[1:])
    assert seen["paritybit_batch_padding_ratio_sum"] == pytest.approx(1 - 12 / padded)
    assert seen["paritybit_batch_tokens_count"] == seen["paritybit_engine_seconds_count"] == len(held.batches) == 2
    assert seen["paritybit_queue_wait_seconds_count"] == 2
    assert seen["paritybit_queue_wait_seconds_sum"] == pytest.approx(sum(usage.wait_s for usage in usages))


def test_the_loop_is_not_blocked_while_the_engine_runs(tiny_bundle: Path) -> None:
    async def ticks() -> int:
        held = Held(tiny_bundle)
        asked = held.ask("lost")
        await held.running()
        count = 0
        while count < 20:
            await asyncio.sleep(0.001)
            count += 1
        assert not asked.done()
        held.go.set()
        await asked
        return count

    assert asyncio.run(ticks()) == 20
