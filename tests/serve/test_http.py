import json
import re
from collections.abc import Sequence
from typing import Any

import pytest

from serve.http import (
    HuggingFaceRequest,
    PredictRequest,
    TooLargeError,
    check_limits,
    parse_request,
    read_inputs,
    read_timeout,
)
from serve.settings import ServeSettings
from tasks import Input, QuestionInput, TextInput, WordsInput
from tasks.errors import InputError


def body(value: object) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ("a", [TextInput("a")]),
        (["a", "b"], [TextInput("a"), TextInput("b")]),
        ({"text": "a"}, [TextInput("a")]),
        ({"text": "a", "text_pair": "b"}, [TextInput("a", "b")]),
        (["a", {"text": "b", "text_pair": "c"}], [TextInput("a"), TextInput("b", "c")]),
        ("  卡 💳 é ", [TextInput("  卡 💳 é ")]),
    ],
)
def test_inputs(inputs: object, expected: list[TextInput]) -> None:
    asked = parse_request(body({"inputs": inputs}), PredictRequest)
    assert (read_inputs(asked.inputs, [TextInput]), asked.given) == (expected, {})


@pytest.mark.parametrize(
    ("inputs", "kinds", "expected"),
    [
        ({"words": ["New", "", "York"]}, (TextInput, WordsInput), [WordsInput(("New", "", "York"))]),
        (["a", {"words": ["b"]}], (TextInput, WordsInput), [TextInput("a"), WordsInput(("b",))]),
        ({"question": "q", "context": "c"}, (QuestionInput,), [QuestionInput("q", "c")]),
        ([{"context": "c", "question": "q"}] * 2, (QuestionInput,), [QuestionInput("q", "c")] * 2),
    ],
)
def test_inputs_of_other_tasks(inputs: object, kinds: Sequence[type], expected: list[Input]) -> None:
    assert read_inputs(parse_request(body({"inputs": inputs}), PredictRequest).inputs, kinds) == expected


def test_parameters_that_are_null_count_as_missing() -> None:
    request = {"inputs": "a", "parameters": {"top_k": 2, "function_to_apply": None}}
    assert parse_request(body(request), PredictRequest).given == {"top_k": 2}
    assert parse_request(body({"inputs": "a", "parameters": None}), PredictRequest).given == {}


def test_options_belong_to_the_hugging_face_form_alone() -> None:
    request = body({"inputs": "a", "options": {"wait_for_model": True}})
    assert parse_request(request, HuggingFaceRequest).inputs == "a"
    with pytest.raises(InputError, match=r"^options: unknown key$"):
        parse_request(request, PredictRequest)


BAD_BODIES = [
    (b"", "malformed JSON: EOF while parsing a value"),
    (b"{", "malformed JSON: EOF while parsing an object"),
    (b'{"inputs": "a",}', "malformed JSON: trailing comma"),
    (b'{"inputs": "\xff"}', "malformed JSON: invalid unicode code point .*must be UTF-8"),
    (b'{"inputs": "\\ud800"}', "malformed JSON: .*a surrogate stands without its other half"),
    (b'{"inputs": "\\udc00 a"}', "malformed JSON: .*a surrogate stands without its other half"),
    (b"[" * 100_000, "malformed JSON: recursion limit exceeded"),
    (b"[]", "expected a JSON object like"),
    (b'"text"', "expected a JSON object like"),
    (b"null", "expected a JSON object like"),
    (b"{}", "inputs: missing"),
    (body({"text": "a"}), "inputs: missing"),
    (body({"inputs": "a", "parameter": {}}), "parameter: unknown key"),
    (body({"inputs": None}), 'inputs: expected a text or {"text", "text_pair"}, or a list of them'),
    (body({"inputs": 7}), 'inputs: expected a text or {"text", "text_pair"}, or a list of them'),
    (body({"inputs": ""}), "inputs: the text is empty"),
    (body({"inputs": " \n\t"}), "inputs: the text is empty"),
    (body({"inputs": []}), "inputs: the list is empty"),
    (body({"inputs": ["a", ""]}), r"inputs\[1\]: the text is empty"),
    (body({"inputs": ["a", 7]}), r'inputs\[1\]: expected a text or {"text", "text_pair"}'),
    (body({"inputs": ["a", ["b"]]}), r'inputs\[1\]: expected a text or {"text", "text_pair"}'),
    (body({"inputs": ["a", None]}), r'inputs\[1\]: expected a text or {"text", "text_pair"}'),
    (body({"inputs": {"text": 7}}), "inputs.text: expected a text"),
    (body({"inputs": {"text_pair": "b"}}), "inputs.text: missing"),
    (body({"inputs": [{"text": "a", "pair": "b"}]}), r"inputs\[0\].pair: unknown key"),
    (body({"inputs": [{"text": "a", "text_pair": ""}]}), r"inputs\[0\].text_pair: the text is empty"),
    (body({"inputs": {"te\nxt": "a"}}), "inputs.text: missing"),
    (body({"inputs": {"text": [["a"]]}}), "inputs.text: expected a text"),
    (body({"inputs": {"words": ["a"]}}), "inputs.text: missing"),
    (body({"inputs": "a", "parameters": [1]}), "parameters: Input should be"),
]


@pytest.mark.parametrize(("content", "message"), BAD_BODIES, ids=[str(row[1]) for row in BAD_BODIES])
@pytest.mark.parametrize("form", [PredictRequest, HuggingFaceRequest])
def test_a_bad_body_is_one_clear_line(content: bytes, message: str, form: type[PredictRequest]) -> None:
    with pytest.raises(InputError, match=f"^{message}") as caught:
        read_inputs(parse_request(content, form).inputs, [TextInput])
    assert "\n" not in str(caught.value)


_QUESTION = (QuestionInput,)
_TEXT_OR_WORDS = (TextInput, WordsInput)


@pytest.mark.parametrize(
    ("inputs", "kinds", "message"),
    [
        ("who?", _QUESTION, 'inputs: expected {"question", "context"}, or a list of them'),
        (["who?"], _QUESTION, 'inputs[0]: expected {"question", "context"}'),
        ({"question": "who?"}, _QUESTION, "inputs.context: missing"),
        ([{"question": "a", "context": "b"}, {"context": "c"}], _QUESTION, "inputs[1].question: missing"),
        ({"question": "who?", "context": "\t"}, _QUESTION, "inputs.context: the text is empty"),
        ({"question": "who?", "context": None}, _QUESTION, "inputs.context: expected a text"),
        ({"question": "who?", "context": "me", "id": "1"}, _QUESTION, "inputs.id: unknown key"),
        (7, _TEXT_OR_WORDS, 'inputs: expected a text or {"text", "text_pair"} or {"words"}, or a list of them'),
        ({"words": []}, _TEXT_OR_WORDS, "inputs.words: the list is empty"),
        ({"words": "a b"}, _TEXT_OR_WORDS, "inputs.words: expected a list of words"),
        (["a", {"words": ["b", 7]}], _TEXT_OR_WORDS, "inputs[1].words[1]: expected a text"),
        ({"words": ["a"], "text": "a"}, _TEXT_OR_WORDS, "inputs.words: unknown key"),
    ],
)
def test_a_bad_input_is_told_with_its_place(inputs: Any, kinds: Sequence[type], message: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        read_inputs(inputs, kinds)


def test_limits_are_inclusive_and_named() -> None:
    settings = ServeSettings(max_texts=2, max_text_chars=3)
    check_limits([TextInput("abc"), TextInput("a", "abc")], settings)
    with pytest.raises(TooLargeError, match=r"^inputs: 3 texts, at most 2 are taken \(PARITYBIT_MAX_TEXTS\)$"):
        check_limits([TextInput("a")] * 3, settings)
    with pytest.raises(TooLargeError, match=r"^inputs\[1\]: 4 characters, at most 3 .*PARITYBIT_MAX_TEXT_CHARS"):
        check_limits([TextInput("a"), TextInput("a", "abcd")], settings)


def test_words_are_limited_together_and_a_question_with_its_context_each_alone() -> None:
    settings = ServeSettings(max_text_chars=5)
    check_limits([WordsInput(("ab", "cd")), WordsInput(("",) * 6), QuestionInput("abcde", "abcde")], settings)
    with pytest.raises(TooLargeError, match=r"^inputs\[0\]: 6 characters"):
        check_limits([WordsInput(("ab", "cde"))], settings)
    with pytest.raises(TooLargeError, match=r"^inputs\[0\]: 6 characters"):
        check_limits([WordsInput(("",) * 7)], settings)
    with pytest.raises(TooLargeError, match=r"^inputs\[1\]: 6 characters"):
        check_limits([QuestionInput("a", "b"), QuestionInput("a", "abcdef")], settings)


def test_characters_are_counted_not_bytes() -> None:
    check_limits([TextInput("💳💳💳")], ServeSettings(max_text_chars=3))


def test_a_caller_may_shorten_the_time_of_a_request_but_not_lengthen_it() -> None:
    settings = ServeSettings(timeout_ms=500)
    assert [read_timeout(header, settings) for header in (None, "250", "0020", "9000")] == [0.5, 0.25, 0.02, 0.5]


@pytest.mark.parametrize("header", ["", "0", "000", "-5", "1.5", "1e3", "٣", " 5", "9" * 5000, "soon"])
def test_a_time_that_is_no_number_of_milliseconds_is_refused_in_one_line(header: str) -> None:
    with pytest.raises(InputError, match=r"^header X-Request-Timeout-Ms: expected milliseconds") as caught:
        read_timeout(header, ServeSettings())
    assert len(str(caught.value)) < 140
