"""Directories that are whole or not there: written beside their name, then renamed; and the digests of files."""

import ctypes
import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.errors import ParitybitError

__all__ = [
    "check_replaceable",
    "digest_of",
    "publish_directory",
    "remove_leftovers",
    "scratch_directory",
    "sha256_of",
]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2

_DRAFT = "draft"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
    the old one or the new one, whole. When the block raises, the old one stays and nothing else is left. Who publishes
    under the same name at the same time waits.

    Args:
        target: the name to publish under.
        marker: a file that the published directory must hold; an existing non-empty directory without it is
            somebody else's and is not replaced.

    Raises:
        ParitybitError: if `target` exists and is not a directory of this kind, the block left no marker, or the disk
            is full.
    """
    check_replaceable(target, marker)
    with scratch_directory(target, _DRAFT, wait=True) as draft:
        draft.chmod(0o755)
        yield draft
        if not (draft / marker).is_file():
            raise ParitybitError(f"{target}: not published, {marker} was not written")
        _sync(draft)
        if not target.exists():
            draft.rename(target)
        elif not _exchange(draft, target):
            _replace(draft, target)


@contextmanager
def scratch_directory(target: Path, purpose: str, *, wait: bool = False) -> Iterator[Path]:
    """Yields an empty hidden directory beside `target` and removes it at the end.

    One process at a time has one: it holds a lock on a file beside it, which the system frees when the process dies,
    however it dies. So whatever else of this purpose is found there was left by one that was killed, and is removed.

    Args:
        target: what is being made.
        purpose: part of the directory's name.
        wait: for another process to end, instead of raising.

    Raises:
        ParitybitError: if another process is at work on it, or the disk is full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with _sole_use(target, purpose, wait):
        _remove_leftovers(target, purpose)
        directory = Path(tempfile.mkdtemp(prefix=_prefix(target, purpose), dir=target.parent))
        try:
            yield directory
        except OSError as error:
            if error.errno not in _FULL:
                raise
            reason = os.strerror(error.errno)
            raise ParitybitError(f"{target}: not written: {reason}; what was there before is untouched") from None
        finally:
            shutil.rmtree(directory, ignore_errors=True)


def remove_leftovers(target: Path) -> None:
    """Removes what publications of `target` that were killed have left; waits for one that is under way."""
    with _sole_use(target, _DRAFT, wait=True):
        _remove_leftovers(target, _DRAFT)


def check_replaceable(target: Path, marker: str) -> None:
    """What `publish_directory` checks first, for asking before hours of work.

    Raises:
        ParitybitError: if `target` exists and is not a directory of this kind.
    """
    replaceable = target.is_dir() and ((target / marker).is_file() or not any(target.iterdir()))
    if target.exists() and not replaceable:
        raise ParitybitError(f"{target}: exists and holds no {marker}; choose another output or remove it")


def _prefix(target: Path, purpose: str) -> str:
    return f".{target.name}.{purpose}-"


def _retired(target: Path) -> Path:
    return target.with_name(f"{_prefix(target, _DRAFT)}retired")


@contextmanager
def _sole_use(target: Path, purpose: str, wait: bool) -> Iterator[None]:
    path = target.with_name(f".{target.name}.{purpose}.lock")
    descriptor = _lock(path, wait)
    if descriptor is None:
        raise ParitybitError(f"{target}: another process is making it; wait for its end, or choose another output")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _lock(path: Path, wait: bool) -> int | None:
    """A descriptor that holds the lock on the file of that name; None if another process has it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.path.samestat(path.stat(), os.fstat(descriptor)):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:
            # who held it has removed it at the end: a lock on a file without a name keeps nobody out
            pass
        os.close(descriptor)


def _remove_leftovers(target: Path, purpose: str) -> None:
    retired = _retired(target)
    if purpose == _DRAFT and retired.exists() and not target.exists():
        retired.rename(target)
    for leftover in target.parent.iterdir():
        if leftover.name.startswith(_prefix(target, purpose)):
            shutil.rmtree(leftover, ignore_errors=True)


def _sync(directory: Path) -> None:
    for path in [*directory.rglob("*"), directory]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _exchange(draft: Path, target: Path) -> bool:
    """Swaps the two in one step; False where system or file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    names = os.fsencode(draft), os.fsencode(target)
    return bool(libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)


def _replace(draft: Path, target: Path) -> None:
    """The same in two steps; killed between them, the next one to publish gives the old directory its name back."""
    retired = _retired(target)
    target.rename(retired)
    draft.rename(target)
    shutil.rmtree(retired, ignore_errors=True)
