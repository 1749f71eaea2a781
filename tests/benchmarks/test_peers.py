"""What the comparison with peers writes, and the environments that it builds."""

from pathlib import Path

import pytest

from benchmarks.peers import environments
from benchmarks.peers.__main__ import RESULTS, TABLE, table
from benchmarks.peers.comparison import OURS, PeersReport
from benchmarks.peers.environments import PEERS, environment
from tasks.errors import ParitybitError


def test_the_committed_table_is_that_of_the_committed_results() -> None:
    assert TABLE.read_text(encoding="utf-8") == table(RESULTS)


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_every_engine_stands_beside_ours_at_the_same_shape_and_threads(path: Path) -> None:
    report = PeersReport.model_validate_json(path.read_bytes())
    places = {(one.workload, one.threads) for one in report.timings}
    for engine in {one.engine for one in report.timings}:
        assert {(one.workload, one.threads) for one in report.timings if one.engine == engine} == places
    own = {(one.workload, one.threads): one for one in report.timings if one.engine == OURS}
    for one in report.timings:
        ratio = one.ms.median / own[one.workload, one.threads].ms.median
        # the one is the median of ratios by round, the other the ratio of medians
        assert one.ours_times_as_fast.median == pytest.approx(ratio, rel=0.1)


def test_an_environment_is_built_once_and_anew_for_other_requirements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[list[str]] = []

    def run(command: list[str], what: str) -> None:
        built.append(command)
        (tmp_path / "optimum").mkdir(exist_ok=True)

    monkeypatch.setattr(environments, "_run", run)
    python = environment("optimum", tmp_path)
    assert python == environment("optimum", tmp_path) == tmp_path / "optimum" / "bin" / "python"
    assert len(built) == 2, "made, and filled"
    changed = tmp_path / "optimum.txt"
    changed.write_text("onnx\n")
    monkeypatch.setattr(environments, "requirements_of", lambda peer: changed)
    environment("optimum", tmp_path)
    assert len(built) == 4
    assert str(changed) in built[-1]


def test_packages_that_cannot_be_had_are_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = tmp_path / "nothing.txt"
    nothing.write_text("./no-such-package\n")
    monkeypatch.setattr(environments, "requirements_of", lambda peer: nothing)
    with pytest.raises(ParitybitError, match=r"packages of openvino: exit code 1: .*no-such-package") as error:
        environment("openvino", tmp_path / "environments")
    assert "\n" not in str(error.value)
    assert set(PEERS) == {"optimum", "openvino"}
