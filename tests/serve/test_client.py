"""The Python clients: against answers made up here, against the application in this process, against a real server."""

import asyncio
import json
import pickle
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from bundle import Predictor
from serve.app import attach_engine, build_app
from serve.client import (
    AsyncClient,
    Client,
    ModelInfo,
    RefusedError,
    ServiceError,
    TooLateError,
    UnavailableError,
)
from serve.engine import Engine, open_engine
from serve.settings import ServeSettings
from tasks import ParitybitError, QuestionInput, TextInput, WordsInput
from tasks.errors import InputError
from tests.bundles import LABELS, TINY, write_bundle
from tests.serve.conftest import ROOT, SETTINGS, environment, serving

URL = "http://service:3000"
TEXTS = ["Where is my card?", "卡在哪里 💳", "I lost my card 👩‍👩‍👧‍👦", "blocked", "é́́ exchange rate", "today", "top up"]
Handler = Callable[[httpx.Request], httpx.Response]


class Blocking:
    """An AsyncClient, asked from outside of an event loop."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    def predict(self, *inputs: Any, **parameters: Any) -> Any:
        return asyncio.run(self._client.predict(*inputs, **parameters))

    def model(self) -> ModelInfo:
        return asyncio.run(self._client.model())

    def ready(self) -> bool:
        return asyncio.run(self._client.ready())


@pytest.fixture(params=["Client", "AsyncClient"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def client_of(kind: str, transport: Any, **options: Any) -> Client | Blocking:
    if kind == "Client":
        return Client(URL, transport=transport, **options)
    return Blocking(AsyncClient(URL, transport=transport, **options))


Connect = Callable[..., Client | Blocking]


@pytest.fixture
def connect(kind: str) -> Connect:
    """Makes a client of either kind whose requests a function answers."""
    return lambda handler, **options: client_of(kind, httpx.MockTransport(handler), **options)


class Clock:
    """Time that passes only when somebody sleeps, or when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []
        self.on_pause: Callable[[], None] = lambda: None

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1_700_000_000 + self.now

    def sleep(self, seconds: float) -> None:
        if seconds:
            self.pauses.append(seconds)
            self.on_pause()
        self.now += seconds

    async def sleep_async(self, seconds: float) -> None:
        self.sleep(seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clients' clock; their jitter is the most that it can be."""
    clock = Clock()
    monkeypatch.setattr("serve.client.time", clock)
    monkeypatch.setattr("serve.client.asyncio", SimpleNamespace(sleep=clock.sleep_async, timeout=asyncio.timeout))
    monkeypatch.setattr("serve.client.random", SimpleNamespace(uniform=lambda _, most: most))
    return clock


def echo(request: httpx.Request) -> httpx.Response:
    """A service that answers each input with itself."""
    asked = json.loads(request.content)
    return httpx.Response(200, json={"model": "m", "answers": [{"input": one} for one in asked["inputs"]]})


class Script:
    """Answers one request after the other as it was told, and echoes all that come later."""

    def __init__(self, *outcomes: httpx.Response | Exception) -> None:
        self.requests: list[httpx.Request] = []
        self._outcomes = list(outcomes)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        outcome = self._outcomes.pop(0) if self._outcomes else echo(request)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def refusal(status: int, line: str, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, json={"error": line}, headers=named)


# what is asked


def test_one_input_and_many_are_sent_as_a_list_with_their_parameters(connect: Connect) -> None:
    script = Script()
    client = connect(script)
    assert client.predict("a", top_k=3) == [{"input": "a"}]
    many = [TextInput("a", "b"), QuestionInput("q", "卡"), WordsInput(("my", "card")), {"text": "d"}, "e"]
    expected = [{"text": "a", "text_pair": "b"}, {"question": "q", "context": "卡"}, {"words": ["my", "card"]}, many[3]]
    assert client.predict(many) == [{"input": one} for one in [*expected, "e"]]
    first, second = (json.loads(request.content) for request in script.requests)
    assert first == {"inputs": ["a"], "parameters": {"top_k": 3}}
    assert second["parameters"] == {}
    assert {str(request.url) for request in script.requests} == {URL + "/predict"}
    assert script.requests[0].headers["content-type"] == "application/json"


def test_nothing_is_asked_about_no_inputs(connect: Connect) -> None:
    script = Script()
    assert connect(script).predict([]) == []
    assert script.requests == []


def test_more_texts_than_a_request_may_have_go_in_several_in_order(connect: Connect) -> None:
    script = Script()
    texts = [str(number) for number in range(10)]
    assert connect(script, max_texts=4).predict(texts) == [{"input": text} for text in texts]
    assert [len(json.loads(request.content)["inputs"]) for request in script.requests] == [4, 4, 2]
    assert len({request.headers["x-request-id"] for request in script.requests}) == 1


def test_an_api_key_is_a_bearer_token(connect: Connect) -> None:
    script = Script()
    connect(script, api_key="k-1_=").predict("a")
    connect(script).predict("a")
    assert script.requests[0].headers["authorization"] == "Bearer k-1_="
    assert "authorization" not in script.requests[1].headers


@pytest.mark.parametrize("key", ["", "my key", "secret\n", "schlüssel"])
def test_a_key_that_no_header_can_hold_is_refused_without_repeating_it(key: str) -> None:
    for make in (Client, AsyncClient):
        with pytest.raises(ParitybitError, match=r"^api_key: expected ASCII") as caught:
            make(URL, api_key=key)
        assert not key or key.strip() not in str(caught.value)


@pytest.mark.parametrize("url", ["127.0.0.1:3000", "ftp://service", "http://", "http://a:port", ""])
def test_an_url_that_can_be_none_is_refused(url: str) -> None:
    for make in (Client, AsyncClient):
        with pytest.raises(ParitybitError, match=re.escape(f"url {url!r}: ")):
            make(url)


def test_a_path_before_the_endpoints_is_kept_and_a_password_is_in_no_error() -> None:
    script = Script(refusal(400, "no"))
    with (
        Client("http://me:secret@Host:81/models/a/", transport=httpx.MockTransport(script)) as client,
        pytest.raises(RefusedError, match=r"^no \(400 from http://host:81, request \w{32}\)$"),
    ):
        client.predict("a")
    assert script.requests[0].url.path == "/models/a/predict"


@pytest.mark.parametrize("bad", ["\ud800", {"text": {1, 2}}])
def test_what_json_cannot_say_is_not_sent(connect: Connect, bad: Any) -> None:
    script = Script()
    with pytest.raises(InputError, match=r"^cannot be sent as JSON: "):
        connect(script).predict(["a", bad])
    with pytest.raises(InputError, match=r"^cannot be sent as JSON: "):
        connect(script).predict("a", top_k=float("nan"))
    assert script.requests == []


# what is asked again


def test_overload_and_lost_connections_are_asked_again_with_growing_pauses(connect: Connect, clock: Clock) -> None:
    script = Script(
        refusal(429, "overloaded"),
        refusal(503, "stopping"),
        httpx.ConnectError("refused"),
        httpx.ReadError(""),
        httpx.RemoteProtocolError("Server disconnected without sending a response."),
        httpx.ConnectTimeout(""),
        httpx.ProxyError("no way"),
        refusal(503, "stopping"),
    )
    assert connect(script).predict("a") == [{"input": "a"}]
    assert clock.pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])
    assert len({request.headers["x-request-id"] for request in script.requests}) == 1
    assert len({request.content for request in script.requests}) == 1


def test_the_jitter_is_full(connect: Connect, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    ceilings: list[float] = []

    def uniform(least: float, most: float) -> float:
        assert least == 0
        ceilings.append(most)
        return most / 4

    monkeypatch.setattr("serve.client.random", SimpleNamespace(uniform=uniform))
    connect(Script(*[refusal(429, "overloaded")] * 3)).predict("a")
    assert ceilings == pytest.approx([0.1, 0.2, 0.4])
    assert clock.pauses == pytest.approx([0.025, 0.05, 0.1])


def test_nobody_comes_back_before_the_server_said(connect: Connect, clock: Clock) -> None:
    date = formatdate(clock.time() + 2 + 10, usegmt=True)
    script = Script(
        refusal(429, "overloaded", retry_after="2"),
        refusal(503, "stopping", retry_after=date),
        refusal(503, "stopping", retry_after=formatdate(0, usegmt=True)),
        refusal(503, "stopping", retry_after="soon"),
    )
    connect(script).predict("a")
    assert clock.pauses == pytest.approx([2.1, 10 - 0.1 + 0.2, 0.4, 0.8])


@pytest.mark.parametrize("seconds", ["30", "9" * 400])
def test_when_the_server_wants_more_time_than_is_left_nobody_waits(
    connect: Connect, clock: Clock, seconds: str
) -> None:
    script = Script(refusal(429, "overloaded: 9 tokens wait", retry_after=seconds, x_request_id="of-the-server"))
    with pytest.raises(UnavailableError) as caught:
        connect(script, timeout_s=30).predict("a")
    assert str(caught.value) == "overloaded: 9 tokens wait (429 from http://service:3000, request of-the-server)"
    assert (caught.value.status, caught.value.request_id) == (429, "of-the-server")
    assert clock.pauses == []


def test_all_attempts_end_with_the_callers_time_and_tell_the_server_what_is_left(
    connect: Connect, clock: Clock
) -> None:
    script = Script(*[refusal(503, "stopping")] * 99)
    with pytest.raises(UnavailableError, match=r"^stopping "):
        connect(script, timeout_s=99).predict("a", timeout_s=12)
    assert sum(clock.pauses) <= 12
    left = [int(request.headers["x-request-timeout-ms"]) for request in script.requests]
    assert left == pytest.approx([12000, 11900, 11700, 11300, 10500, 8900, 5700, 700], abs=1)
    limits = [request.extensions["timeout"] for request in script.requests]
    assert [limit["read"] for limit in limits] == pytest.approx([one / 1000 for one in left], abs=0.001)
    assert max(limit["connect"] for limit in limits) == 5


def test_a_time_that_is_over_between_two_requests_is_not_passed(connect: Connect, clock: Clock) -> None:
    def slow(request: httpx.Request) -> httpx.Response:
        clock.now += 6
        return echo(request)

    script = Script()
    client = connect(lambda request: (script(request), slow(request))[1], timeout_s=10, max_texts=1)
    with pytest.raises(TooLateError, match=r"^not answered within 10 s \(http://service:3000, request "):
        client.predict(["a", "b", "c"])
    assert len(script.requests) == 2
    with pytest.raises(TooLateError, match="not answered within 0 s"):
        client.predict("a", timeout_s=0)


def test_a_time_without_end_is_one(connect: Connect) -> None:
    script = Script()
    assert connect(script, timeout_s=float("inf")).predict("a") == [{"input": "a"}]
    assert len(script.requests[0].headers["x-request-timeout-ms"]) <= 10


def test_a_server_that_is_silent_is_left_when_the_time_is_over(connect: Connect, clock: Clock) -> None:
    def silent(request: httpx.Request) -> httpx.Response:
        clock.now += request.extensions["timeout"]["read"]
        raise httpx.ReadTimeout("timed out")

    with pytest.raises(TooLateError, match=r"^not answered within 7 s") as caught:
        connect(silent, timeout_s=7).predict("a")
    assert caught.value.status is None
    assert clock.pauses == []


def test_a_body_that_comes_byte_by_byte_does_not_stretch_the_time(clock: Clock) -> None:
    class Trickle(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            for _ in range(100):
                clock.now += 1
                yield b" "

    client = Client(URL, timeout_s=20, transport=httpx.MockTransport(lambda _: httpx.Response(200, stream=Trickle())))
    with pytest.raises(TooLateError):
        client.predict("a")
    assert clock.now == 1020


def test_in_asyncio_neither_silence_nor_single_bytes_stretch_the_time() -> None:
    class Trickle(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            while True:
                await asyncio.sleep(0.001)
                yield b" "

    async def trickle(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=Trickle())

    async def silent(_: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    async def ask(handler: Callable[[httpx.Request], Awaitable[httpx.Response]]) -> None:
        async with AsyncClient(URL, timeout_s=0.1, transport=httpx.MockTransport(handler)) as client:
            await client.predict("a")

    for handler in (trickle, silent):
        with pytest.raises(TooLateError, match=r"^not answered within 0\.1 s"):
            asyncio.run(ask(handler))


# what is an error


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (307, ServiceError),
        (400, RefusedError),
        (401, RefusedError),
        (404, RefusedError),
        (413, RefusedError),
        (500, ServiceError),
        (502, ServiceError),
        (504, TooLateError),
    ],
)
def test_other_statuses_are_errors_at_once(
    connect: Connect, clock: Clock, status: int, error: type[ServiceError]
) -> None:
    script = Script(refusal(status, "the server's\nline"))
    with pytest.raises(ServiceError) as caught:
        connect(script).predict("a")
    assert type(caught.value) is error
    assert (caught.value.status, caught.value.reason) == (status, "the server's line")
    assert caught.value.request_id == script.requests[0].headers["x-request-id"]
    assert caught.value.request_id in str(caught.value)
    assert (len(script.requests), clock.pauses) == (1, [])


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((502, "<html>"), "Bad Gateway"),
        ((599, '["a"]'), "an unknown status"),
        ((200, "<html>"), "the answer is not one of a paritybit service"),
        ((200, '{"answers": ["a"]}'), "the answer is not one of a paritybit service"),
        ((200, '{"answers": []}'), "0 answers to 1 inputs"),
        (httpx.LocalProtocolError("Illegal\nheader"), "Illegal header"),
        (httpx.DecodingError(""), "DecodingError"),
    ],
)
def test_what_no_paritybit_service_says_is_an_error_at_once(
    connect: Connect, clock: Clock, answer: tuple[int, str] | Exception, reason: str
) -> None:
    outcome = answer if isinstance(answer, Exception) else httpx.Response(answer[0], text=answer[1])
    with pytest.raises(ServiceError) as caught:
        connect(Script(outcome)).predict("a")
    assert (type(caught.value), caught.value.reason) == (ServiceError, reason)
    assert clock.pauses == []


def test_a_lost_connection_is_named(connect: Connect, clock: Clock) -> None:
    with pytest.raises(
        UnavailableError, match=r"^the connection failed: \[Errno 111\] Connection refused \(http://"
    ) as e:
        connect(Script(*[httpx.ConnectError("[Errno 111] Connection refused")] * 99)).predict("a")
    assert e.value.status is None
    with pytest.raises(UnavailableError, match=r"^the connection failed: ReadError "):
        connect(Script(*[httpx.ReadError("")] * 99)).predict("a")


def test_an_error_travels_between_processes() -> None:
    error = RefusedError("no", 400, "id", URL)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.status) == (
        RefusedError,
        "no (400 from http://service:3000, request id)",
        400,
    )


def test_ready_is_what_the_probe_says_and_asks_once(connect: Connect, clock: Clock) -> None:
    script = Script(httpx.Response(200, text="\n"), refusal(503, "stopping"), httpx.ConnectError("refused"))
    client = connect(script)
    assert [client.ready() for _ in range(3)] == [True, False, False]
    assert [request.url.path for request in script.requests] == ["/readyz"] * 3
    assert clock.pauses == []


def test_a_newer_server_may_say_more_of_its_model(connect: Connect, clock: Clock) -> None:
    known = dict.fromkeys(("name", "task", "default_variant", "checkpoint_digest", "verdict"), "a")
    said = known | {"labels": ["x"], "max_length": 8, "gates": {"agreement": 0.99}}
    model = connect(Script(refusal(503, "stopping"), httpx.Response(200, json=said))).model()
    assert (model.labels, model.max_length, model.model_extra) == (("x",), 8, {"gates": {"agreement": 0.99}})


# against the application


@pytest.fixture(scope="module")
def predictor(tiny_bundle: Path) -> Predictor:
    return Predictor.load(tiny_bundle, threads=1)


class Application:
    """The service's application in this process, asked by a client of either kind."""

    def __init__(self, kind: str, bundle: Path, **settings: int) -> None:
        self.engine: Engine = open_engine(ServeSettings(bundle=bundle, threads=1, **settings))
        self.app = build_app()
        self.asked: list[int] = []
        self._kind = kind
        attach_engine(self.app, self.engine)

    def client(self, **options: Any) -> Client | Blocking:
        return client_of(self._kind, self.transport, **options)

    @property
    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self._answer_async if self._kind == "AsyncClient" else self._answer)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self._note(request)
        browser = TestClient(self.app)
        seen = browser.request(request.method, request.url.path, content=request.content, headers=dict(request.headers))
        return httpx.Response(seen.status_code, headers=dict(seen.headers), content=seen.content)

    async def _answer_async(self, request: httpx.Request) -> httpx.Response:
        self._note(request)
        return await httpx.ASGITransport(self.app).handle_async_request(request)

    def _note(self, request: httpx.Request) -> None:
        self.asked += [len(json.loads(request.content)["inputs"])] if request.content else []


def test_answers_are_the_predictors(kind: str, tiny_bundle: Path, predictor: Predictor) -> None:
    client = Application(kind, tiny_bundle).client()
    assert client.predict("my card", top_k=2) == predictor("my card", top_k=2)
    inputs = [*TEXTS, TextInput("my card", "lost"), {"text": "blocked"}]
    assert client.predict(inputs, function_to_apply="none") == predictor(inputs, function_to_apply="none")


def test_the_served_model_is_named(kind: str, tiny_bundle: Path) -> None:
    model = Application(kind, tiny_bundle).client().model()
    assert (model.name, model.task, model.labels, model.max_length) == ("tiny", "single_label", LABELS, 48)
    assert (model.default_variant, model.checkpoint_digest, model.verdict) == ("fp32", "c" * 64, "pass")


def test_a_limit_of_texts_that_the_caller_does_not_know_is_found(
    kind: str, tiny_bundle: Path, predictor: Predictor
) -> None:
    application = Application(kind, tiny_bundle, max_texts=3)
    answers = application.client().predict(TEXTS, top_k=1)
    assert [one["labels"][0]["label"] for one in answers] == [
        predictor(text)[0]["labels"][0]["label"] for text in TEXTS
    ]
    assert application.asked == [7, 3, 3, 1]


@pytest.mark.parametrize("settings", [{"max_request_tokens": 60}, {"max_body_bytes": 300}])
def test_a_request_of_too_many_tokens_or_bytes_is_halved(
    kind: str, tiny_bundle: Path, settings: dict[str, int]
) -> None:
    application = Application(kind, tiny_bundle, **settings)
    texts = ["where is my card"] * 16
    assert len(application.client().predict(texts)) == 16
    assert application.asked == [16, 8, 8]


def test_a_single_input_that_is_too_large_is_refused(kind: str, tiny_bundle: Path) -> None:
    application = Application(kind, tiny_bundle, max_request_tokens=5)
    with pytest.raises(RefusedError, match=r"^inputs: 6 tokens, at most 5 are taken .* \(413 from "):
        application.client().predict(["lost", "lost", "where is my card"])
    assert application.asked == [3, 1, 1, 1]


@pytest.mark.parametrize(
    ("bad", "reason", "status"),
    [("", "the text is empty", 400), ("a" * 51, "51 characters, at most 50 are taken", 413)],
)
def test_a_bad_input_is_named_by_its_place_among_all(
    kind: str, tiny_bundle: Path, bad: str, reason: str, status: int
) -> None:
    application = Application(kind, tiny_bundle, max_text_chars=50)
    with pytest.raises(RefusedError, match=rf"^inputs\[5\]: {reason}") as caught:
        application.client(max_texts=2).predict([*TEXTS[:5], bad, *TEXTS])
    assert caught.value.status == status
    assert application.asked == [2, 2, 2]


def test_a_bad_parameter_is_the_servers_line(kind: str, tiny_bundle: Path) -> None:
    with pytest.raises(RefusedError, match=r"^parameter top_k: Input should be greater than or equal to 1 \(400 from "):
        Application(kind, tiny_bundle).client().predict("a", top_k=0)


def test_an_overloaded_service_answers_when_it_has_room_again(
    kind: str, tiny_bundle: Path, predictor: Predictor, clock: Clock
) -> None:
    application = Application(kind, tiny_bundle)

    def room() -> None:
        application.engine._encoding = 0

    application.engine._encoding, clock.on_pause = 64, room
    assert application.client().predict("my card") == predictor("my card")
    assert clock.pauses == pytest.approx([1.1])


def test_a_stopping_service_is_unavailable(kind: str, tiny_bundle: Path, clock: Clock) -> None:
    application = Application(kind, tiny_bundle)
    application.engine.stop_taking()
    with pytest.raises(UnavailableError, match=r"^the server is stopping; ask another one \(503 from "):
        application.client(timeout_s=1).predict("my card")
    assert len(application.asked) == 4


def test_many_tasks_share_an_asyncio_client(tiny_bundle: Path, predictor: Predictor) -> None:
    async def ask_all(transport: httpx.AsyncBaseTransport) -> list[Any]:
        async with AsyncClient(URL, transport=transport) as client:
            return await asyncio.gather(*(client.predict([text], top_k=1) for text in TEXTS * 4))

    answers = asyncio.run(ask_all(Application("AsyncClient", tiny_bundle).transport))
    expected = [predictor(text)[0]["labels"][0]["label"] for text in TEXTS * 4]
    assert [one[0]["labels"][0]["label"] for one in answers] == expected


@pytest.mark.parametrize("task", sorted(TINY.keys() - {"single_label"}))
def test_the_inputs_and_answers_of_every_task_travel(tmp_path: Path, task: str) -> None:
    write_bundle(tmp_path, task=task)
    application = Application("Client", tmp_path)
    inputs = [*TINY[task].golden]
    assert application.client().predict(inputs) == application.engine.predictor(inputs)


# against a server


@pytest.mark.real
def test_the_readmes_lines_ask_a_real_server_and_its_end_is_noticed(
    tiny_bundle: Path, predictor: Predictor, tmp_path: Path
) -> None:
    (block,) = re.findall(r"```python\n(from serve\.client .*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    with serving(tmp_path / "log", PARITYBIT_BUNDLE=str(tiny_bundle), **SETTINGS) as server:
        assert "http://127.0.0.1:3000" in block
        exec(compile(block.replace("http://127.0.0.1:3000", server.url), "README.md", "exec"), {})
        client = Client(server.url)
        texts = TEXTS * 5
        answers = client.predict(texts, top_k=1)
        assert [one["labels"][0]["label"] for one in answers] == [
            predictor(text)[0]["labels"][0]["label"] for text in texts
        ]
        assert client.ready()
        assert client.model().labels == LABELS
        with pytest.raises(RefusedError, match=r"^inputs\[9\]: the text is empty") as caught:
            client.predict([*TEXTS, "a", "b", ""])
        server.logged(f'"request_id": "{caught.value.request_id}"')
    assert not client.ready()
    with pytest.raises(UnavailableError, match=r"^the connection failed: "):
        client.predict("my card", timeout_s=3)
    client.close()


@pytest.mark.real
def test_a_caller_needs_nothing_of_the_server() -> None:
    script = """
import sys
import serve.client
heavy = {"torch", "transformers", "onnxruntime", "bentoml", "starlette", "bundle", "sklearn"}
print(sorted(heavy & {name.partition(".")[0] for name in sys.modules}))
"""
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
    )
    assert found.stdout == "[]\n"
