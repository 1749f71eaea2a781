"""Starting and not starting `bentoml serve`."""

import shutil
from pathlib import Path

from tests.serve.conftest import serving
from tests.serve.test_engine import change_golden


def refusal(tmp_path: Path, **settings: str) -> str:
    """The whole output of a server that refuses to start."""
    with serving(tmp_path / "log", ready=False, **settings) as server:
        assert server.process.wait(30) == 1
    return (tmp_path / "log").read_text().strip()


def test_a_damaged_bundle_is_refused_in_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    (bundle / "tokenizer.json").write_text("{}")
    output = refusal(tmp_path, PARITYBIT_BUNDLE=str(bundle))
    assert f"{bundle}/tokenizer.json: changed: 2 bytes, expected" in output
    assert "\n" not in output


def test_a_golden_mismatch_is_refused_in_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    change_golden(bundle, -1.0)
    output = refusal(tmp_path, PARITYBIT_BUNDLE=str(bundle))
    assert "6 of 6 golden rows have another answer here than certified" in output
    assert "\n" not in output


def test_a_missing_bundle_and_bad_settings_are_refused_in_one_line(tmp_path: Path) -> None:
    assert "absent: not a bundle (manifest.json is missing)" in refusal(
        tmp_path, PARITYBIT_BUNDLE=str(tmp_path / "absent")
    )
    output = refusal(tmp_path, PARITYBIT_THREADS="many")
    assert "PARITYBIT_THREADS='many': Input should be a valid integer" in output
    assert "\n" not in output


def test_it_stops_on_sigterm_with_0_and_sends_no_usage_statistics(tiny_bundle: Path, tmp_path: Path) -> None:
    # with this variable BentoML logs what it would send
    debug = {"__BENTOML_DEBUG_USAGE": "true"}
    files = sorted(tiny_bundle.iterdir())
    with serving(tmp_path / "log", PARITYBIT_BUNDLE=str(tiny_bundle), **debug) as server:
        server.process.terminate()
        assert server.process.wait(20) == 0
    log = (tmp_path / "log").read_text()
    assert "serving tiny" in log
    assert "Tracking Payload" not in log
    assert sorted(tiny_bundle.iterdir()) == files
