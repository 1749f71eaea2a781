"""What an operator may set, read from `PARITYBIT_*` environment variables."""

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.errors import ParitybitError

__all__ = ["ServeSettings", "read_settings"]


class ServeSettings(BaseModel):
    """Settings of the service. A field is read from the variable of its name: `max_texts` from PARITYBIT_MAX_TEXTS."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle: Path | None = Field(default=None, description="The bundle to serve; the newest one found when missing.")
    threads: int | None = Field(default=None, ge=1, description="Threads of the engine; all that the process may use.")
    max_body_bytes: int = Field(default=1_048_576, ge=1, description="Bytes of a request body at most.")
    max_texts: int = Field(default=128, ge=1, description="Texts of a request at most.")
    max_text_chars: int = Field(default=20_000, ge=1, description="Characters of a text at most.")
    # as many texts as a request may have, of 128 tokens each; two seconds of the demo model on two processors
    max_request_tokens: int = Field(default=16_384, ge=1, description="Tokens of a request at most, all its windows.")
    max_queue_tokens: int = Field(default=16_384, ge=1, description="Tokens that wait for the engine at most.")
    max_queue_ms: int = Field(default=250, ge=1, description="Milliseconds of work that wait for the engine at most.")
    # BentoML ends every request after 60 s in its own words
    timeout_ms: int = Field(default=30_000, ge=1, le=59_000, description="Time of a request that names none.")
    api_keys_file: Path | None = Field(default=None, description="Digests of the keys that may ask, one a line.")
    # an operator may take it for the keys themselves, so no message shows it
    api_keys: str | None = Field(default=None, repr=False, description="The same, separated by commas.")


def read_settings(environ: Mapping[str, str] = os.environ) -> ServeSettings:
    """The settings of an environment; a variable that is empty counts as missing.

    Raises:
        ParitybitError: naming every variable that cannot be used.
    """
    values = {field: environ.get(_variable(field)) for field in ServeSettings.model_fields}
    try:
        return ServeSettings.model_validate({field: value for field, value in values.items() if value})
    except ValidationError as error:
        problems = [
            f"{_variable(str(problem['loc'][0]))}={problem['input']!r}: {problem['msg']}" for problem in error.errors()
        ]
        raise ParitybitError("; ".join(problems)) from None


def _variable(field: str) -> str:
    return f"PARITYBIT_{field.upper()}"
