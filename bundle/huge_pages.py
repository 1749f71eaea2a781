"""Weights and activations in huge pages, where the system has some to give.

An encoder reads all its weights for every batch. In pages of 4 KiB these are tens of thousands of addresses to
translate, more than a processor remembers, and in a virtual machine each translation walks two page tables: up to a
fifth of the time goes into it (benchmarks/LOG.md). Linux hands out huge pages by itself only where transparent huge
pages are set to `always`; with `madvise`, as distributions set it, a program has to ask.
"""

import ctypes
import mmap
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["HugePages"]

_PAGE_SIZE_FILE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
_MAPPINGS_FILE = Path("/proc/self/maps")
_COLLAPSE = 25
"""MADV_COLLAPSE of linux/mman.h, since Linux 6.1: now, and not when the kernel comes by. Python has no name for it."""

_Region = tuple[int, int]  # from the first address to the one behind the last


class HugePages:
    """Asks for huge pages for what the process allocates from here on; where there are none, nothing happens."""

    def __init__(self) -> None:
        """Remembers what is allocated already, and stays as it is."""
        self._page = _huge_page_size()
        self._known = _anonymous() if self._page else []

    def claim(self) -> None:
        """Moves all memory that was allocated since the last call; what lies in it stays the same.

        Memory that nobody wrote to yet takes no room. The bytes are copied: a second, at worst, for 250 MB.
        """
        if self._page:
            now = _anonymous()
            for start, end in _new(now, self._known):
                _advise(-(-start // self._page) * self._page, end // self._page * self._page, self._page)
            self._known = now


def _huge_page_size() -> int:
    """In bytes; 0 where the kernel has no transparent huge pages."""
    try:
        return int(_PAGE_SIZE_FILE.read_text())
    except (OSError, ValueError):
        return 0


def _anonymous() -> list[_Region]:
    """The process's own writable memory that is of no file, by address."""
    regions = []
    for line in _MAPPINGS_FILE.read_text().splitlines():
        addresses, rights, *_, inode = line.split(maxsplit=5)[:5]
        # the allocator's heap has a name; stacks and what the kernel keeps there have others
        if rights == "rw-p" and inode == "0" and (not line.endswith("]") or line.endswith("[heap]")):
            start, _, end = addresses.partition("-")
            regions.append((int(start, 16), int(end, 16)))
    return regions


def _new(now: Iterable[_Region], known: Iterable[_Region]) -> Iterator[_Region]:
    """What of the regions is not known; neighbours are one region to the kernel, whoever asked for them."""
    for start, end in now:
        rest = start
        for known_start, known_end in known:
            if known_end > rest and known_start < end:
                if known_start > rest:
                    yield rest, known_start
                rest = known_end
        if rest < end:
            yield rest, end


def _advise(start: int, end: int, page: int) -> None:
    if start >= end:
        return
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    # older kernels then do it in the background
    advise(start, end - start, mmap.MADV_HUGEPAGE)
    # page by page, for one that cannot be moved ends the call
    for address in range(start, end, page):
        advise(address, page, _COLLAPSE)
