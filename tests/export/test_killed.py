"""Exports and publications that come to a sudden end: killed at any moment, or on a full disk."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from bundle import Predictor
from bundle.manifest import VARIANTS, VARIANTS_FILE, read_manifest
from export.publication import is_current, workplace
from tasks.directory import publish_directory, remove_leftovers, scratch_directory
from tasks.errors import ParitybitError
from tests.toy import LENIENT

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path.cwd())}

PUBLISH_AND_BE_KILLED = """
import itertools, json, os, signal, sys
from pathlib import Path
import tasks.directory

target = Path(sys.argv[1])
names = ["a", "b", "marker"]
if sys.argv[2] == "no exchange":
    tasks.directory._exchange = lambda draft, target: False

def publish(content):
    with tasks.directory.publish_directory(target, "marker") as draft:
        for name in names:
            (draft / name).write_text(content)

def found():
    return sorted({(target / name).read_text() for name in names}) if target.exists() else []

def kill_at(step):
    steps = itertools.count(1)
    def watch(event, _):
        if event.split(".")[0] in ("open", "os", "shutil", "fcntl", "ctypes") and next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(watch)

publish("old")
for step in itertools.count(1):
    child = os.fork()
    if child == 0:
        kill_at(step)
        publish("new")
        os._exit(0)
    killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
    left = found()
    hidden = sum(path != target for path in target.parent.iterdir())
    tasks.directory.remove_leftovers(target)
    after = found()
    beside = sum(path != target for path in target.parent.iterdir())
    print(json.dumps({"killed": killed, "left": left, "hidden": hidden, "after": after, "beside": beside}))
    if not killed:
        break
    publish("old")
"""

HOLD = """
import sys, time
from pathlib import Path
from tasks.directory import scratch_directory
with scratch_directory(Path(sys.argv[1]), sys.argv[2]) as work:
    (work / "half").write_text("done")
    print(work, flush=True)
    time.sleep(100)
"""

FILL = """
import resource, sys
from pathlib import Path
from tasks.directory import publish_directory
from tasks.errors import ParitybitError
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
try:
    with publish_directory(Path(sys.argv[1]), "marker") as draft:
        (draft / "small").write_text("fits")
        (draft / "marker").write_bytes(b"x" * 20_000)
except ParitybitError as error:
    sys.exit(str(error))
"""

QUICK = """
import sys
import export.selection
from bundle.manifest import SessionSettings
export.selection._settings_worth_trying = lambda model: [SessionSettings()]
export.selection._ROUNDS = export.selection._LEAST_ROUNDS = 1
export.selection._WARM_UP_S = 0.01
"""

EXPORT_IN_CHILDREN = f"""{QUICK}
import json, os, shutil, signal
from pathlib import Path
import export.pipeline
from finetune.recipe import recipe_of_run

# torch takes seconds to trace the same model again, and writes one file at its end
trace, traced, graph = export.pipeline.export_graph, [], Path(sys.argv[4])
def trace_once(model, path, *rest):
    if not traced:
        traced.append(trace(model, graph, *rest))
    shutil.copyfile(graph, path)
    return traced[0]
export.pipeline.export_graph = trace_once

def export_bundle(golden_rows):
    overrides = [*json.loads(sys.argv[3]), f"export.golden_rows={{golden_rows}}"]
    recipe = recipe_of_run(Path(sys.argv[1]), overrides)
    export.pipeline.export_bundle(sys.argv[1], Path(sys.argv[2]), recipe=recipe, force=True, report=say)

def say(line):
    print(line, flush=True)

export_bundle(1)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        say(os.getpid())
        export_bundle(int(line))
        say("end")
        signal.pause()
    os.waitpid(child, 0)
    say("over")
"""

EXPORT_ONTO_A_FULL_DISK = f"""{QUICK}
import resource
import export.pipeline
publish = export.pipeline.publish_bundle
def publish_on_full_disk(*arguments):
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    publish(*arguments)
export.pipeline.publish_bundle = publish_on_full_disk
from paritybit.cli import main
main()
"""


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT, timeout=120)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("exchange", ["exchange", "no exchange"])
def test_killed_before_any_step_of_a_publication_the_old_or_the_new_is_there_whole(
    tmp_path: Path, exchange: str
) -> None:
    """Every call that Python makes to the file system is a step; the process dies by SIGKILL before it."""
    done = run(PUBLISH_AND_BE_KILLED, tmp_path / "bundle", exchange)
    steps: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.stderr == ""
    assert len(steps) > 20
    assert [one["killed"] for one in steps] == [True] * (len(steps) - 1) + [False]
    assert [one["after"] for one in steps] == sorted(([one["after"][0]] for one in steps), reverse=True)
    assert {one["after"][0] for one in steps} == {"old", "new"}
    assert {one["beside"] for one in steps} == {0}
    assert max(one["hidden"] for one in steps) >= 2
    if exchange == "exchange":
        assert [one["left"] for one in steps] == [one["after"] for one in steps], "at no moment is the name empty"


def test_a_second_process_in_the_same_place_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(target), "graphs"], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as first:
        assert first.stdout is not None
        left = Path(first.stdout.readline().strip())
        with pytest.raises(ParitybitError, match=f"{target}: another process is making it"), workplace(target):
            pytest.fail("two at work")
        assert (left / "half").read_text() == "done"
        with workplace(tmp_path / "other") as elsewhere:
            assert elsewhere.is_dir()
        first.kill()
    assert left.is_dir()
    with workplace(target) as work:
        assert not left.exists()
        assert list(work.iterdir()) == []
    assert names_in(tmp_path) == []


def test_the_next_export_removes_drafts_that_were_left(tmp_path: Path) -> None:
    for name in ("bundle", "variants"):
        command = [sys.executable, "-c", HOLD, str(tmp_path / name), "draft"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=ENVIRONMENT) as killed:
            assert killed.stdout is not None
            killed.stdout.readline()
            killed.kill()
    assert len(names_in(tmp_path)) == 4
    with workplace(tmp_path / "bundle") as work:
        assert set(names_in(tmp_path)) == {work.name, ".bundle.graphs.lock"}


def test_a_publication_waits_for_one_under_way(tmp_path: Path) -> None:
    target, order = tmp_path / "bundle", []
    inside = threading.Event()

    def first() -> None:
        with publish_directory(target, "marker") as draft:
            inside.set()
            time.sleep(0.3)
            order.append("first")
            (draft / "marker").write_text("first")

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait(5)
    with publish_directory(target, "marker") as draft:
        order.append("second")
        (draft / "marker").write_text("second")
    thread.join()
    assert order == ["first", "second"]
    assert (target / "marker").read_text() == "second"
    assert names_in(tmp_path) == ["bundle"]


def test_leftovers_of_another_name_stay(tmp_path: Path) -> None:
    with scratch_directory(tmp_path / "bundle2", "draft") as other:
        remove_leftovers(tmp_path / "bundle")
        assert other.is_dir()


def test_a_full_disk_is_one_line_and_leaves_the_old_directory_alone(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with publish_directory(target, "marker") as draft:
        (draft / "marker").write_text("old")
    done = run(FILL, target)
    assert (done.returncode, done.stderr.strip()) == (
        1,
        f"{target}: not written: File too large; what was there before is untouched",
    )
    assert [(path.name, path.read_text()) for path in target.iterdir()] == [("marker", "old")]
    assert names_in(tmp_path) == ["bundle"]


@pytest.mark.real
def test_a_bundle_beside_the_candidates_of_another_run_is_not_current(tiny_export: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(tiny_export.parent, tmp_path / "copy") / "bundle"
    digest = read_manifest(bundle).inputs_digest
    assert is_current(bundle, digest)
    variants = bundle.parent / "variants"
    index = variants / VARIANTS_FILE
    entries = VARIANTS.validate_json(index.read_bytes())

    def current_with(changed: dict[str, Any]) -> bool:
        index.write_bytes(VARIANTS.dump_json(changed))
        return is_current(bundle, digest)

    assert current_with(entries)
    fp32 = entries["fp32"]
    assert not current_with(entries | {"fp32": fp32.model_copy(update={"verdict": "fail"})})
    assert not current_with({name: one for name, one in entries.items() if name != "int8-static"})
    assert not current_with(entries | {"another": fp32})
    assert current_with(entries)
    with (variants / "int8-dynamic.onnx").open("r+b") as graph:
        graph.seek(100)
        graph.write(b"\0\1\2\3")
    assert not is_current(bundle, digest)
    shutil.rmtree(variants)
    assert not is_current(bundle, digest)


class Exporter:
    """Exports in processes of their own, forked from one that has already loaded what takes seconds to load."""

    def __init__(self, checkpoint: Path, output: Path, graph: Path) -> None:
        overrides = json.dumps([*LENIENT, 'export.variants=["fp32"]'])
        command = [sys.executable, "-c", EXPORT_IN_CHILDREN, str(checkpoint), str(output), overrides, str(graph)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        environment = ENVIRONMENT | {"TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(command, text=True, env=environment, **pipes)  # type: ignore[call-overload]

    def __enter__(self) -> "Exporter":
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:
            self._process.kill()

    def export(self, golden_rows: int) -> dict[str, float]:
        """A whole one: seconds from what it has said to its end."""
        said: dict[str, float] = {}
        pid = self._begin(golden_rows)
        while "end" not in said:
            line = self._next()
            said[line] = time.monotonic()
        self._kill(pid)
        return {line: said["end"] - moment for line, moment in said.items()}

    def export_until(self, golden_rows: int, after: str, seconds: float) -> None:
        """One that gets SIGKILL so many seconds after it has said something."""
        pid = self._begin(golden_rows)
        while self._next() != after:
            pass
        time.sleep(seconds)
        self._kill(pid)

    def _kill(self, pid: int) -> None:
        # the process is there still: at its end it waits for this
        os.kill(pid, signal.SIGKILL)
        while self._next() != "over":
            pass

    def _begin(self, golden_rows: int) -> int:
        self._process.stdin.write(f"{golden_rows}\n")
        self._process.stdin.flush()
        while not (line := self._next()).isdecimal():
            pass
        return int(line)

    def _next(self) -> str:
        line = str(self._process.stdout.readline())
        assert line, f"exit code {self._process.wait()}"
        return line.strip()


@pytest.mark.thorough
def test_an_export_killed_at_ten_random_moments_leaves_the_old_or_the_new_bundle_whole(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Half of the moments lie anywhere in the export, half in its end, where it judges and publishes."""
    bundle = tmp_path / "build" / "bundle"
    drawn, left = random.Random(11), set()
    with Exporter(tiny_checkpoint, bundle, tmp_path / "fp32.onnx") as exporter:
        lasts = exporter.export(1)
        for attempt in range(10):
            after = "judging fp32" if attempt % 2 else "PyTorch answers the test rows"
            before = (bundle / "manifest.json").read_bytes()
            exporter.export_until(2 + attempt, after, drawn.uniform(0, lasts[after]))
            golden = Predictor.load(bundle).replay_golden()
            assert golden.passed
            is_old = (bundle / "manifest.json").read_bytes() == before
            assert is_old or golden.rows == 2 + attempt, "the old one, or that of this run"
            left.update(name.split("-")[0] for name in names_in(bundle.parent) if name.startswith("."))
        assert ".bundle.graphs" in left, "no moment was before the end"
        exporter.export(1)
    assert names_in(bundle.parent) == ["bundle", "variants"]
    assert is_current(bundle, read_manifest(bundle).inputs_digest)
    assert Predictor.load(bundle).replay_golden().rows == 1


@pytest.mark.real
def test_an_export_onto_a_full_disk_says_so_in_a_line_and_keeps_the_old_bundle(
    tiny_export: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    bundle = shutil.copytree(tiny_export.parent, tmp_path / "copy") / "bundle"
    before = (bundle / "manifest.json").read_bytes()
    options = [option for one in (*LENIENT, 'export.variants=["fp32"]') for option in ("--set", one)]
    done = run(EXPORT_ONTO_A_FULL_DISK, "export", tiny_checkpoint, "--output", bundle, "--force", *options)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"paritybit: {bundle}: not written: File too large; what was there before is untouched"
    )
    assert "Traceback" not in done.stderr
    assert (bundle / "manifest.json").read_bytes() == before
    assert Predictor.load(bundle).replay_golden().passed
    assert names_in(bundle.parent) == ["bundle", "variants"]
