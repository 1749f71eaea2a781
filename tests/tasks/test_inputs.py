from typing import Any

import pytest

from tasks import Input, QuestionInput, TextInput, WordsInput
from tasks.errors import InputError
from tasks.inputs import input_from_json, input_to_json, shape_of

TEXT = (TextInput,)
TAGGING = (TextInput, WordsInput)
QUESTION = (QuestionInput,)


@pytest.mark.parametrize(
    ("value", "kinds", "expected"),
    [
        ("a b", TEXT, TextInput("a b")),
        ("a b", TAGGING, TextInput("a b")),
        ({"text": "a"}, TEXT, TextInput("a")),
        ({"text": "a", "text_pair": "b"}, TEXT, TextInput("a", "b")),
        ({"text": "a", "text_pair": None}, TEXT, TextInput("a")),
        ({"text": " a\n"}, TEXT, TextInput(" a\n")),
        ({"text": "a"}, TAGGING, TextInput("a")),
        ({"words": ["a", "b"]}, TAGGING, WordsInput(("a", "b"))),
        ({"words": ["a", " ", ""]}, TAGGING, WordsInput(("a", " ", ""))),
        ({"question": "a", "context": "b"}, QUESTION, QuestionInput("a", "b")),
        (WordsInput(("a",)), TAGGING, WordsInput(("a",))),
    ],
)
def test_values_become_inputs(value: Any, kinds: tuple[type, ...], expected: Input) -> None:
    assert input_from_json(value, kinds) == expected


@pytest.mark.parametrize(
    ("value", "kinds", "message"),
    [
        ({}, TEXT, "text: missing"),
        ({"txt": "a"}, TEXT, "text: missing"),
        ({"text_pair": "a"}, TEXT, "text: missing"),
        ({"text": "a", "label": "b"}, TEXT, "label: unknown key"),
        ({"text": 5}, TEXT, "text: expected a text"),
        ({"text": None}, TEXT, "text: expected a text"),
        ({"text": ["a"]}, TEXT, "text: expected a text"),
        ({"text": {"text": "a"}}, TEXT, "text: expected a text"),
        ({"text": "a", "text_pair": 1}, TEXT, "text_pair: expected a text"),
        ("", TEXT, "text: the text is empty"),
        ({"text": " \t\n"}, TEXT, "text: the text is empty"),
        ({"text": "a", "text_pair": ""}, TEXT, "text_pair: the text is empty"),
        ({"words": ["a"]}, TEXT, "text: missing"),
        ({"words": []}, TAGGING, "words: the list is empty"),
        ({"words": ["", " "]}, TAGGING, "words: the text is empty"),
        ({"words": "a b"}, TAGGING, "words: expected a list of words"),
        ({"words": ["a", 7]}, TAGGING, "words[1]: expected a text"),
        ({"words": ["a"], "text_pair": "b"}, TAGGING, "text_pair: unknown key"),
        ({"question": "a"}, QUESTION, "context: missing"),
        ({"context": "a"}, QUESTION, "question: missing"),
        ({"question": " ", "context": "b"}, QUESTION, "question: the text is empty"),
        ({"question": "a", "context": ""}, QUESTION, "context: the text is empty"),
        ("a", QUESTION, 'expected {"question", "context"}'),
        (3, TEXT, 'expected a text or {"text", "text_pair"}'),
        (None, TAGGING, 'expected a text or {"text", "text_pair"} or {"words"}'),
        (["a"], TEXT, 'expected a text or {"text", "text_pair"}'),
        (TextInput("a"), QUESTION, 'expected {"question", "context"}'),
    ],
)
def test_what_is_no_input_is_told_by_key(value: Any, kinds: tuple[type, ...], message: str) -> None:
    with pytest.raises(InputError) as caught:
        input_from_json(value, kinds)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (TextInput("a"), {"text": "a"}),
        (TextInput("a", "b"), {"text": "a", "text_pair": "b"}),
        (WordsInput(("a", "b")), {"words": ["a", "b"]}),
        (QuestionInput("a", "b"), {"question": "a", "context": "b"}),
    ],
)
def test_inputs_go_to_json_and_back(one: Input, expected: dict[str, Any]) -> None:
    assert input_to_json(one) == expected
    assert input_from_json(expected, (type(one),)) == one


def test_only_a_task_of_texts_takes_a_plain_text() -> None:
    assert shape_of(TEXT) == 'a text or {"text", "text_pair"}'
    assert shape_of(QUESTION) == '{"question", "context"}'
