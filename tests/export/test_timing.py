import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper

from bundle.manifest import SessionSettings
from export.timing import Measurements, Spread, Worker, WorkerSpec, Workload, measure, ort_spec
from tasks import ParitybitError, Window

HERE = __name__


def sleeping_engine(*, seconds, log=None, name=""):
    sys.stdout.write("a stray print of a library\n")
    os.write(1, b"and a stray write below Python\n")

    def run(batch):
        time.sleep(seconds)
        if log:
            with Path(log).open("a") as file:
                file.write(f"{name} {batch['input_ids'].shape[1]}\n")

    return run


def dying_engine(*, after):
    calls = iter(range(after))

    def run(_batch):
        if next(calls, None) is None:
            raise RuntimeError("out of spoons")

    return run


def silent_engine():
    os._exit(3)


def spinning_engine(*, seconds):
    import threading

    def spin():
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass

    return lambda _batch: threading.Thread(target=spin).start()


def sleeper(seconds, **more):
    return WorkerSpec(f"{HERE}:sleeping_engine", {"seconds": seconds, **more})


def path_engine(file):
    """Leaves where its process looks for modules."""
    Path(file).write_text(os.environ["PYTHONPATH"])
    return lambda batch: None


def children():
    """Live processes whose parent is this one."""
    return [process for process in psutil.Process().children() if "serve_worker" in " ".join(process.cmdline())]


def write_chain(path, multiplications, width=64):
    """A graph that embeds ids and multiplies them by a matrix a number of times."""
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["x0"])]
    nodes += [helper.make_node("MatMul", [f"x{i}", "matrix"], [f"x{i + 1}"]) for i in range(multiplications)]
    weights = {
        "table": rng.normal(size=(100, width)).astype(np.float32),
        "matrix": (rng.normal(size=(width, width)) / width).astype(np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])],
        [helper.make_tensor_value_info(f"x{multiplications}", TensorProto.FLOAT, ["batch", "tokens", width])],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def test_the_slower_graph_ranks_last_whatever_it_is_called(tmp_path):
    graphs = {name: write_chain(tmp_path / f"{name}.onnx", steps) for name, steps in {"a": 60, "b": 1, "c": 15}.items()}
    specs = {name: ort_spec(path, SessionSettings(), threads=1) for name, path in graphs.items()}

    seen = measure(specs, [Workload.random(4, 32, 100, passes=5), Workload.random(1, 64, 100, passes=5)], rounds=5)

    assert [name for name, _ in seen.ranking()] == ["b", "c", "a"]
    assert seen.ranking()[0][1] == 1.0
    assert seen.ranking()[2][1] > seen.ranking()[1][1] > 1.5
    assert seen.speedup("b", "4×32", over="a").median > 5
    assert seen.seconds["a"]["4×32"].shape == (5, 5)
    assert seen.rounds == 5
    assert all(1 < mib < 2000 for mib in seen.peak_mib.values())
    assert all(0.05 < seconds < 60 for seconds in seen.load_s.values())


def test_every_round_holds_each_worker_and_workload_once_and_orders_vary(tmp_path):
    log = tmp_path / "log"
    specs = {name: sleeper(0, log=str(log), name=name) for name in "abc"}
    workloads = [Workload.random(1, tokens, 10, passes=1, settle=0) for tokens in (2, 3)]

    measure(specs, workloads, rounds=6, warmup_s=0)

    steps = log.read_text().splitlines()[6:]  # each was warmed up with one batch
    rounds = [steps[start : start + 6] for start in range(0, len(steps), 6)]
    everything = Counter(f"{name} {tokens}" for name in "abc" for tokens in (2, 3))
    assert len(rounds) == 6
    assert all(Counter(one) == everything for one in rounds)
    # within a round a workload is run by everybody before the next one starts: that is what pairs them
    assert all(len({step.split()[1] for step in one[:3]}) == 1 for one in rounds)
    assert len({one[0] for one in rounds}) > 2


def test_warm_up_and_settling_passes_are_run_but_not_reported(tmp_path):
    log = tmp_path / "log"
    workload = Workload.random(1, 2, 10, passes=3, settle=2)

    seen = measure({"a": sleeper(0, log=str(log))}, [workload], rounds=4, warmup_s=0)

    assert len(log.read_text().splitlines()) == 1 + 4 * (2 + 3)
    assert seen.seconds["a"]["1×2"].shape == (4, 3)


def test_warm_up_goes_round_a_short_workload_and_does_not_end_a_long_one(tmp_path):
    log = tmp_path / "log"
    short = Workload.random(1, 2, 10, passes=1, settle=0)
    long = Workload("long", Workload.random(1, 3, 10).batches * 100)
    with Worker("a", sleeper(0.02, log=str(log)), tmp_path) as worker:
        for workload in (short, long):
            arrays = {f"{i}.{name}": ids for i, batch in enumerate(workload.batches) for name, ids in batch.items()}
            np.savez(tmp_path / "batches.npz", **arrays)
            worker.warm_up((tmp_path / "batches.npz").rename(tmp_path / f"{workload.name}.npz"), 0.2)

    ran = Counter(log.read_text().split())
    assert 2 <= ran["2"] <= 11
    assert 2 <= ran["3"] <= 11


def test_the_budget_ends_the_run_after_the_round_in_progress():
    started = time.monotonic()

    seen = measure(
        {"a": sleeper(0.2)}, [Workload.random(1, 2, 10, passes=1, settle=0)], rounds=100, min_rounds=2, budget_s=0.5
    )

    assert 2 <= seen.rounds < 10
    assert time.monotonic() - started < 20


def test_the_budget_does_not_cut_below_min_rounds():
    seen = measure({"a": sleeper(0.01)}, [Workload.random(1, 2, 10, passes=1)], rounds=100, min_rounds=4, budget_s=0.0)

    assert seen.rounds == 4


def test_progress_reaches_its_total():
    told = []

    measure(
        {"a": sleeper(0), "b": sleeper(0)},
        [Workload.random(1, 2, 10, passes=1)],
        rounds=3,
        progress=lambda *s: told.append(s),
    )

    assert told == [(step, 8) for step in range(1, 9)]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            WorkerSpec(f"{HERE}:dying_engine", {"after": 2}),
            r"timing of bad: .*exit code 1.*RuntimeError: out of spoons",
        ),
        (WorkerSpec(f"{HERE}:silent_engine"), r"timing of bad: .*exit code 3.*no message"),
        (WorkerSpec(f"{HERE}:no_such_engine"), r"timing of bad: .*no_such_engine"),
        (
            ort_spec(Path("nowhere.onnx"), SessionSettings(), threads=1),
            r"timing of bad: .*BundleError: nowhere.onnx: ONNX Runtime cannot load it",
        ),
    ],
)
def test_a_worker_that_dies_is_named_with_its_last_line_and_none_is_left(spec, message):
    with pytest.raises(ParitybitError, match=message):
        measure({"good": sleeper(0), "bad": spec}, [Workload.random(1, 2, 10)])

    assert children() == []


def test_a_killed_worker_is_an_error_not_a_hang(tmp_path):
    with Worker("victim", sleeper(30), tmp_path) as worker:
        batches = tmp_path / "batches.npz"
        np.savez(batches, **{"0.input_ids": np.zeros((1, 2), dtype=np.int64)})
        os.kill(worker._process.pid, signal.SIGKILL)
        with pytest.raises(ParitybitError, match="victim: its process ended"):
            worker.run(batches, 1, 0)


def test_a_hung_worker_is_ended(monkeypatch):
    monkeypatch.setattr("export.timing.ANSWER_LIMIT_S", 2.0)

    with pytest.raises(ParitybitError, match="timing of slow: no answer within 2 s"):
        measure({"slow": sleeper(60)}, [Workload.random(1, 2, 10)])

    assert children() == []


def test_no_process_is_left_after_a_run_or_a_keyboard_interrupt():
    def interrupt(done, _total):
        if done == 2:
            assert len(children()) == 2
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure({"a": sleeper(0), "b": sleeper(0)}, [Workload.random(1, 2, 10)], progress=interrupt)

    assert children() == []


def test_workers_of_a_killed_parent_end_by_themselves(tmp_path):
    script = (
        "import sys; from pathlib import Path; from export.timing import Worker, WorkerSpec\n"
        f"worker = Worker('a', WorkerSpec('{HERE}:sleeping_engine', {{'seconds': 0}}), Path(sys.argv[1]))\n"
        "print(worker._process.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with parent:
        orphan = Path(f"/proc/{int(parent.stdout.readline())}")
        assert orphan.exists()
        parent.kill()
    deadline = time.monotonic() + 10
    while _runs(orphan) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(orphan)


def test_a_worker_answers_only_once_its_threads_are_quiet(tmp_path):
    batches = tmp_path / "batches.npz"
    np.savez(batches, **{"0.input_ids": np.zeros((1, 2), dtype=np.int64)})
    with Worker("spinner", WorkerSpec(f"{HERE}:spinning_engine", {"seconds": 0.2}), tmp_path) as worker:
        started = time.perf_counter()
        (seconds,) = worker.run(batches, 1, 0)
        waited = time.perf_counter() - started

    assert waited > 0.19
    assert seconds < 0.1


def test_statistics_on_known_numbers():
    seen = Measurements(
        seconds={
            "slow": {
                "1×16": np.array([[4.0, 4.0], [8.0, 8.0], [2.0, 2.0]]),
                "real": np.array([[10.0], [20.0], [30.0]]),
            },
            "fast": {"1×16": np.array([[1.0, 1.0], [4.0, 4.0], [1.0, 1.0]]), "real": np.array([[5.0], [10.0], [15.0]])},
        },
        texts={"1×16": 1, "real": 60},
        load_s={},
        peak_mib={},
    )

    assert seen.spread("slow", "real") == Spread(median=20.0, q1=15.0, q3=25.0)
    assert seen.p95("slow", "real") == pytest.approx(29.0)
    assert seen.texts_per_s("fast", "real").median == 6.0
    # paired: 4/1, 8/4, 2/1; of the medians it would be 4/1
    assert seen.speedup("fast", "1×16", over="slow") == Spread(median=2.0, q1=2.0, q3=3.0)
    assert seen.speedup("slow", "real", over="fast").median == 0.5
    assert seen.ranking() == [("fast", 1.0), ("slow", pytest.approx(2.0))]


def test_only_the_workloads_that_count_decide_the_ranking():
    seconds = {
        "quick alone": {"1×16": np.array([[1.0]]), "real": np.array([[9.0]])},
        "quick in batches": {"1×16": np.array([[2.0]]), "real": np.array([[3.0]])},
    }
    seen = Measurements(seconds=seconds, texts={"1×16": 1, "real": 60}, load_s={}, peak_mib={})
    assert seen.ranking({"1×16"}) == [("quick alone", 1.0), ("quick in batches", pytest.approx(2.0))]
    assert seen.ranking({"real"}) == [("quick in batches", 1.0), ("quick alone", pytest.approx(3.0))]


def test_speedup_over_other_batches_of_the_same_texts():
    seen = Measurements(
        seconds={
            "a": {"sorted": np.array([[1.0]]), "padded": np.array([[3.0]])},
            "b": {"sorted": np.array([[2.0]]), "padded": np.array([[8.0]])},
        },
        texts={"sorted": 10, "padded": 10},
        load_s={},
        peak_mib={},
    )

    assert seen.speedup("a", "sorted", over="b", over_workload="padded").median == 8.0


def test_a_drift_of_the_machine_does_not_change_the_ranking():
    drift = np.linspace(1, 10, 7)[:, None]
    seen = Measurements(
        seconds={"a": {"w": 1.05 * drift}, "b": {"w": 1.0 * drift}}, texts={"w": 1}, load_s={}, peak_mib={}
    )

    assert seen.ranking() == [("b", 1.0), ("a", pytest.approx(1.05))]


def test_workloads_of_windows_pad_each_batch_to_its_longest():
    windows = [
        Window(row, np.arange(1, n + 1), np.zeros(n, dtype=np.int64), truncated=False)
        for row, n in enumerate((3, 5, 2))
    ]

    workload = Workload.of_windows("real", windows, [[2, 0], [1]], pad_id=9)

    assert workload.texts == 3
    assert workload.batches[0]["input_ids"].tolist() == [[1, 2, 9], [1, 2, 3]]
    assert workload.batches[0]["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert workload.batches[1]["input_ids"].shape == (1, 5)


def test_random_workloads_are_seeded_and_below_the_vocabulary():
    one, same, other = (Workload.random(8, 16, 50, seed=seed) for seed in (1, 1, 2))

    ids = one.batches[0]["input_ids"]
    assert one.name == "8×16"
    assert ids.min() >= 0 and ids.max() < 50
    assert np.array_equal(ids, same.batches[0]["input_ids"])
    assert not np.array_equal(ids, other.batches[0]["input_ids"])


def test_an_impossible_measurement_is_refused():
    with pytest.raises(ValueError, match="same name"):
        measure({"a": sleeper(0)}, [Workload.random(1, 2, 10), Workload.random(1, 2, 10)])
    with pytest.raises(ValueError, match="min_rounds"):
        measure({"a": sleeper(0)}, [Workload.random(1, 2, 10)], rounds=2, min_rounds=3)


def _runs(process: Path) -> bool:
    try:
        # a zombie that nobody reaps has ended too
        return process.joinpath("stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_worker_of_another_python_sees_the_rooms_and_not_the_packages_of_this_one(tmp_path):
    other = tmp_path / "python"
    other.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    other.chmod(0o755)
    for name, python in (("own", sys.executable), ("other", str(other))):
        spec = WorkerSpec(f"{HERE}:path_engine", {"file": str(tmp_path / name)}, python)
        with Worker(name, spec, tmp_path):
            pass
    root = str(Path(__file__).resolve().parents[2])
    assert (tmp_path / "other").read_text() == root
    assert {root, *(path for path in sys.path if "site-packages" in path)} <= set(
        (tmp_path / "own").read_text().split(os.pathsep)
    )
