import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks import ParitybitError
from tasks.directory import digest_of, publish_directory


def publish(target: Path, content: str) -> None:
    with publish_directory(target, "marker") as draft:
        (draft / "marker").write_text(content)


def others(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir() if path != target)


def test_published_under_its_name_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "bundle"
    publish(target, "one")
    assert (target / "marker").read_text() == "one"
    assert others(target) == []


def test_second_one_replaces_the_first_whole(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    publish(target, "one")
    (target / "only in the first").touch()
    publish(target, "two")
    assert (target / "marker").read_text() == "two"
    assert [path.name for path in target.iterdir()] == ["marker"]
    assert others(target) == []


def test_failure_keeps_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    publish(target, "one")
    with pytest.raises(RuntimeError), publish_directory(target, "marker") as draft:
        (draft / "marker").write_text("two")
        raise RuntimeError
    assert (target / "marker").read_text() == "one"
    assert others(target) == []


def test_without_marker_nothing_is_published(tmp_path: Path) -> None:
    with pytest.raises(ParitybitError, match="marker was not written"), publish_directory(tmp_path / "x", "marker"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_somebody_elses_directory_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ParitybitError, match="exists and holds no marker"):
        publish(tmp_path, "one")
    assert (tmp_path / "thesis.tex").exists()


def test_killed_while_publishing_leaves_the_old_or_the_new_whole(tmp_path: Path) -> None:
    """A process that publishes without end is killed at moments spread over its work."""
    target = tmp_path / "bundle"
    publish(target, "0" * 10_000)
    code = (
        "import itertools, sys; from pathlib import Path; from tasks.directory import publish_directory\n"
        "for n in itertools.count():\n"
        "    with publish_directory(Path(sys.argv[1]), 'marker') as draft:\n"
        "        (draft / 'marker').write_text(str(n % 10) * 10_000)\n"
        "    print(n, flush=True)\n"
    )
    for attempt in range(10):
        with subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.003 * attempt)
            os.kill(process.pid, signal.SIGKILL)
        content = (target / "marker").read_text()
        assert content == content[0] * 10_000


def test_digest_sees_names_bytes_and_absence(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    first = digest_of(tmp_path, ["a", "b"])
    assert first == digest_of(tmp_path, ["b", "a"])
    (tmp_path / "b").write_text("")
    second = digest_of(tmp_path, ["a", "b"])
    (tmp_path / "a").write_text("2")
    assert len({first, second, digest_of(tmp_path, ["a", "b"])}) == 3
