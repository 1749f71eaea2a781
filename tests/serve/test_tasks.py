"""Every task behind `bentoml serve`, asked as our own clients and as `huggingface_hub.InferenceClient` ask."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from bundle import Predictor
from tasks import QuestionInput, TextInput
from tasks.inputs import input_to_json
from tests.bundles import LONG_TEXT, TINY
from tests.serve.conftest import Served

TEXT = "Where is my card? 卡在哪里 💳 In Zürich I lost it."


def ask_multi_label(client: InferenceClient, predictor: Predictor) -> None:
    for top_k in (None, 2):
        found = client.text_classification(TEXT, top_k=top_k)
        expected = predictor(TEXT, top_k=top_k)[0]["labels"]
        assert [(one.label, one.score) for one in found] == [(one["label"], one["score"]) for one in expected]
    assert len(found) == 2
    with pytest.raises(HfHubHTTPError, match="parameter function_to_apply: only 'sigmoid' has a meaning"):
        client.text_classification(TEXT, function_to_apply="softmax")


def ask_regression(client: InferenceClient, predictor: Predictor) -> None:
    others = ["I lost my card", TEXT, "today"]
    scores = client.sentence_similarity("lost card", others)
    expected = [answer["score"] for answer in predictor([TextInput("lost card", other) for other in others])]
    assert scores == pytest.approx(expected, abs=1e-5)
    assert len(set(scores)) == 3
    (only,) = client.text_classification("lost card")
    assert only.label == "score"
    assert only.score == pytest.approx(predictor("lost card")[0]["score"], abs=1e-5)


def ask_token_classification(client: InferenceClient, predictor: Predictor) -> None:
    for text in (TEXT, LONG_TEXT):
        found = client.token_classification(text, aggregation_strategy="simple", stride=8)
        expected = predictor(text)[0]["entities"]
        assert [(one.entity_group, one.start, one.end) for one in found] == [
            (one["label"], one["start"], one["end"]) for one in expected
        ]
        assert all(one.word == text[one.start : one.end] for one in found)
        assert all(0 < one.score <= 1 for one in found)
        assert {one.entity_group for one in found} == {"place", "thing"}
    places = client.token_classification(LONG_TEXT, ignore_labels=["thing"])
    assert {one.entity_group for one in places} == {"place"}


def ask_question_answering(client: InferenceClient, predictor: Predictor) -> None:
    one = QuestionInput("Where is my card?", LONG_TEXT)
    best: Any = client.question_answering(one.question, one.context)
    (expected,) = predictor(one)[0]["answers"]
    assert (best.answer, best.start, best.end) == (expected["answer"], expected["start"], expected["end"])
    assert best.answer == LONG_TEXT[best.start : best.end] != ""
    several: Any = client.question_answering(
        one.question, one.context, top_k=3, doc_stride=16, max_seq_len=40, align_to_words=True, max_answer_len=4
    )
    expected = predictor(one, top_k=3, max_answer_len=4)[0]["answers"]
    assert [(each.answer, each.start) for each in several] == [(each["answer"], each["start"]) for each in expected]
    assert len(several) == 3


ASK: dict[str, Callable[[InferenceClient, Predictor], None]] = {
    "multi_label": ask_multi_label,
    "regression": ask_regression,
    "token_classification": ask_token_classification,
    "question_answering": ask_question_answering,
}


def test_the_hugging_face_client_reads_each_task(served: Served) -> None:
    ASK[served.predictor.task.name](InferenceClient(model=served.server.url), served.predictor)


def test_predict_gives_the_predictors_answers(served: Served) -> None:
    inputs = [input_to_json(one) for one in TINY[served.predictor.task.name].golden]
    many = served.server.post("/predict", {"inputs": inputs})
    assert many.status_code == 200
    assert many.json() == {"model": "tiny", "answers": served.predictor(inputs)}
    one = served.server.post("/predict", {"inputs": inputs[-1]})
    assert one.json()["answers"] == served.predictor(inputs[-1])


@pytest.mark.parametrize("path", ["/predict", "/"])
def test_the_documented_example_is_a_real_answer(served: Served, path: str) -> None:
    document = httpx.get(served.server.url + "/docs.json").json()
    operation = document["paths"][path]["post"]
    response = served.server.post(path, operation["requestBody"]["content"]["application/json"]["example"])
    assert response.status_code == 200
    assert response.json() == operation["responses"]["200"]["content"]["application/json"]["example"]
    kinds = {kind.__name__ for kind in served.predictor.task.input_types}
    assert kinds <= document["components"]["schemas"].keys()


@pytest.mark.parametrize("path", ["/predict", "/"])
def test_a_bad_request_is_one_line_for_every_task(served: Served, path: str) -> None:
    good = input_to_json(TINY[served.predictor.task.name].golden[0])
    field = next(iter(good))
    requests = [
        ({"inputs": [good, good | {field: 7}]}, f"inputs[1].{field}: expected a text"),
        ({"inputs": 7}, "inputs: expected "),
        ({"inputs": good | {"surprise": "a"}}, "inputs.surprise: unknown key"),
        ({"inputs": good, "parameters": {"topk": 3}}, "parameter topk"),
        (b'{"inputs": {"' + field.encode() + b'": "\\ud800"}}', "a surrogate stands without its other half"),
    ]
    for request, message in requests:
        response = served.server.post(path, request)
        assert (response.status_code, response.json().keys()) == (400, {"error"})
        assert message in response.json()["error"]
        assert "\n" not in response.json()["error"]
