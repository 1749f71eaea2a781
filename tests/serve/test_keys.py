import hashlib
import hmac
from pathlib import Path

import pytest

from serve.keys import is_known, read_keys
from serve.settings import ServeSettings
from tasks.errors import ParitybitError


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def test_without_either_setting_there_are_no_keys() -> None:
    assert read_keys(ServeSettings()) == ()


def test_keys_of_the_file_and_of_the_variable_count_together_and_once(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# ours\n\n  {digest('one').upper()}  # of the shop\n{digest('two')}\r\n")
    settings = ServeSettings(api_keys_file=path, api_keys=f" {digest('three')}, {digest('one')}")
    assert set(read_keys(settings)) == {digest("one"), digest("two"), digest("three")}
    assert len(read_keys(settings)) == 3


@pytest.mark.parametrize("line", ["my-secret-key", "0" * 63, "0" * 65, "g" * 64, "٣" * 64, f"{'0' * 64}  -"])
def test_a_line_that_is_no_digest_is_named_and_not_shown(tmp_path: Path, line: str) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# ours\n{digest('one')}\n{line}\n")
    with pytest.raises(ParitybitError) as caught:
        read_keys(ServeSettings(api_keys_file=path))
    assert str(caught.value) == f"{path}:3: expected the SHA-256 of a key, 64 hexadecimal digits"


def test_an_entry_of_the_variable_that_is_no_digest_is_named_and_not_shown() -> None:
    settings = ServeSettings(api_keys=f"{digest('one')},my-secret-key")
    with pytest.raises(ParitybitError, match=r"^PARITYBIT_API_KEYS: entry 2: expected the SHA-256 of a key") as caught:
        read_keys(settings)
    assert "my-secret-key" not in str(caught.value) + repr(settings)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file or directory"), (b"", "holds no key"), (b"# none\n", "holds no key"), (b"\xff", "expected")],
)
def test_a_file_that_would_leave_the_service_open_is_refused(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ParitybitError, match=message) as caught:
        read_keys(ServeSettings(api_keys_file=path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_each_key_opens_whatever_the_case_of_the_scheme() -> None:
    digests = [digest("one"), digest("zwei €")]
    as_received = "zwei €".encode().decode("latin-1")
    for header in ("Bearer one", "bearer one", "BEARER  one ", f"Bearer {as_received}"):
        assert is_known(header, digests)


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Bearer two", "Basic one", "one", "Bearer one two"])
def test_nothing_else_opens(header: str | None) -> None:
    assert not is_known(header, [digest("one")])


def test_a_digest_itself_is_no_key() -> None:
    assert not is_known(f"Bearer {digest('one')}", [digest("one")])


def test_every_key_is_compared_whichever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []
    compare = hmac.compare_digest

    def watched(left: str, right: str) -> bool:
        compared.append(right)
        return compare(left, right)

    monkeypatch.setattr("serve.keys.hmac.compare_digest", watched)
    digests = [digest(name) for name in ("one", "two", "three")]
    for header in ("Bearer one", "Bearer three", "Bearer none", "Basic one", None):
        compared.clear()
        is_known(header, digests)
        assert compared == digests
