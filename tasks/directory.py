"""Directories that are whole or not there: written beside their name, then renamed; and the digests of files."""

import ctypes
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.errors import ParitybitError

__all__ = ["check_replaceable", "digest_of", "publish_directory", "sha256_of"]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(directory: Path, names: list[str]) -> str:
    """One hex SHA-256 over the named files of a directory, names and bytes; missing files count as missing."""
    total = hashlib.sha256()
    for name in sorted(names):
        path = directory / name
        total.update(f"{name}\0{sha256_of(path) if path.is_file() else '-'}\n".encode())
    return total.hexdigest()


@contextmanager
def publish_directory(target: Path, marker: str) -> Iterator[Path]:
    """Yields an empty directory beside `target`, which takes its name when the block ends well.

    An older directory of that name is exchanged in one step (renameat2, Linux), so that at every moment the name holds
    the old one or the new one, whole. When the block raises, the old one stays and nothing else is left.

    Args:
        target: the name to publish under.
        marker: a file that the published directory must hold; an existing non-empty directory without it is
            somebody else's and is not replaced.

    Raises:
        ParitybitError: if `target` exists and is not a directory of this kind, or the block left no marker.
    """
    check_replaceable(target, marker)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(target)
    draft = Path(tempfile.mkdtemp(prefix=_draft_prefix(target), dir=target.parent))
    draft.chmod(0o755)
    try:
        yield draft
        if not (draft / marker).is_file():
            raise ParitybitError(f"{target}: not published, {marker} was not written")
        _sync(draft)
        if target.exists():
            _exchange(draft, target)
        else:
            draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def check_replaceable(target: Path, marker: str) -> None:
    """What `publish_directory` checks first, for asking before hours of work.

    Raises:
        ParitybitError: if `target` exists and is not a directory of this kind.
    """
    replaceable = target.is_dir() and ((target / marker).is_file() or not any(target.iterdir()))
    if target.exists() and not replaceable:
        raise ParitybitError(f"{target}: exists and holds no {marker}; choose another output or remove it")


def _draft_prefix(target: Path) -> str:
    return f".{target.name}.draft-"


def _remove_leftovers(target: Path) -> None:
    """Drafts of runs that were killed: older than a day, so that a run beside this one keeps its own."""
    import time

    for leftover in target.parent.glob(f"{_draft_prefix(target)}*"):
        if time.time() - leftover.stat().st_mtime > 86_400:
            shutil.rmtree(leftover, ignore_errors=True)


def _sync(directory: Path) -> None:
    for path in [*directory.rglob("*"), directory]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _exchange(draft: Path, target: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        done = libc.renameat2(_AT_FDCWD, os.fsencode(draft), _AT_FDCWD, os.fsencode(target), _RENAME_EXCHANGE)
        if done == 0:
            return
    # elsewhere, or on a file system without exchange: two steps, the old one kept until the new one has its name
    retired = draft.with_name(f"{draft.name}.old")
    target.rename(retired)
    draft.rename(target)
    shutil.rmtree(retired, ignore_errors=True)
