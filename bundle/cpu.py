"""What this machine gives a process: processors by affinity and cgroup quota, and instruction sets."""

import os
from collections.abc import Collection
from pathlib import Path

__all__ = ["available_cpus", "instruction_set", "sums_int8_exactly"]

_RELEVANT = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
    "bf16",
)
"""Flags that choose another ONNX Runtime kernel, so other speed and, for int8, other rounding."""

_EXACT_INT8 = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})
"""Flags of instructions that add products of bytes in 32 bits; AVX2 and AVX-512 alone add two of them in 16."""


def available_cpus(cgroup: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Whole processors that this process may use: the smaller of affinity and cgroup quota, at least 1.

    A container sees its host's processor count; its share stands in `cpu.max` (cgroup v2) or in
    `cpu.cfs_quota_us` (v1), of its own group or of the root that a cgroup namespace shows it.
    """
    try:
        affinity = len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        affinity = os.cpu_count() or 1
    quotas = [quota for group in _groups(cgroup, own) if (quota := _quota(group)) is not None]
    return max(1, min([affinity, *(int(quota) for quota in quotas)]))


def instruction_set(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, ...]:
    """The flags of the first processor that choose ONNX Runtime's kernels; empty where they cannot be read."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return ()
    flags = next((line.split(":", 1)[1].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return tuple(flag for flag in _RELEVANT if flag in flags)


def sums_int8_exactly(flags: Collection[str]) -> bool:
    """Whether products of uint8 by int8 of full range have the right sums on a processor with these flags."""
    return not _EXACT_INT8.isdisjoint(flags)


def _groups(cgroup: Path, own: Path) -> list[Path]:
    """The directories whose limits bind this process: its own group and all above it."""
    try:
        entries = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        entries = []
    groups = {cgroup, cgroup / "cpu"}
    for _, controllers, path in entries:
        if controllers == "" or "cpu" in controllers.split(","):
            root = cgroup if controllers == "" else cgroup / "cpu"
            group = root / path.lstrip("/")
            groups.update(parent for parent in [group, *group.parents] if parent.is_relative_to(root))
    return sorted(groups)


def _quota(group: Path) -> float | None:
    for read in (_quota_v2, _quota_v1):
        try:
            return read(group)
        except (OSError, ValueError):
            continue
    return None


def _quota_v2(group: Path) -> float | None:
    quota, period = (group / "cpu.max").read_text().split()
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(group: Path) -> float | None:
    quota = int((group / "cpu.cfs_quota_us").read_text())
    return None if quota <= 0 else quota / int((group / "cpu.cfs_period_us").read_text())
