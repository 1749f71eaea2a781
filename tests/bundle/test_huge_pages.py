"""Memory that is allocated after the question lies in huge pages, and holds what it held."""

import ctypes
import mmap
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bundle import huge_pages
from bundle.huge_pages import HugePages
from bundle.session import Session

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
TRANSPARENT = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def allocated(size: int) -> tuple[mmap.mmap, int]:
    """Written memory, and its address."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.write(b"paritybit" * (size // 9) + b"." * (size % 9))
    return memory, ctypes.addressof(ctypes.c_char.from_buffer(memory))


def in_huge_pages(address: int = 0, size: int = 1 << 63) -> float:
    """MiB of the process's memory between the addresses."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head, _, rest = line.partition(" ")
        if "-" in head and not head.endswith(":"):
            start, end = (int(one, 16) for one in head.split("-"))
            inside = start < address + size and end > address
        elif head == "AnonHugePages:" and inside:
            total += int(rest.split()[0])
    return total / 1024


@pytest.fixture(scope="module")
def given() -> None:
    """Skips where this kernel gives none when it is asked."""
    if not TRANSPARENT.is_file() or "[never]" in TRANSPARENT.read_text():
        pytest.skip("the kernel has no transparent huge pages")
    pages = HugePages()
    memory, address = allocated(16 * MIB)
    pages.claim()
    if not in_huge_pages(address, len(memory)):
        pytest.skip("the kernel moves nothing into huge pages when it is asked (Linux before 6.1, or none are free)")


@pytest.mark.usefixtures("given")
def test_what_is_allocated_afterwards_is_moved_and_stays_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    older, older_address = allocated(32 * MIB)
    advise, moved = huge_pages._advise, list[tuple[int, int]]()

    def watched(start: int, end: int, page: int) -> None:
        moved.append((start, end))
        advise(start, end, page)

    monkeypatch.setattr(huge_pages, "_advise", watched)
    pages = HugePages()
    memory, address = allocated(32 * MIB)
    content = memory[:]
    pages.claim()
    assert in_huge_pages(address, len(memory)) >= 24
    assert memory[:] == content
    # what was there is left alone, though neighbours are one region to the kernel
    assert not [one for one in moved if one[0] < min(older_address + len(older), one[1]) and one[1] > older_address]
    later, later_address = allocated(32 * MIB)
    pages.claim()
    assert in_huge_pages(later_address, len(later)) >= 24


def graph_of(path: Path, tokens: int | str, nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray]) -> Path:
    """A graph that takes `input_ids` and gives `y`."""
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", tokens])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    onnx.save(model, path)
    return path


def words(path: Path, rows: int) -> Path:
    """One table of 4 KiB rows."""
    table = np.random.default_rng(0).standard_normal((rows, 1024), dtype=np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["words"]),
        helper.make_node("ReduceMean", ["words"], ["y"]),
    ]
    return graph_of(path, "tokens", nodes, {"table": table})


@pytest.mark.usefixtures("given")
def test_a_session_has_its_weights_there(tmp_path: Path) -> None:
    path = words(tmp_path / "model.onnx", 16_384)  # 64 MiB
    before = in_huge_pages()
    session = Session(path, threads=1)
    assert in_huge_pages() - before >= 48
    # and what it needs for a batch: 128 MiB of words
    before = in_huge_pages()
    session.run({"input_ids": np.zeros((64, 512), dtype=np.int64)})
    assert in_huge_pages() - before >= 96


def many_products(path: Path, count: int) -> Path:
    """Weights of 2 MiB each, which the allocator takes from its heap once it has freed some."""
    rng = np.random.default_rng(0)
    weights = {f"weights{number}": rng.standard_normal((720, 720), dtype=np.float32) / 40 for number in range(count)}
    between = [str(number) for number in range(count)]
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["0"], to=TensorProto.FLOAT),
        *(
            helper.make_node("MatMul", [given, name], [product])
            for given, name, product in zip(between, weights, [*between[1:], "y"], strict=True)
        ),
    ]
    return graph_of(path, 720, nodes, weights)


@pytest.mark.usefixtures("given")
def test_weights_on_the_heap_are_there_too(tmp_path: Path) -> None:
    path = many_products(tmp_path / "model.onnx", 48)  # 95 MiB
    asked = """if True:
        import sys
        from pathlib import Path
        import numpy as np
        from bundle import huge_pages
        from bundle.session import Session
        from tests.bundle.test_huge_pages import in_huge_pages
        if sys.argv[2] == "not":
            huge_pages._PAGE_SIZE_FILE = Path("/nowhere")
        before = in_huge_pages()
        answer = Session(Path(sys.argv[1]), threads=1).run({"input_ids": np.arange(720)[None]})
        print(in_huge_pages() - before, answer.tobytes().hex())
    """
    found = {}
    for mode in ("asked", "not"):
        command = [sys.executable, "-c", asked, str(path), mode]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=120)
        found[mode] = done.stdout.split()
    assert float(found["asked"][0]) - float(found["not"][0]) >= 40
    assert found["asked"][1] == found["not"][1]


@pytest.mark.parametrize("size", ["", "many", "-"])
def test_a_kernel_without_them_is_left_alone(size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise AssertionError("asked")

    monkeypatch.setattr(huge_pages, "_PAGE_SIZE_FILE", tmp_path / "hpage_pmd_size")
    monkeypatch.setattr(huge_pages, "_advise", refuse)
    if size:
        (tmp_path / "hpage_pmd_size").write_text(size)
    HugePages().claim()
    session = Session(words(tmp_path / "model.onnx", 64), threads=1)
    assert np.isfinite(session.run({"input_ids": np.zeros((1, 4), dtype=np.int64)}))


@pytest.mark.parametrize(
    ("now", "known", "new"),
    [
        ([(0, 4)], [], [(0, 4)]),
        ([(0, 4)], [(0, 4)], []),
        ([(0, 8)], [(2, 4)], [(0, 2), (4, 8)]),
        ([(2, 8)], [(0, 3), (5, 6), (7, 9)], [(3, 5), (6, 7)]),
        ([(0, 2), (6, 8)], [(2, 6)], [(0, 2), (6, 8)]),
    ],
)
def test_known_parts_are_cut_out(
    now: list[tuple[int, int]], known: list[tuple[int, int]], new: list[tuple[int, int]]
) -> None:
    assert list(huge_pages._new(now, known)) == new
