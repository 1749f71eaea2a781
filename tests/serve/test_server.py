"""`bentoml serve` itself, over HTTP."""

import contextlib
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from prometheus_client.parser import text_string_to_metric_families

from bundle import Predictor
from tasks import TextInput
from tests.bundles import LABELS
from tests.serve.conftest import Server

TEXTS = ["Where is my card?", "卡在哪里 💳", "I lost my card 👩‍👩‍👧‍👦", "é́́\u0000\u200b", "𝕏 العربية"]


@pytest.fixture(scope="session")
def predictor(tiny_bundle: Path) -> Predictor:
    return Predictor.load(tiny_bundle)


def test_one_text(server: Server, predictor: Predictor) -> None:
    response = server.post("/predict", {"inputs": "Where is my card?", "parameters": {"top_k": 3}})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.json() == {"model": "tiny", "answers": predictor("Where is my card?", top_k=3)}
    assert len(response.json()["answers"][0]["labels"]) == 3


def test_many_texts_and_pairs_keep_their_order(server: Server, predictor: Predictor) -> None:
    inputs = [*TEXTS, {"text": "my card", "text_pair": "lost"}, {"text": "blocked"}]
    answers = server.post("/predict", {"inputs": inputs}).json()["answers"]
    expected = [*TEXTS, TextInput("my card", "lost"), TextInput("blocked")]
    for answer, alone in zip(answers, [predictor([one])[0] for one in expected], strict=True):
        assert [row["label"] for row in answer["labels"]] == [row["label"] for row in alone["labels"]]
        assert [row["score"] for row in answer["labels"]] == pytest.approx([row["score"] for row in alone["labels"]])


def test_escaped_and_plain_json_say_the_same(server: Server) -> None:
    plain, escaped = (json.dumps({"inputs": TEXTS}, ensure_ascii=ascii).encode() for ascii in (False, True))
    assert server.post("/predict", plain).json() == server.post("/predict", escaped).json()


def test_the_hugging_face_client_reads_it(server: Server, predictor: Predictor) -> None:
    client = InferenceClient(model=server.url)
    found = client.text_classification("Where is my card?", top_k=2)
    expected = predictor("Where is my card?", top_k=2)[0]["labels"]
    assert [(one.label, one.score) for one in found] == [(one["label"], one["score"]) for one in expected]
    raw = client.text_classification("lost", function_to_apply="none")
    assert {one.label for one in raw} == set(LABELS)
    scores = [one.score for one in raw]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) != pytest.approx(1.0)


def test_the_hugging_face_client_says_what_is_wrong(server: Server) -> None:
    with pytest.raises(HfHubHTTPError, match="parameter top_k: Input should be greater than or equal to 1"):
        InferenceClient(model=server.url).text_classification("a", top_k=0)


def test_the_hugging_face_form_of_many_is_a_list_of_lists(server: Server) -> None:
    many = server.post("/", {"inputs": ["my card", "lost"], "parameters": {"top_k": 1}}).json()
    one = server.post("/", {"inputs": "lost", "parameters": {"top_k": 1}}).json()
    assert [len(row) for row in many] == [1, 1]
    assert one[0][0]["label"] == many[1][0]["label"]


BAD: list[tuple[Any, int, str]] = [
    (b"{", 400, "malformed JSON"),
    (b'{"inputs": "\xff"}', 400, "must be UTF-8"),
    (b'{"inputs": "\\ud800"}', 400, "a surrogate stands without its other half"),
    ({"inputs": ""}, 400, "inputs: the text is empty"),
    ({"inputs": []}, 400, "inputs: the list is empty"),
    ({"texts": "a"}, 400, "inputs: missing"),
    ({"inputs": ["a", 3]}, 400, "inputs[1]: expected a text"),
    ({"inputs": {"text": "a", "b\nc": 1}}, 400, "inputs: b c: unknown key"),
    ({"inputs": [[[["a"]]]]}, 400, "inputs[0]: expected a text"),
    (b'{"inputs": ' + b"[" * 100_000, 400, "malformed JSON: recursion limit exceeded"),
    ({"inputs": "a", "parameters": {"topk": 1}}, 400, "parameter topk"),
    ({"inputs": "a", "parameters": {"function_to_apply": "relu"}}, 400, "parameter function_to_apply"),
    ({"inputs": ["a"] * 9}, 413, "9 texts, at most 8 are taken (PARITYBIT_MAX_TEXTS)"),
    ({"inputs": "a" * 50_000}, 413, "50000 characters, at most 20000 are taken (PARITYBIT_MAX_TEXT_CHARS)"),
    ({"inputs": "a" * 300_001}, 413, "more than 300000 bytes, which is the limit (PARITYBIT_MAX_BODY_BYTES)"),
]


@pytest.mark.parametrize("path", ["/predict", "/"])
@pytest.mark.parametrize(("content", "status", "message"), BAD, ids=[row[2] for row in BAD])
def test_a_bad_request_gets_one_line(server: Server, path: str, content: Any, status: int, message: str) -> None:
    response = server.post(path, content)
    assert response.status_code == status
    assert response.json().keys() == {"error"}
    assert message in response.json()["error"]
    assert "\n" not in response.json()["error"]


def test_a_streamed_body_is_cut_at_the_limit(server: Server) -> None:
    taken = 0

    def chunks() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield b"a" * 100_000

    with httpx.Client() as client:
        response = client.post(server.url + "/predict", content=chunks())
        assert response.status_code == 413
        assert "more than 300000 bytes" in response.json()["error"]
        assert client.post(server.url + "/predict", json={"inputs": "a"}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/predict", 405), ("DELETE", "/", 405), ("POST", "/model", 405), ("GET", "/nothing", 404)],
)
def test_other_paths_and_methods(server: Server, method: str, path: str, status: int) -> None:
    response = httpx.request(method, server.url + path)
    assert response.status_code == status
    assert response.json().keys() == {"error"}
    assert ("allow" in response.headers) == (status == 405)


def test_the_model_is_named(server: Server) -> None:
    expected = {
        "name": "tiny",
        "task": "single_label",
        "labels": list(LABELS),
        "max_length": 48,
        "options": {},
        "default_variant": "fp32",
        "checkpoint_digest": "c" * 64,
        "verdict": "pass",
        "certificate": None,
    }
    assert httpx.get(server.url + "/model").json() == expected
    assert httpx.get(server.url + "/").json() == expected


def test_probes_are_bentomls(server: Server) -> None:
    assert [httpx.get(server.url + path).status_code for path in ("/livez", "/readyz")] == [200] * 2


def test_headers_that_never_end_are_cut_off(server: Server) -> None:
    address = httpx.URL(server.url)
    with socket.create_connection((address.host, address.port or 80), timeout=20) as one:
        one.sendall(b"POST /predict HTTP/1.1\r\nHost: here\r\nX-Long: ")
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 10_000_000:
                sent += one.send(b"a" * 10_000)
        assert sent < 10_000_000


def scraped(server: Server) -> dict[str, float]:
    """Our metrics by name, with the value of a label in brackets; buckets are left out."""
    families = text_string_to_metric_families(httpx.get(server.url + "/metrics").text)
    return {
        "".join([sample.name, *(f"[{value}]" for value in sample.labels.values())]): sample.value
        for family in families
        for sample in family.samples
        if sample.name.startswith("paritybit_") and "le" not in sample.labels
    }


def test_metrics_count_what_was_asked(server: Server, predictor: Predictor) -> None:
    label = predictor("blocked")[0]["labels"][0]["label"]
    server.post("/predict", {"inputs": "blocked"})
    server.post("/predict", {"inputs": ""})
    server.post("/made/up", {})
    scraped(server)
    before = scraped(server)
    server.post("/predict", {"inputs": ["blocked"] * 3, "parameters": {"top_k": 2}})
    server.post("/predict", {"inputs": ""})
    server.post("/made/up", {})
    after = scraped(server)
    added = {name: after[name] - before[name] for name in after if after[name] != before[name]}
    assert added.pop("paritybit_batch_tokens_sum") == 9
    assert added.pop("paritybit_engine_seconds_sum") > 0
    assert added.pop("paritybit_queue_wait_seconds_sum") > 0
    assert all(added.pop(f"paritybit_request_seconds_sum[{path}]") > 0 for path in ("/predict", "/metrics", "other"))
    assert added == {
        "paritybit_requests_total[/predict][200]": 1,
        "paritybit_requests_total[/predict][400]": 1,
        "paritybit_requests_total[/metrics][200]": 1,
        "paritybit_requests_total[other][404]": 1,
        "paritybit_request_seconds_count[/predict]": 2,
        "paritybit_request_seconds_count[/metrics]": 1,
        "paritybit_request_seconds_count[other]": 1,
        "paritybit_batch_tokens_count": 1,
        "paritybit_batch_padding_ratio_count": 1,
        "paritybit_engine_seconds_count": 1,
        "paritybit_queue_wait_seconds_count": 1,
        "paritybit_rejected_requests_total[invalid]": 1,
        f"paritybit_answers_total[{label}]": 3,
    }


def test_the_log_has_a_line_of_json_for_each_request_and_none_of_its_text(server: Server) -> None:
    secret = "zebrafinch"
    asked: list[tuple[Any, int]] = [
        ({"inputs": f"Where is my {secret}?"}, 200),
        ({"inputs": [secret, 7]}, 400),
        (f'{{"inputs": "{secret}"'.encode(), 400),
        ({"inputs": [secret] * 9}, 413),
        ({"inputs": secret, "parameters": {secret: 1}}, 400),
    ]
    for number, (content, status) in enumerate(asked):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        headers = {"X-Request-Id": f"log-{number}"}
        response = httpx.post(server.url + "/predict", content=body, headers=headers, timeout=20)
        assert (response.status_code, response.headers["x-request-id"]) == (status, f"log-{number}")
    log = server.logged(f'"request_id": "log-{len(asked) - 1}"')
    lines = [json.loads(line) for line in log.splitlines() if '"request_id": "log-' in line]
    assert [(line["request_id"], line["status"]) for line in lines] == [
        (f"log-{number}", status) for number, (_, status) in enumerate(asked)
    ]
    assert lines[0]["tokens"] > 5
    assert lines[0]["engine_ms"] > 0
    assert secret not in log


@pytest.mark.parametrize("path", ["/predict", "/"])
def test_the_documented_example_is_a_real_answer(server: Server, path: str) -> None:
    operation = httpx.get(server.url + "/docs.json").json()["paths"][path]["post"]
    request = operation["requestBody"]["content"]["application/json"]["example"]
    response = server.post(path, request)
    assert response.status_code == 200
    assert response.json() == operation["responses"]["200"]["content"]["application/json"]["example"]


def test_a_bad_request_does_not_disturb_good_ones(server: Server) -> None:
    good = {"inputs": TEXTS, "parameters": {"top_k": 1}}
    expected = server.post("/predict", good).json()
    requests = [good if turn % 3 else BAD[turn % len(BAD)][0] for turn in range(60)]
    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(lambda content: server.post("/predict", content), requests))
    for content, response in zip(requests, responses, strict=True):
        if content is good:
            assert response.json() == expected
        else:
            assert response.status_code in (400, 413)
    assert server.process.poll() is None
    assert "Traceback" not in server.log.read_text()
