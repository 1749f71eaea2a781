from pathlib import Path

import pytest

from serve.settings import ServeSettings, read_settings
from tasks.errors import ParitybitError


def test_defaults() -> None:
    assert read_settings({}) == ServeSettings()


def test_every_setting_is_read() -> None:
    environ = {
        "PARITYBIT_BUNDLE": "some/bundle",
        "PARITYBIT_THREADS": "3",
        "PARITYBIT_MAX_BODY_BYTES": "4",
        "PARITYBIT_MAX_TEXTS": "5",
        "PARITYBIT_MAX_TEXT_CHARS": "6",
        "PARITYBIT_MAX_REQUEST_TOKENS": "7",
        "PARITYBIT_MAX_QUEUE_TOKENS": "8",
        "PARITYBIT_MAX_QUEUE_MS": "10",
        "PARITYBIT_TIMEOUT_MS": "9",
        "PARITYBIT_API_KEYS_FILE": "some/keys",
        "PARITYBIT_API_KEYS": "a,b",
    }
    assert read_settings(environ) == ServeSettings(
        bundle=Path("some/bundle"),
        threads=3,
        max_body_bytes=4,
        max_texts=5,
        max_text_chars=6,
        max_request_tokens=7,
        max_queue_tokens=8,
        max_queue_ms=10,
        timeout_ms=9,
        api_keys_file=Path("some/keys"),
        api_keys="a,b",
    )
    assert len(environ) == len(ServeSettings.model_fields)


def test_an_empty_variable_counts_as_missing() -> None:
    assert read_settings({"PARITYBIT_BUNDLE": "", "PARITYBIT_THREADS": ""}) == ServeSettings()


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ParitybitError) as caught:
        read_settings({"PARITYBIT_THREADS": "two", "PARITYBIT_MAX_TEXTS": "0"})
    assert "PARITYBIT_THREADS='two': Input should be a valid integer" in str(caught.value)
    assert "PARITYBIT_MAX_TEXTS='0': Input should be greater than or equal to 1" in str(caught.value)
