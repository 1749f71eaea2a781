"""API keys: who may ask. The service knows only the SHA-256 digests of keys, never a key.

A digest without salt is enough for what nobody can guess: make keys with `openssl rand -hex 32`.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence

from serve.settings import ServeSettings
from tasks.errors import ParitybitError

__all__ = ["is_known", "read_keys"]

_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_EXPECTED = "expected the SHA-256 of a key, 64 hexadecimal digits"


def read_keys(settings: ServeSettings) -> tuple[str, ...]:
    """The digests of all keys that may ask; none where the service is open to everybody.

    Raises:
        ParitybitError: if the file cannot be read or holds no key, or an entry is no digest. It names file and line or
            the variable, and never what stands there, which may be a key by mistake.
    """
    listed = [] if settings.api_keys is None else _in_variable(settings.api_keys)
    return tuple(dict.fromkeys([*listed, *_in_file(settings)]))


def is_known(authorization: str | None, digests: Sequence[str]) -> bool:
    """Whether a header `Authorization: Bearer KEY` carries one of the keys.

    It takes as long whichever key it is, and whether or not it is one.
    """
    scheme, _, key = (authorization or "").partition(" ")
    # a server hands over a header's bytes as Latin-1
    digest = hashlib.sha256(key.strip().encode("latin-1")).hexdigest()
    matches = [hmac.compare_digest(digest, one) for one in digests]
    return scheme.lower() == "bearer" and any(matches)


def _in_variable(value: str) -> list[str]:
    entries = [entry.strip() for entry in value.split(",")]
    return _checked((f"PARITYBIT_API_KEYS: entry {number}", entry) for number, entry in enumerate(entries, start=1))


def _in_file(settings: ServeSettings) -> list[str]:
    path = settings.api_keys_file
    if path is None:
        return []
    try:
        content = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ParitybitError(f"PARITYBIT_API_KEYS_FILE: {path}: {error.strerror}") from None
    lines = [line.partition("#")[0].strip() for line in content.splitlines()]
    found = _checked((f"{path}:{number}", line) for number, line in enumerate(lines, start=1) if line)
    if not found:  # an empty file must not open the service
        raise ParitybitError(f"PARITYBIT_API_KEYS_FILE: {path}: holds no key; {_EXPECTED} a line")
    return found


def _checked(entries: Iterable[tuple[str, str]]) -> list[str]:
    digests = [(place, entry.lower()) for place, entry in entries]
    for place, digest in digests:
        if _DIGEST.fullmatch(digest) is None:
            raise ParitybitError(f"{place}: {_EXPECTED}")
    return [digest for _, digest in digests]
