"""The doors in front of the application: keys, headers, bodies that are meant to break it."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from bundle.manifest import read_manifest
from serve.app import attach_engine, build_app
from serve.engine import open_engine
from serve.settings import ServeSettings
from tasks.errors import ParitybitError
from tests.bundles import seal
from tests.serve.test_app import Lines, Service, lines

__all__ = ["Lines", "lines"]

KEY = "a-key-that-nobody-guesses"
DIGEST = hashlib.sha256(KEY.encode()).hexdigest()
INFER = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["my card"]}]}
CERTIFICATE = {
    "schema_version": 1,
    "verdict": "pass",
    "created": "2026-01-02T03:04:05+00:00",
    "evidence": {"test_rows": 40, "seed": 1},
    "primary_metric": "accuracy",
    "pytorch": {"accuracy": 0.95},
    "published": "fp32",
    "variants": [
        {"name": "int8-static", "metrics": {"accuracy": float("nan")}, "gates": [{"value": float("nan")}]},
        {
            "name": "fp32",
            "metrics": {"accuracy": 0.925, "mcc": 0.9},
            "gates": [{"name": "max_logit_delta", "relation": "<=", "limit": 1e-4, "value": 7e-7, "passed": True}],
        },
    ],
}
PAGE = "<!doctype html><title>Certificate of tiny</title><style>p {}</style><p>é"


@pytest.fixture(scope="module")
def open_service(tiny_bundle: Path) -> Service:
    return Service(tiny_bundle)


@pytest.fixture(scope="module")
def locked(tiny_bundle: Path) -> Service:
    return Service(tiny_bundle, api_keys=DIGEST)


@pytest.fixture(scope="module")
def certified(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    """The application of a bundle with a whole certificate."""
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("certified") / "bundle"))
    (bundle / "certificate.json").write_text(json.dumps(CERTIFICATE))
    (bundle / "certificate.html").write_text(PAGE, encoding="utf-8")
    seal(bundle, read_manifest(bundle))
    return Service(bundle).client


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/predict"),
        ("POST", "/"),
        ("GET", "/"),
        ("GET", "/model"),
        ("GET", "/certificate"),
        ("GET", "/docs.json"),
        ("GET", "/v2"),
        ("GET", "/v2/models/tiny"),
        ("POST", "/v2/models/tiny/infer"),
        ("GET", "/nothing"),
        ("GET", "/v2/health/live/"),
        ("GET", "/v2/models/tiny/ready/../../tiny"),
    ],
)
def test_without_a_key_every_door_is_a_401_in_one_line(locked: Service, method: str, path: str) -> None:
    before = locked.rejected("unauthorized")
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"}):
        response = locked.client.request(method, path, json={"inputs": "a"}, headers=headers)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json() == {"error": "expected a key of this service: Authorization: Bearer KEY"}
    assert locked.rejected("unauthorized") == before + 3


def test_with_a_key_everything_is_as_without_keys(locked: Service, open_service: Service) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    for path, content in (("/predict", {"inputs": "my card"}), ("/v2/models/tiny/infer", INFER)):
        answer = locked.client.post(path, json=content, headers=headers)
        assert (answer.status_code, answer.json()) == (200, open_service.client.post(path, json=content).json())
    assert locked.client.get("/model", headers=headers).json()["name"] == "tiny"


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready", "/v2/models/tiny/ready"])
def test_probes_ask_for_no_key(locked: Service, path: str) -> None:
    assert locked.client.get(path).status_code == 200


def test_the_log_never_holds_a_key(locked: Service, lines: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    for key in (KEY, "wrong-key"):
        locked.client.post("/predict", json={"inputs": "a"}, headers={"Authorization": f"Bearer {key}"})
    assert [json.loads(line)["status"] for line in lines] == [200, 401]
    output, errors = capfd.readouterr()
    for secret in (KEY, DIGEST, "wrong-key"):
        assert secret not in "".join(lines) + output + errors


def test_the_document_says_whether_a_key_is_asked_for(locked: Service, open_service: Service) -> None:
    document = locked.client.get("/docs.json", headers={"Authorization": f"Bearer {KEY}"}).json()
    assert document["security"] == [{"key": []}]
    assert document["components"]["securitySchemes"]["key"] == {"type": "http", "scheme": "bearer"}
    assert document["paths"]["/v2/health/ready"]["get"]["security"] == []
    assert "security" not in document["paths"]["/predict"]["post"]
    assert open_service.client.get("/docs.json").json()["security"] == []


def test_keys_that_cannot_be_read_do_not_open_the_service(tiny_bundle: Path) -> None:
    with pytest.raises(ParitybitError, match="PARITYBIT_API_KEYS: entry 1"):
        attach_engine(build_app(), open_engine(ServeSettings(bundle=tiny_bundle, threads=1, api_keys="no digest")))


def test_the_certificate_is_a_page_that_loads_and_runs_nothing(certified: TestClient) -> None:
    response = certified.get("/certificate")
    assert (response.status_code, response.text) == (200, PAGE)
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'none'; ")
    assert "frame-ancestors 'none'" in policy


def test_the_model_tells_what_its_certificate_measured(certified: TestClient) -> None:
    assert certified.get("/model").json()["certificate"] == {
        "verdict": "pass",
        "published": "fp32",
        "created": "2026-01-02T03:04:05+00:00",
        "test_rows": 40,
        "metric": {"name": "accuracy", "value": 0.925, "pytorch": 0.95},
        "gates": [{"name": "max_logit_delta", "relation": "<=", "limit": 1e-4, "value": 7e-7, "passed": True}],
    }
    example = certified.get("/docs.json").json()["paths"]["/model"]["get"]["responses"]["200"]
    assert example["content"]["application/json"]["example"] == certified.get("/model").json()


def test_a_page_that_the_manifest_does_not_list_is_not_shown(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    (bundle / "certificate.html").write_text("anybody's")
    client = Service(bundle).client
    response = client.get("/certificate")
    assert (response.status_code, response.json()) == (404, {"error": "the bundle has no certificate.html"})
    assert client.get("/model").json()["certificate"] is None


@pytest.mark.parametrize(
    ("path", "status"), [("/model", 200), ("/nothing", 404), ("/predict", 405), ("/certificate", 404)]
)
def test_no_browser_may_guess_another_type(open_service: Service, path: str, status: int) -> None:
    response = open_service.client.get(path)
    assert (response.status_code, response.headers["x-content-type-options"]) == (status, "nosniff")


DEPTH = 100_000
BOMBS = [
    b"[" * DEPTH,
    b"[" * DEPTH + b"]" * DEPTH,
    b'{"inputs":' * DEPTH,
    b'{"inputs": ' + b"[" * DEPTH + b"]" * DEPTH + b"}",
    b'{"inputs": ' + b"[" * 150 + b'"a"' + b"]" * 150 + b"}",
    b'{"inputs": "a", "parameters": ' + b'{"a":' * DEPTH + b"1" + b"}" * DEPTH + b"}",
    b'{"inputs": "a", "parameters": {"top_k": ' + b"[" * DEPTH + b"]" * DEPTH + b"}}",
    b'{"inputs": 1' + b"0" * 10_000 + b"}",
    b'{"inputs": 1e999999999}',
    b'{"inputs": "a", "parameters": {"top_k": -1' + b"0" * 10_000 + b"}}",
    b'{"inputs": "a", "parameters": {"top_k": 1e400}}',
    b'{"inputs": "a", "parameters": {"top_k": 1.5}}',
    b'{"inputs": "a", "parameters": {"function_to_apply": 1' + b"0" * 400 + b"}}",
    b'{"inputs": "a", "parameters": {"top_k": NaN}}',
    b'{"inputs": "a", "parameters": {"top_k": -Infinity}}',
    b'{"inputs": "a", "1' + b"0" * 5_000 + b'": 1}',
]


@pytest.mark.parametrize("path", ["/predict", "/", "/v2/models/tiny/infer"])
@pytest.mark.parametrize("body", BOMBS, ids=[f"{len(body)}-{body[:45].decode()}" for body in BOMBS])
def test_depth_bombs_and_huge_numbers_are_a_400(open_service: Service, path: str, body: bytes) -> None:
    response = open_service.client.post(path, content=body)
    assert response.status_code == 400
    assert "\n" not in response.json()["error"]


def infer_with(**changes: object) -> bytes:
    return json.dumps(INFER | {"inputs": [INFER["inputs"][0] | changes]}).encode()


@pytest.mark.parametrize(
    "body",
    [
        infer_with(shape=[10**400]),
        infer_with(shape=[1e400]),
        infer_with(shape=[1] * 10_000),
        infer_with(data=[10**400]),
        infer_with(data=None, parameters={"binary_data_size": 10**400}),
        infer_with(data=None, parameters={"binary_data_size": 10**18}),
        infer_with()[:-3].replace(b'["my card"]', b"[" * DEPTH),
    ],
    ids=range(7),
)
def test_depth_bombs_and_huge_numbers_in_a_tensor_are_a_400(open_service: Service, body: bytes) -> None:
    response = open_service.client.post("/v2/models/tiny/infer", content=body)
    assert response.status_code == 400


def test_as_many_labels_as_a_huge_number_are_all_of_them(open_service: Service) -> None:
    body = b'{"inputs": "a", "parameters": {"top_k": 1' + b"0" * 400 + b"}}"
    response = open_service.client.post("/predict", content=body)
    assert (response.status_code, len(response.json()["answers"][0]["labels"])) == (200, 5)


def test_a_compressed_body_is_a_415(open_service: Service) -> None:
    response = open_service.client.post("/predict", content=b"\x1f\x8b", headers={"Content-Encoding": "gzip"})
    assert response.status_code == 415
    assert response.json() == {"error": "a compressed body is not read; send it without Content-Encoding"}
