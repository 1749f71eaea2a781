"""The application without a server: what only needs other settings."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from serve.app import attach_engine, build_app
from serve.engine import open_engine
from serve.settings import ServeSettings


@pytest.fixture
def client(tiny_bundle: Path) -> Iterator[TestClient]:
    app = build_app()
    attach_engine(app, open_engine(ServeSettings(bundle=tiny_bundle, max_text_chars=60_000, threads=1)))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def test_50_000_characters_are_answered_when_allowed(client: TestClient) -> None:
    response = client.post("/predict", json={"inputs": ["where is my card " * 2942, "card"]})
    assert response.status_code == 200
    assert [answer["truncated"] for answer in response.json()["answers"]] == [True, False]


def test_an_unexpected_error_says_nothing_of_its_inside(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a secret path")

    monkeypatch.setattr(client.app.state.engine.predictor, "predict", broken)  # type: ignore[attr-defined]
    response = client.post("/predict", json={"inputs": "a"})
    assert (response.status_code, response.json()) == (500, {"error": "an unexpected error; the server's log has it"})


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
