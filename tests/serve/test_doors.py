"""What needs a whole server: BentoML's probes beside our doors, and clients of others."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from huggingface_hub import InferenceClient
from tritonclient import http

from bundle import Predictor
from tests.serve.conftest import Server, serving
from tests.serve.test_import import run

pytestmark = pytest.mark.real

KEY = "a-key-that-nobody-guesses"
HEADERS = {"Authorization": f"Bearer {KEY}"}
"""Triton's client writes into the headers that it is given, so each request gets its own."""
TEXTS = ["Where is my card?", "卡在哪里 💳", "blocked"]


@pytest.fixture(scope="module")
def locked(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that asks for a key."""
    folder = tmp_path_factory.mktemp("locked")
    keys = folder / "keys"
    keys.write_text(f"# of the test\n{hashlib.sha256(KEY.encode()).hexdigest()}\n")
    with serving(folder / "log", PARITYBIT_BUNDLE=str(tiny_bundle), PARITYBIT_API_KEYS_FILE=str(keys)) as running:
        yield running


def test_probes_and_metrics_stay_open_and_all_else_asks_for_a_key(locked: Server) -> None:
    for path in ("/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"):
        assert httpx.get(locked.url + path).status_code == 200
    for path in ("/", "/model", "/docs.json", "/v2", "/certificate", "/nothing"):
        response = httpx.get(locked.url + path)
        assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
    assert locked.post("/predict", {"inputs": "my card"}).status_code == 401
    answer = httpx.post(locked.url + "/predict", json={"inputs": "my card"}, headers=HEADERS, timeout=20)
    assert answer.status_code == 200
    assert answer.headers["x-content-type-options"] == "nosniff"
    refused = next(line for line in httpx.get(locked.url + "/metrics").text.splitlines() if '"unauthorized"' in line)
    assert float(refused.split()[-1]) >= 7


def test_the_hugging_face_client_sends_its_key_and_the_log_never_holds_it(locked: Server) -> None:
    found = InferenceClient(model=locked.url, token=KEY).text_classification("my card", top_k=1)
    assert len(found) == 1
    log = locked.logged('"status": 200')
    assert KEY not in log
    assert hashlib.sha256(KEY.encode()).hexdigest() not in log


def test_keys_that_cannot_be_read_are_refused_in_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# ours\nmy-secret-key\n")
    settings = {"PARITYBIT_BUNDLE": str(tiny_bundle), "PARITYBIT_API_KEYS_FILE": str(keys)}
    with serving(tmp_path / "log", ready=False, **settings) as server:
        assert server.process.wait(60) == 1
    output = (tmp_path / "log").read_text().strip()
    assert f"{keys}:2: expected the SHA-256 of a key, 64 hexadecimal digits" in output
    assert "\n" not in output
    assert "my-secret-key" not in output


READY = """
from starlette.testclient import TestClient
from serve import service
with TestClient(service.ParitybitService.to_asgi()) as client:
    print([client.get(path).status_code for path in ("/livez", "/readyz")])
    service._APP.state.engine.stop_taking()
    print([client.get(path).status_code for path in ("/livez", "/readyz")])
"""


def test_bentomls_readyz_is_a_503_once_the_engine_takes_nothing_new(tiny_bundle: Path) -> None:
    before, after = run(READY, PARITYBIT_BUNDLE=str(tiny_bundle)).splitlines()[-2:]
    assert (before, after) == ("[200, 200]", "[200, 503]")


@pytest.fixture
def triton(locked: Server) -> Any:
    """Triton's own client, which knows nothing of this service."""
    return http.InferenceServerClient(locked.url.removeprefix("http://"))


@pytest.mark.parametrize("binary", [True, False])
def test_tritons_client_reads_texts_and_scores(triton: Any, tiny_bundle: Path, binary: bool) -> None:
    texts = http.InferInput("text", [len(TEXTS)], "BYTES")
    texts.set_data_from_numpy(np.array([text.encode() for text in TEXTS], dtype=np.object_), binary_data=binary)
    outputs = [http.InferRequestedOutput(name, binary_data=binary) for name in ("label", "score", "json")]
    result = triton.infer(
        "tiny", [texts], outputs=outputs, request_id="7", headers=dict(HEADERS), parameters={"top_k": 2}
    )
    expected = Predictor.load(tiny_bundle, threads=1)(TEXTS, top_k=2)
    labels = [each.decode() if binary else each for each in result.as_numpy("label")]
    assert labels == [answer["labels"][0]["label"] for answer in expected]
    scores = result.as_numpy("score")
    assert scores.dtype == np.float32
    assert scores == pytest.approx([answer["labels"][0]["score"] for answer in expected], abs=1e-5)
    assert [len(json.loads(each)["labels"]) for each in result.as_numpy("json")] == [2, 2, 2]
    assert result.get_response()["id"] == "7"


def test_tritons_client_knows_the_server_its_model_and_its_errors(triton: Any) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("tiny")
    assert "binary_tensor_data" in triton.get_server_metadata(headers=dict(HEADERS))["extensions"]
    metadata = triton.get_model_metadata("tiny", headers=dict(HEADERS))
    assert [one["name"] for one in metadata["inputs"]] == ["text", "text_pair"]
    numbers = http.InferInput("text", [1], "FP32")
    numbers.set_data_from_numpy(np.zeros(1, dtype=np.float32))
    with pytest.raises(http.InferenceServerException, match="Input should be 'BYTES'"):
        triton.infer("tiny", [numbers], headers=dict(HEADERS))
    with pytest.raises(http.InferenceServerException, match="expected a key of this service"):
        triton.infer("tiny", [numbers])
    with pytest.raises(http.InferenceServerException, match="no such model; this server has tiny"):
        triton.get_model_metadata("other", headers=dict(HEADERS))
