"""The Open Inference Protocol over the application, for every task."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tasks import Answer, Input, QuestionInput, TextInput
from tasks.catalogue import TASKS
from tests.bundles import LONG_TEXT, write_bundle
from tests.serve.test_app import Service

TEXTS = ["Where is my card?", "卡在哪里 💳", "I lost my card\u0000 é́"]
PATH = "/v2/models/tiny/infer"


@pytest.fixture(scope="module", params=sorted(TASKS))
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Service:
    folder = tmp_path_factory.mktemp(request.param)
    write_bundle(folder, task=request.param)
    return Service(folder, max_texts=8)


@pytest.fixture(scope="module")
def labels(tiny_bundle: Path) -> Service:
    return Service(tiny_bundle, max_texts=8)


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Service:
    folder = tmp_path_factory.mktemp("questions")
    write_bundle(folder, task="question_answering")
    return Service(folder)


def tensor(name: str, values: list[str], *, column: bool = False) -> dict[str, Any]:
    shape = [len(values), 1] if column else [len(values)]
    return {"name": name, "shape": shape, "datatype": "BYTES", "data": values}


def asked_of(task: str) -> tuple[list[Input], list[dict[str, Any]]]:
    """Inputs of a task, and their tensors."""
    if task == "question_answering":
        contexts = [LONG_TEXT, *TEXTS]
        inputs: list[Input] = [QuestionInput("Where is my card?", context) for context in contexts]
        return inputs, [tensor("question", ["Where is my card?"] * 4), tensor("context", contexts)]
    return [TextInput(text) for text in TEXTS], [tensor("text", TEXTS)]


def packed(values: list[str]) -> bytes:
    encoded = [value.encode() for value in values]
    return b"".join(struct.pack("<I", len(value)) + value for value in encoded)


def columns(response: dict[str, Any]) -> dict[str, Any]:
    return {output["name"]: output["data"] for output in response["outputs"]}


FLAT: dict[str, dict[str, Callable[[Answer], Any]]] = {
    "single_label": {"label": lambda one: one["labels"][0]["label"], "score": lambda one: one["labels"][0]["score"]},
    "multi_label": {},
    "token_classification": {},
    "regression": {"score": lambda one: one["score"]},
    "question_answering": {
        "answer": lambda one: one["answers"][0]["answer"],
        "score": lambda one: one["answers"][0]["score"],
    },
}


def test_every_task_answers_its_tensors(service: Service) -> None:
    task = service.engine.predictor.task.name
    inputs, tensors = asked_of(task)
    response = service.client.post(PATH, json={"id": "42", "inputs": tensors})
    assert response.status_code == 200
    body = response.json()
    assert (body["model_name"], body["id"], "inference-header-content-length" in response.headers) == (
        "tiny",
        "42",
        False,
    )
    expected = service.engine.predictor(inputs)
    found = columns(body)
    assert [json.loads(each) for each in found.pop("json")] == expected
    assert found == {name: [of(each) for each in expected] for name, of in FLAT[task].items()}
    assert {tuple(output["shape"]) for output in body["outputs"]} == {(len(inputs),)}


def test_the_metadata_names_the_tensors_that_are_taken_and_given(service: Service) -> None:
    metadata = service.client.get("/v2/models/tiny").json()
    task = service.engine.predictor.task.name
    _, tensors = asked_of(task)
    body = service.client.post(PATH, json={"inputs": tensors}).json()
    told = {output["name"]: output["datatype"] for output in metadata["outputs"]}
    assert told == {output["name"]: output["datatype"] for output in body["outputs"]}
    assert {one["name"] for one in tensors} <= {one["name"] for one in metadata["inputs"]}
    assert all(one["shape"] == [-1] for one in metadata["inputs"] + metadata["outputs"])
    assert (metadata["name"], metadata["platform"]) == ("tiny", "onnxruntime_onnx")


def test_the_documented_example_is_a_real_answer(service: Service) -> None:
    operation = service.client.get("/docs.json").json()["paths"]["/v2/models/{name}/infer"]["post"]
    response = service.client.post(PATH, json=operation["requestBody"]["content"]["application/json"]["example"])
    assert response.status_code == 200
    assert response.json() == operation["responses"]["200"]["content"]["application/json"]["example"]


@pytest.mark.parametrize("data", [TEXTS, [[text] for text in TEXTS]])
def test_a_column_is_taken_flat_or_nested(labels: Service, data: list[Any]) -> None:
    column = tensor("text", TEXTS, column=True) | {"data": data}
    flat = labels.client.post(PATH, json={"inputs": [tensor("text", TEXTS)]}).json()
    assert labels.client.post(PATH, json={"inputs": [column]}).json() == flat


def test_a_second_text_is_a_second_tensor_in_any_order(labels: Service) -> None:
    pair = [tensor("text_pair", ["lost", "blocked"]), tensor("text", ["my card", "my card"])]
    body = labels.client.post(PATH, json={"inputs": pair}).json()
    expected = labels.engine.predictor([TextInput("my card", "lost"), TextInput("my card", "blocked")])
    assert [json.loads(each) for each in columns(body)["json"]] == expected


def test_parameters_are_the_tasks(labels: Service, questions: Service) -> None:
    request = {"inputs": [tensor("text", ["my card"])], "parameters": {"top_k": 2, "function_to_apply": None}}
    (answer,) = map(json.loads, columns(labels.client.post(PATH, json=request).json())["json"])
    assert len(answer["labels"]) == 2
    asked = {"inputs": asked_of("question_answering")[1], "parameters": {"top_k": 3, "max_answer_len": 4}}
    found = columns(questions.client.post(PATH, json=asked).json())
    answers = [json.loads(each)["answers"] for each in found["json"]]
    assert len(answers[0]) == 3
    assert found["answer"] == [each[0]["answer"] for each in answers]


def test_only_the_outputs_that_were_asked_for_come(labels: Service) -> None:
    request = {"inputs": [tensor("text", TEXTS)], "outputs": [{"name": "score"}, {"name": "label"}]}
    body = labels.client.post(PATH, json=request).json()
    assert [output["name"] for output in body["outputs"]] == ["score", "label"]


def binary_request(*tensors: tuple[str, bytes, int], **rest: Any) -> tuple[bytes, dict[str, str]]:
    """Body and header of tensors given by name, bytes and number of texts."""
    inputs = [
        {"name": name, "shape": [count], "datatype": "BYTES", "parameters": {"binary_data_size": len(content)}}
        for name, content, count in tensors
    ]
    header = json.dumps({"inputs": inputs, **rest}).encode()
    body = header + b"".join(content for _, content, _ in tensors)
    return body, {"Inference-Header-Content-Length": str(len(header))}


def read_binary(content: bytes, header_length: str) -> dict[str, list[str] | npt.NDArray[np.float32]]:
    header, tail = content[: int(header_length)], content[int(header_length) :]
    found: dict[str, Any] = {}
    for output in json.loads(header)["outputs"]:
        size = output["parameters"]["binary_data_size"]
        part, tail = tail[:size], tail[size:]
        if output["datatype"] == "FP32":
            found[output["name"]] = np.frombuffer(part, "<f4")
            continue
        found[output["name"]] = texts = []
        while part:
            end = 4 + int.from_bytes(part[:4], "little")
            texts.append(part[4:end].decode())
            part = part[end:]
    assert tail == b""
    return found


def test_tensors_as_bytes_say_what_tensors_in_json_say(service: Service) -> None:
    _, tensors = asked_of(service.engine.predictor.task.name)
    plain = columns(service.client.post(PATH, json={"inputs": tensors}).json())
    parts = [(one["name"], packed(one["data"]), len(one["data"])) for one in tensors]
    body, headers = binary_request(*parts, parameters={"binary_data_output": True})
    response = service.client.post(PATH, content=body, headers=headers)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/octet-stream"
    found = read_binary(response.content, response.headers["inference-header-content-length"])
    assert found.keys() == plain.keys()
    for name, values in plain.items():
        assert list(found[name]) == (pytest.approx(values, rel=1e-6) if name == "score" else values)


def test_each_output_says_for_itself_whether_it_comes_as_bytes(labels: Service) -> None:
    outputs = [{"name": "label", "parameters": {"binary_data": False}}, {"name": "score"}]
    body, headers = binary_request(("text", packed(TEXTS), 3), parameters={"binary_data_output": True}, outputs=outputs)
    response = labels.client.post(PATH, content=body, headers=headers)
    header = json.loads(response.content[: int(response.headers["inference-header-content-length"])])
    label, score = header["outputs"]
    assert len(label["data"]) == 3
    assert score["parameters"] == {"binary_data_size": 12}
    assert "data" not in score


GOOD = tensor("text", ["a", "b"])
BAD: list[tuple[Any, str]] = [
    ({}, "inputs: missing"),
    ([], "expected a JSON object like"),
    ({"inputs": []}, "inputs: the list is empty"),
    ({"inputs": "a"}, "inputs: expected a list"),
    ({"inputs": [GOOD], "models": 1}, "models: unknown key"),
    ({"inputs": [GOOD | {"name": "texts"}]}, "inputs[0].name: expected text or text_pair, got 'texts'"),
    ({"inputs": [GOOD, GOOD]}, "inputs[1].name: text was given before"),
    ({"inputs": [GOOD | {"name": "text_pair"}]}, "inputs: text is missing"),
    ({"inputs": [GOOD, tensor("text_pair", ["a"])]}, "inputs: not of one length: text 2, text_pair 1"),
    ({"inputs": [GOOD | {"datatype": "FP32"}]}, "inputs[0].datatype: Input should be 'BYTES'"),
    ({"inputs": [{"name": "text", "shape": [1]}]}, "inputs[0].datatype: missing"),
    ({"inputs": [GOOD | {"shape": []}]}, "inputs[0].shape: expected [n] or [n, 1]"),
    ({"inputs": [GOOD | {"shape": [1, 2]}]}, "inputs[0].shape: expected [n] or [n, 1]"),
    ({"inputs": [GOOD | {"shape": [2, 1, 1]}]}, "inputs[0].shape: expected [n] or [n, 1]"),
    ({"inputs": [GOOD | {"shape": [-1]}]}, "inputs[0].shape[0]: Input should be greater than or equal to 1"),
    ({"inputs": [GOOD | {"shape": [0], "data": []}]}, "inputs[0].shape[0]: Input should be greater"),
    ({"inputs": [GOOD | {"shape": [2.0]}]}, "inputs[0].shape[0]: Input should be a valid integer"),
    ({"inputs": [GOOD | {"shape": [3]}]}, "inputs[0].shape: its first axis is not 2, the number of texts in the data"),
    ({"inputs": [GOOD | {"data": None}]}, "inputs[0]: expected either data or parameters.binary_data_size"),
    ({"inputs": [GOOD | {"data": ["a", 7]}]}, "inputs[0].data[1]: expected a text"),
    ({"inputs": [GOOD | {"data": ["a", ["b"]]}]}, "inputs[0].data[1]: expected a text"),
    ({"inputs": [GOOD | {"shape": [2, 1], "data": ["a", ["b", "c"]]}]}, "inputs[0].data[1]: expected a text"),
    ({"inputs": [GOOD | {"data": ["a", " "]}]}, "inputs[0].data[1]: the text is empty"),
    ({"inputs": [GOOD, tensor("text_pair", ["", "b"])]}, "inputs[1].data[0]: the text is empty"),
    ({"inputs": [GOOD | {"parameters": {"binary_data_size": 3}}]}, "inputs[0]: expected either data or"),
    ({"inputs": [GOOD | {"parameters": {"shared_memory_region": "a"}}]}, "inputs[0].parameters.shared_memory_region"),
    ({"inputs": [GOOD], "outputs": [{"name": "logits"}]}, "outputs[0].name: expected label or score or json"),
    ({"inputs": [GOOD], "outputs": [{"name": "label", "parameters": {"classification": 2}}]}, "outputs[0].parameters"),
    ({"inputs": [GOOD], "parameters": {"binary_data_output": 1}}, "parameters.binary_data_output: expected true or"),
    ({"inputs": [GOOD], "parameters": {"topk": 1}}, "parameter topk: Extra inputs are not permitted"),
    ({"inputs": [GOOD], "parameters": {"top_k": 0}}, "parameter top_k: Input should be greater than or equal to 1"),
    ({"inputs": [GOOD], "id": 7}, "id: expected a text"),
]


@pytest.mark.parametrize(("request_", "message"), BAD, ids=[row[1][:60] for row in BAD])
def test_what_cannot_be_used_is_a_400_with_its_place(labels: Service, request_: Any, message: str) -> None:
    response = labels.client.post(PATH, json=request_)
    assert (response.status_code, response.json().keys()) == (400, {"error"})
    assert response.json()["error"].startswith(message)
    assert "\n" not in response.json()["error"]


HEADER = "header Inference-Header-Content-Length: expected how many of the body's"


@pytest.mark.parametrize(
    ("content", "count", "message"),
    [
        (packed(["a", "b"])[:-1], 2, "inputs[0].data[1]: its bytes end too early"),
        (packed(["a"]) + b"\x01\x00", 2, "inputs[0].data[1]: its bytes end too early"),
        (b"\xff\xff\xff\xff", 1, "inputs[0].data[0]: its bytes end too early"),
        (packed(["a"]) + b"\x01\x00\x00\x00\xff", 2, "inputs[0].data[1]: not UTF-8"),
        (packed(["a", ""]), 2, "inputs[0].data[1]: the text is empty"),
        (packed(["a", "b"]), 3, "inputs[0].shape: its first axis is not 2"),
        (b"", 1, "inputs[0].shape: its first axis is not 0"),
    ],
)
def test_bytes_that_are_no_texts_are_a_400(labels: Service, content: bytes, count: int, message: str) -> None:
    body, headers = binary_request(("text", content, count))
    response = labels.client.post(PATH, content=body, headers=headers)
    assert response.status_code == 400
    assert response.json()["error"].startswith(message)


def test_bytes_that_are_missing_or_too_many_are_a_400(labels: Service) -> None:
    body, headers = binary_request(("text", packed(["a"]), 1))
    for content, message in (
        (body[:-1], "inputs[0].parameters.binary_data_size: only 4 bytes are left behind the JSON"),
        (body + b"ab", "2 bytes behind the JSON belong to no input"),
    ):
        response = labels.client.post(PATH, content=content, headers=headers)
        assert (response.status_code, response.json()["error"]) == (400, message)


@pytest.mark.parametrize("length", ["", "-1", "1e2", "٣", "9" * 5000, "9999999"])
def test_a_length_of_the_json_that_makes_no_sense_is_a_400(labels: Service, length: str) -> None:
    body = json.dumps({"inputs": [GOOD]}).encode()
    headers = {"Inference-Header-Content-Length": length.encode()}
    response = labels.client.post(PATH, content=body, headers=headers)
    assert response.status_code == 400
    assert response.json()["error"].startswith(f"{HEADER} {len(body)} bytes are JSON, got ")
    assert len(response.json()["error"]) < 160


def test_the_limits_hold_here_too(labels: Service) -> None:
    response = labels.client.post(PATH, json={"inputs": [tensor("text", ["a"] * 9)]})
    assert (response.status_code, response.json()) == (
        413,
        {"error": "inputs: 9 texts, at most 8 are taken (PARITYBIT_MAX_TEXTS)"},
    )


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("GET", "/ready"), ("POST", "/infer")])
def test_another_model_is_a_404(labels: Service, method: str, path: str) -> None:
    response = labels.client.request(method, f"/v2/models/other{path}", json={"inputs": [GOOD]})
    assert (response.status_code, response.json()) == (404, {"error": "no such model; this server has tiny"})


def test_the_server_says_what_it_speaks(labels: Service) -> None:
    metadata = labels.client.get("/v2").json()
    assert (metadata["name"], metadata["extensions"]) == ("paritybit", ["binary_tensor_data"])
    assert metadata["version"]


def test_a_server_that_stops_lives_but_is_not_ready(tiny_bundle: Path) -> None:
    service = Service(tiny_bundle)
    paths = ("/v2/health/live", "/v2/health/ready", "/v2/models/tiny/ready")
    assert [service.client.get(path).status_code for path in paths] == [200, 200, 200]
    service.engine.stop_taking()
    assert [service.client.get(path).status_code for path in paths] == [200, 503, 503]
    assert service.client.get("/v2/health/ready").json() == {"ready": False}
