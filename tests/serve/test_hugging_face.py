"""The forms of the Hugging Face client, without a server."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from huggingface_hub import InferenceClient

from serve.hugging_face import HUGGING_FACE_FORMS
from tasks import TextInput
from tasks.catalogue import TASKS
from tasks.errors import InputError

CLIENT_METHODS: dict[str, list[Callable[..., Any]]] = {
    "single_label": [InferenceClient.text_classification],
    "multi_label": [InferenceClient.text_classification],
    "regression": [InferenceClient.sentence_similarity, InferenceClient.text_classification],
    "token_classification": [InferenceClient.token_classification],
    "question_answering": [InferenceClient.question_answering],
}


def test_every_task_has_a_form() -> None:
    assert TASKS.keys() <= HUGGING_FACE_FORMS.keys()


@pytest.mark.parametrize("task", sorted(TASKS))
def test_every_parameter_that_the_client_offers_is_either_heeded_or_ignored(task: str) -> None:
    heeded, ignored = TASKS[task].parameters.model_fields.keys(), HUGGING_FACE_FORMS[task].ignored.keys()
    offered: set[str] = set()
    for method in CLIENT_METHODS[task]:
        named = inspect.signature(method).parameters.values()
        offered |= {one.name for one in named if one.kind is one.KEYWORD_ONLY} - {"model"}
    assert heeded.isdisjoint(ignored)
    assert ignored <= offered
    assert offered - ignored <= heeded


def test_ignored_parameters_are_taken_only_where_they_change_nothing() -> None:
    form = HUGGING_FACE_FORMS["multi_label"]
    assert form.heeded({"top_k": 2, "function_to_apply": "sigmoid", "other": 1}) == {"top_k": 2, "other": 1}
    with pytest.raises(InputError, match=r"parameter function_to_apply: only 'sigmoid' has a meaning .* got 'softmax'"):
        form.heeded({"function_to_apply": "softmax"})
    with pytest.raises(InputError, match="parameter function_to_apply: only 'sigmoid'"):
        form.heeded({"function_to_apply": [1]})
    question = HUGGING_FACE_FORMS["question_answering"]
    assert question.heeded({"doc_stride": 64, "align_to_words": True, "top_k": 1}) == {"top_k": 1}


def test_sentences_are_pairs_with_their_source_and_scored_in_a_row() -> None:
    form = HUGGING_FACE_FORMS["regression"]
    asked = {"source_sentence": "a", "sentences": ["b", "c"]}
    assert form.read(asked, [TextInput]) == [TextInput("a", "b"), TextInput("a", "c")]
    answers = [{"score": 1.5, "truncated": False}, {"score": 4.0, "truncated": False}]
    assert form.write(answers, asked, {}) == [1.5, 4.0]
    assert form.read(["a", {"text": "b"}], [TextInput]) == [TextInput("a"), TextInput("b")]
    assert form.write(answers[:1], "a", {}) == [[{"label": "score", "score": 1.5}]]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"source_sentence": "a"}, r"^inputs\.sentences: missing$"),
        ({"sentences": ["a"]}, r"^inputs\.source_sentence: missing$"),
        ({"source_sentence": "a", "sentences": []}, r"^inputs\.sentences: the list is empty$"),
        ({"source_sentence": "a", "sentences": "b"}, r"^inputs\.sentences: expected a list$"),
        ({"source_sentence": "a", "sentences": ["b", 7]}, r"^inputs\.sentences\[1\]: expected a text$"),
        ({"source_sentence": "a", "sentences": ["b", " "]}, r"^inputs\.sentences\[1\]: the text is empty$"),
        ({"source_sentence": "\t", "sentences": ["b"]}, r"^inputs\.source_sentence: the text is empty$"),
        ({"source_sentence": "a", "sentences": ["b"], "text": "c"}, r"^inputs\.text: unknown key$"),
        ({"text": 7}, r"^inputs\.text: expected a text$"),
    ],
)
def test_bad_sentences_are_told_with_their_place(asked: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        HUGGING_FACE_FORMS["regression"].read(asked, [TextInput])


ENTITY = {"label": "person", "text": "Ann", "start": 0, "end": 3, "score": 0.9}
GROUP = {"entity_group": "person", "word": "Ann", "start": 0, "end": 3, "score": 0.9}


def test_entities_are_groups_of_one_text_or_of_each_in_a_list() -> None:
    form = HUGGING_FACE_FORMS["token_classification"]
    found, nothing = {"entities": [ENTITY], "truncated": False}, {"entities": [], "truncated": False}
    assert form.write([found], "Ann", {}) == [GROUP]
    assert form.write([found], {"words": ["Ann"]}, {}) == [GROUP]
    assert form.write([nothing], "-", {}) == []
    assert form.write([found, nothing], ["Ann", "-"], {}) == [[GROUP], []]
    assert form.write([found], ["Ann"], {}) == [[GROUP]]


def test_an_answer_stands_alone_unless_more_are_asked_for() -> None:
    form = HUGGING_FACE_FORMS["question_answering"]
    best = {"answer": "Ann", "start": 0, "end": 3, "score": 0.9}
    second = {"answer": "Ann came", "start": 0, "end": 8, "score": 0.1}
    one = {"question": "who?", "context": "Ann came"}
    answer = {"answers": [best, second], "no_answer": None, "truncated": False}
    assert form.write([answer], one, {}) == best
    assert form.write([answer], one, {"top_k": 1}) == best
    assert form.write([answer], one, {"top_k": 2}) == [best, second]
    assert form.write([answer, answer], [one, one], {}) == [best, best]
    assert form.write([answer], [one], {"top_k": 2}) == [[best, second]]
