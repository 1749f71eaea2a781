"""The comparison of the service with its `Predictor` and with BentoML's own batches."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.load import Round
from benchmarks.services import OURS, running_service
from benchmarks.serving import InProcess, Serving, main, markdown, summarize
from tasks.errors import ParitybitError

LOADS = [(1, 1), (4, 2)]


def turn(ms: float, answers: int, clients: int, errors: int = 0) -> Round:
    return Round(service="a", clients=clients, seconds=2.0, ms=(ms,) * answers, errors=errors)


def test_ratios_are_of_the_same_round_and_texts_are_counted_not_requests() -> None:
    # the machine is twice as slow in the second round
    seen = [
        (
            InProcess(ms=(1.0, 2.0, 3.0), texts_per_s=100),
            [turn(3, 9, 1), turn(8, 80, 4)],
            [turn(9, 9, 1), turn(9, 20, 4)],
        ),
        (InProcess(ms=(4.0,), texts_per_s=50), [turn(6, 9, 1), turn(16, 40, 4, 3)], [turn(18, 9, 1), turn(9, 10, 4)]),
    ]
    found = summarize("tiny", seen, LOADS, threads=2)
    assert {who: spread.median for who, spread in found.p50_ms.items()} == {
        "in-process": 3,
        "ours": 4.5,
        "batchable": 13.5,
    }
    assert (found.added_p50_ms.q1, found.added_p50_ms.median, found.added_p50_ms.q3) == (1.25, 1.5, 1.75)
    (busy,) = found.saturation
    assert (busy.clients, busy.texts, busy.errors) == (4, 2, 3)
    assert (busy.in_process.median, busy.ours.median, busy.batchable.median) == (75, 60, 15)
    for spread, expected in [(busy.ours_to_in_process, 0.8), (busy.ours_to_batchable, 4.0)]:
        assert (spread.q1, spread.median, spread.q3) == pytest.approx((expected,) * 3)
    assert "| 4       |               2 |" in markdown(found)


def test_a_service_that_does_not_start_is_an_error_that_names_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with (
        pytest.raises(ParitybitError, match=f"the service ended with exit code 1; see {log}"),
        running_service(OURS, tmp_path / "absent", log),
    ):
        pass
    assert "not a bundle" in log.read_text()


@pytest.mark.real
def test_real_services_of_one_bundle_are_compared(tiny_bundle: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "where is my card"}\n' * 64)
    out = tmp_path / "out"
    options = ["--texts", str(texts), "--rounds", "1", "--seconds", "0.3", "--threads", "1", "--out", str(out)]
    finished = CliRunner().invoke(main, [str(tiny_bundle), *options])
    assert finished.exit_code == 0, finished.output
    found = Serving.model_validate_json((out / "serving.json").read_text())
    assert found.rounds == 1
    assert all(spread.median > 0 for spread in found.p50_ms.values())
    assert all(one.ours.median > 0 and one.batchable.median > 0 for one in found.saturation)
    assert (out / "serving.md").read_text() in finished.output
