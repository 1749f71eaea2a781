import os
from pathlib import Path

import pytest

from bundle.cpu import available_cpus, instruction_set, sums_int8_exactly


@pytest.fixture(autouse=True)
def sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def cpus(tmp_path: Path, own: str) -> int:
    write(tmp_path / "own", own)
    return available_cpus(tmp_path / "cgroup", tmp_path / "own")


def test_v2_quota(tmp_path: Path) -> None:
    write(tmp_path / "cgroup/cpu.max", "250000 100000\n")
    assert cpus(tmp_path, "0::/\n") == 2


def test_v2_parent_binds_the_child(tmp_path: Path) -> None:
    write(tmp_path / "cgroup/pod/cpu.max", "300000 100000\n")
    write(tmp_path / "cgroup/pod/box/cpu.max", "max 100000\n")
    assert cpus(tmp_path, "0::/pod/box\n") == 3


def test_v1_quota(tmp_path: Path) -> None:
    write(tmp_path / "cgroup/cpu/box/cpu.cfs_quota_us", "400000\n")
    write(tmp_path / "cgroup/cpu/box/cpu.cfs_period_us", "100000\n")
    assert cpus(tmp_path, "5:cpuacct,cpu:/box\n4:memory:/box\n") == 4


def test_part_of_a_processor_is_one(tmp_path: Path) -> None:
    write(tmp_path / "cgroup/cpu.max", "50000 100000\n")
    assert cpus(tmp_path, "0::/\n") == 1


@pytest.mark.parametrize("quota", ["max 100000", "-1", "nonsense"])
def test_no_quota_gives_the_affinity(tmp_path: Path, quota: str) -> None:
    write(tmp_path / "cgroup/cpu.max", quota)
    assert cpus(tmp_path, "0::/\n") == 16
    assert available_cpus(tmp_path / "absent", tmp_path / "absent") == 16


def test_instruction_set_keeps_what_chooses_kernels(tmp_path: Path) -> None:
    write(tmp_path / "cpuinfo", "processor : 0\nflags\t\t: fpu sse avx2 fma avx512f avx512_vnni\nflags : none\n")
    assert instruction_set(tmp_path / "cpuinfo") == ("avx2", "fma", "avx512f", "avx512_vnni")
    assert instruction_set(tmp_path / "absent") == ()


@pytest.mark.parametrize(
    ("flags", "exact"),
    [
        (("avx2", "fma"), False),
        (("avx2", "fma", "avx512f"), False),
        (("avx2", "fma", "avx_vnni"), True),
        (("avx2", "fma", "avx512f", "avx512_vnni"), True),
        (("asimddp",), True),
        ((), False),
    ],
)
def test_only_instructions_for_bytes_sum_full_range_exactly(flags: tuple[str, ...], exact: bool) -> None:
    assert sums_int8_exactly(flags) is exact
