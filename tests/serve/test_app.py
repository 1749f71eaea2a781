"""The application without a server: what only needs other settings, or an engine that is held up."""

import asyncio
import itertools
import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from serve.app import attach_engine, build_app, doorman_of
from serve.engine import open_engine
from serve.settings import ServeSettings
from tasks import Window
from tasks.base import FloatArray

SECRET = "my grandmother's card is lost"


class Service:
    """The application with an engine that may be held up, and what it logs."""

    def __init__(self, bundle: Path, **settings: Any) -> None:
        self.app = build_app()
        self.engine = open_engine(ServeSettings(bundle=bundle, threads=1, **settings))
        attach_engine(self.app, self.engine)
        self.client = TestClient(self.app, raise_server_exceptions=False)
        self.go = threading.Event()
        self.runs: list[int] = []
        self._run = self.engine.predictor.run_batch

    def hold(self) -> None:
        """From now on micro-batches wait for `go`."""
        self.engine.predictor.run_batch = self._held  # type: ignore[method-assign]

    def rejected(self, reason: str) -> float:
        """Of the metric."""
        return float(self.engine.metrics.rejected.labels(reason)._value.get())

    def _held(self, windows: Sequence[Window]) -> list[FloatArray]:
        self.runs.append(len(windows))
        assert self.go.wait(10)
        return self._run(windows)


@pytest.fixture
def service(tiny_bundle: Path) -> Service:
    return Service(tiny_bundle, max_text_chars=60_000, max_request_tokens=60, max_queue_tokens=12)


@pytest.fixture
def client(service: Service) -> TestClient:
    return service.client


class Lines(logging.Handler):
    """Keeps the access log's lines."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@pytest.fixture
def lines() -> Iterator[list[str]]:
    handler = Lines()
    logging.getLogger("paritybit.access").addHandler(handler)
    yield handler.texts
    logging.getLogger("paritybit.access").removeHandler(handler)


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.002)


def fill(service: Service, pool: ThreadPoolExecutor) -> list[Future[httpx.Response]]:
    """Two requests: one that runs and is held up, and one behind it with as many tokens as may wait."""
    service.hold()
    running = pool.submit(service.client.post, "/predict", json={"inputs": "lost"})
    eventually(lambda: service.runs == [1])
    waiting = pool.submit(service.client.post, "/predict", json={"inputs": ["where is my card", "lost card my way"]})
    eventually(lambda: len(service.engine._queue._waiting) == 2)
    return [running, waiting]


def test_50_000_characters_are_answered_when_allowed(client: TestClient) -> None:
    response = client.post("/predict", json={"inputs": ["where is my card " * 2942, "card"]})
    assert response.status_code == 200
    assert [answer["truncated"] for answer in response.json()["answers"]] == [True, False]


def test_an_unexpected_error_says_nothing_of_its_inside(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a secret path")

    monkeypatch.setattr(type(client.app.state.engine.predictor.task), "decode", broken)  # type: ignore[attr-defined]
    response = client.post("/predict", json={"inputs": "a"}, headers={"X-Request-Id": "a-1"})
    assert (response.status_code, response.json()) == (500, {"error": "an unexpected error; the server's log has it"})
    assert response.headers["x-request-id"] == "a-1"


def test_an_error_of_the_engine_is_a_500_that_says_nothing_of_its_inside(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a secret path")

    monkeypatch.setattr(client.app.state.engine.predictor, "run_batch", broken)  # type: ignore[attr-defined]
    response = client.post("/predict", json={"inputs": "a"})
    assert (response.status_code, response.json()) == (500, {"error": "the engine failed; the server's log has it"})


def test_a_request_of_too_many_tokens_is_a_413_that_names_the_variable(service: Service) -> None:
    assert service.client.post("/predict", json={"inputs": ["where is my card"] * 10}).status_code == 200
    response = service.client.post("/predict", json={"inputs": ["where is my card"] * 11})
    assert response.status_code == 413
    assert response.json()["error"] == "inputs: 66 tokens, at most 60 are taken (PARITYBIT_MAX_REQUEST_TOKENS)"
    assert service.rejected("too_large") == 1


def test_overload_is_a_429_at_once_with_a_time_to_come_back(service: Service) -> None:
    with ThreadPoolExecutor(2) as pool:
        asked = fill(service, pool)
        begin = time.monotonic()
        refused = service.client.post("/predict", json={"inputs": "blocked"})
        assert time.monotonic() - begin < 1
        assert (refused.status_code, service.rejected("overloaded")) == (429, 1)
        assert int(refused.headers["retry-after"]) >= 1
        assert "tokens wait, at most 12 may (PARITYBIT_MAX_QUEUE_TOKENS)" in refused.json()["error"]
        service.go.set()
        assert [one.result().status_code for one in asked] == [200, 200]
    assert service.client.post("/predict", json={"inputs": "blocked"}).status_code == 200


def test_the_doorman_refuses_questions_while_too_much_waits(service: Service, lines: list[str]) -> None:
    doorman = doorman_of(service.app)
    questions = [b"/predict", b"/predict?a=b", b"/", b"/v2/models/tiny/infer"]
    assert [doorman(b"POST", target) for target in questions] == [None] * 4
    with ThreadPoolExecutor(2) as pool:
        asked = fill(service, pool)
        refusing = [doorman(b"POST", target) for target in questions]
        assert [doorman(b"GET", b"/"), doorman(b"POST", b"/v2/models/other/infer"), doorman(b"POST", b"/ui")] == [
            None
        ] * 3
        for one in refusing:
            assert one is not None
            response = TestClient(one).post("/predict", headers={"X-Request-Id": "a-1"}, content=b"not read")
            assert (response.status_code, response.headers["x-request-id"]) == (429, "a-1")
            assert int(response.headers["retry-after"]) >= 1
        assert service.rejected("overloaded") == 4
        assert [json.loads(line)["status"] for line in lines] == [429] * 4
        service.app.state.keys = ("0" * 64,)
        assert refusing[0] is not None
        assert TestClient(refusing[0]).post("/predict").status_code == 401
        service.app.state.keys = ()
        service.go.set()
        assert [one.result().status_code for one in asked] == [200, 200]
    assert doorman(b"POST", b"/predict") is None


def test_before_there_is_an_engine_the_doorman_lets_all_pass() -> None:
    assert doorman_of(build_app())(b"POST", b"/predict") is None


def test_a_request_whose_time_is_over_is_a_504_and_never_runs(service: Service) -> None:
    with ThreadPoolExecutor(1) as pool:
        service.hold()
        first = pool.submit(service.client.post, "/predict", json={"inputs": "lost"})
        eventually(lambda: service.runs == [1])
        late = service.client.post("/predict", json={"inputs": "card"}, headers={"X-Request-Timeout-Ms": "40"})
        assert (late.status_code, service.rejected("deadline")) == (504, 1)
        assert late.json() == {"error": "not answered within 40 ms, the request's time"}
        service.go.set()
        assert first.result().status_code == 200
    assert service.client.post("/predict", json={"inputs": "blocked"}).status_code == 200
    assert service.runs == [1, 1]


def test_a_clock_that_jumps_by_days_changes_no_deadline(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    days, told = itertools.cycle([0, 86_400, -86_400]), time.time
    monkeypatch.setattr(time, "time", lambda: told() + next(days))
    for _ in range(6):
        kept = service.client.post("/predict", json={"inputs": "lost"}, headers={"X-Request-Timeout-Ms": "20000"})
        assert kept.status_code == 200
    with ThreadPoolExecutor(1) as pool:
        service.hold()
        first = pool.submit(service.client.post, "/predict", json={"inputs": "lost"})
        eventually(lambda: service.runs == [1])
        late = service.client.post("/predict", json={"inputs": "card"}, headers={"X-Request-Timeout-Ms": "40"})
        assert late.status_code == 504
        service.go.set()
        assert first.result().status_code == 200


def test_a_time_that_makes_no_sense_is_a_400(service: Service) -> None:
    response = service.client.post("/predict", json={"inputs": "a"}, headers={"X-Request-Timeout-Ms": "soon"})
    assert (response.status_code, service.rejected("invalid")) == (400, 1)
    assert response.json()["error"].startswith("header X-Request-Timeout-Ms: expected milliseconds")


def test_after_sigterm_a_new_request_is_a_503_and_the_server_drains(tiny_bundle: Path) -> None:
    drained: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: drained.append(number))
    try:
        service = Service(tiny_bundle)
        assert service.client.post("/predict", json={"inputs": "a"}).status_code == 200
        signal.raise_signal(signal.SIGTERM)
        response = service.client.post("/predict", json={"inputs": "a"})
        assert (response.status_code, service.rejected("stopping")) == (503, 1)
        assert drained == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_without_a_server_sigterm_stays_as_it_was(tiny_bundle: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    Service(tiny_bundle)
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_a_client_that_left_had_asked_does_not_run(service: Service, lines: list[str]) -> None:
    async def asked_and_gone() -> list[Any]:
        leave = asyncio.Event()
        body = [{"type": "http.request", "body": b'{"inputs": "my card"}', "more_body": False}]
        sent: list[Any] = []

        async def receive() -> Any:
            if body:
                return body.pop()
            await leave.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/predict", "headers": [], "query_string": b""}
        asking = asyncio.create_task(service.app({**scope, "app": service.app}, receive, send))
        while not service.engine._queue._waiting:
            await asyncio.sleep(0.001)
        leave.set()
        await asyncio.wait_for(asking, 5)
        return sent

    with ThreadPoolExecutor(1) as pool:
        service.hold()
        first = pool.submit(service.client.post, "/predict", json={"inputs": "lost"})
        eventually(lambda: service.runs == [1])
        asyncio.run(asked_and_gone())
        assert json.loads(lines[-1])["status"] == 499
        assert service.rejected("client_gone") == 1
        service.go.set()
        assert first.result().status_code == 200
    assert service.client.post("/predict", json={"inputs": "blocked"}).status_code == 200
    assert service.runs == [1, 1]


def test_the_access_log_is_json_of_what_was_used_and_never_of_the_text(service: Service, lines: list[str]) -> None:
    service.client.post("/predict", json={"inputs": [SECRET, "card"]}, headers={"X-Request-Id": "id-7:a.b_c"})
    service.client.post("/predict", json={"inputs": [SECRET, 7]})
    service.client.post("/", content=SECRET.encode())
    good, bad, worse = map(json.loads, lines)
    assert good.keys() == {"time", "request_id", "method", "path", "status", "ms", "tokens", "wait_ms", "engine_ms"}
    assert (good["request_id"], good["method"], good["path"], good["status"]) == ("id-7:a.b_c", "POST", "/predict", 200)
    assert good["tokens"] > 10
    assert 0 < good["wait_ms"] < good["ms"]
    assert 0 < good["engine_ms"] < good["ms"]
    assert [(line["status"], line["tokens"], line["engine_ms"]) for line in (bad, worse)] == [(400, 0, 0)] * 2
    assert bad["request_id"] != worse["request_id"]
    assert "grandmother" not in "".join(lines)


@pytest.mark.parametrize("sent", ["", "a b", "é", "x" * 129, 'a"b', "a\tb"])
def test_a_request_id_that_could_spoil_a_log_is_replaced(client: TestClient, sent: str) -> None:
    response = client.get("/model", headers={"X-Request-Id": sent.encode()})
    assert len(response.headers["x-request-id"]) == 32
    assert client.get("/model", headers={"X-Request-Id": "x" * 128}).headers["x-request-id"] == "x" * 128


def test_the_document_names_every_refusal_and_header(client: TestClient) -> None:
    operation = client.get("/docs.json").json()["paths"]["/predict"]["post"]
    assert operation["responses"].keys() == {"200", "400", "401", "413", "415", "429", "500", "503", "504"}
    assert [header["name"] for header in operation["parameters"]] == ["X-Request-Timeout-Ms", "X-Request-Id"]


def test_the_document_describes_the_task_of_the_bundle(client: TestClient) -> None:
    document = client.get("/docs.json").json()
    schemas = document["components"]["schemas"]
    assert schemas["SingleLabelParameters"]["properties"].keys() == {"top_k", "function_to_apply"}
    assert schemas["PredictRequest"]["properties"]["parameters"]["$ref"].endswith("/SingleLabelParameters")
    references = {line.split('"')[0] for line in json.dumps(document).split('"#/components/schemas/')[1:]}
    assert references <= schemas.keys()
    one = [{"type": "string"}, {"$ref": "#/components/schemas/TextInput"}]
    many = {"type": "array", "minItems": 1, "items": {"anyOf": one}}
    assert schemas["PredictRequest"]["properties"]["inputs"]["anyOf"] == [*one, many]
