"""The evidence in the certificate: what changed, how well confidence is calibrated, and the page that shows it."""

import json
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bundle import Predictor
from bundle.manifest import SessionSettings
from export import plots
from export.certificate import Certificate, Change, ChangedRow, Evidence, VariantReport, pareto_table
from export.gates import Interval
from export.judge import Reference, judge, screen
from export.page import certificate_page
from export.pareto import draw_pareto
from finetune.recipe import ExportSection
from tasks import Encoded, TextInput, Window
from tasks.gold_answers import GoldAnswers
from tests.bundles import LABELS, write_bundle
from tests.toy import toy_rows

EVIL = '<script src="https://example.org/x.js">alert("1")</script>&'
GOLDS: dict[str, Any] = {
    "single_label": LABELS[0],
    "multi_label": LABELS[:2],
    "regression": 2.5,
    "token_classification": (),
    "question_answering": GoldAnswers((), ()),
}


def disturbed(model: Path, output: Path, noise: float) -> Path:
    """A copy of a graph whose weights are off by noise."""
    proto = onnx.load(model)
    weight = next(tensor for tensor in proto.graph.initializer if tensor.name == "weight")
    values = numpy_helper.to_array(weight)
    drift = np.random.default_rng(1).normal(size=values.shape).astype(np.float32) * np.float32(noise)
    weight.CopyFrom(numpy_helper.from_array(values + drift, "weight"))
    onnx.save(proto, output)
    return output


def reference_of(bundle: Path, inputs: list[Any], golds: list[Any]) -> Reference:
    predictor = Predictor.load(bundle)
    encoded = predictor.task.encode(predictor.tokenizer, inputs)
    return Reference(predictor.task, encoded, golds, predictor.outputs(encoded.windows), [], [], pad_id=0, seed=3)


@pytest.fixture(scope="module")
def reference(tiny_bundle: Path) -> Reference:
    texts = [row["text"] for row in toy_rows(400, 5)]
    golds = [LABELS[index % len(LABELS)] for index in range(len(texts))]
    return reference_of(tiny_bundle, [TextInput(text) for text in texts], golds)


@pytest.fixture(scope="module")
def report(reference: Reference, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> VariantReport:
    model = disturbed(tiny_bundle / "model.onnx", tmp_path_factory.mktemp("graph") / "int8-static.onnx", 0.5)
    return judge("int8-static", model, SessionSettings(), reference, ExportSection(), relative_time=1.0)


def certificate_of(*reports: VariantReport, **fields: Any) -> Certificate:
    plain = Certificate(
        name="tiny",
        created="2026-01-02T03:04:05+00:00",
        checkpoint_digest="d" * 64,
        evidence=Evidence(400, "f" * 64, 10, 256, 256, "c" * 64, 3),
        primary_metric="accuracy",
        pytorch={"accuracy": 0.2},
        pytorch_metric=Interval(0.2, 0.15, 0.25),
        opset=20,
        fused_attentions=2,
        layers=2,
        variants=reports,
        published=reports[0].name,
        reason="the fastest",
        speeds={one.name: {"1×16": 1.5} for one in reports},
        machine={"threads": 2, "instruction_set": ["avx2"]},
        versions={"onnx": "1"},
    )
    return replace(plain, **fields)


class Page(HTMLParser):
    """Collects tags and text, and refuses what is not closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs
        if tag != "meta":
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def figures(html: str) -> list[ElementTree.Element]:
    pieces = [piece.split("</svg>")[0] for piece in html.split("<svg")[1:]]
    return [ElementTree.fromstring(f"<svg{piece}</svg>") for piece in pieces]


def dots(figure: ElementTree.Element) -> int:
    return sum(path.attrib["d"].count("M") for path in figure.iter("path") if path.attrib["class"] == "dots")


def test_changes_are_those_of_the_rows_one_by_one(
    reference: Reference, report: VariantReport, tiny_bundle: Path, tmp_path: Path
) -> None:
    from bundle.session import Session

    predictor = Predictor.load(tiny_bundle)
    other = Predictor(
        predictor.manifest, tiny_bundle, Session(disturbed(tiny_bundle / "model.onnx", tmp_path / "other.onnx", 0.5))
    )
    expected: Counter[tuple[str, str]] = Counter()
    for one in reference.encoded.inputs:
        before, after = (model([one])[0]["labels"][0]["label"] for model in (predictor, other))
        if before != after:
            expected[before, after] += 1
    assert report.changed_rows == expected.total() > 20
    assert {(one.pytorch, one.variant): one.rows for one in report.changes} == expected
    assert [one.rows for one in report.changes] == sorted(expected.values(), reverse=True)
    assert report.agreement == 1 - report.changed_rows / 400


def test_nothing_changes_where_the_graph_is_the_same(reference: Reference, tiny_bundle: Path) -> None:
    same = judge("x", tiny_bundle / "model.onnx", SessionSettings(), reference, ExportSection(), relative_time=1.0)
    assert (same.changed_rows, same.changes) == (0, ())
    assert same.calibration_error is not None
    assert same.calibration_error.pytorch == pytest.approx(same.calibration_error.variant, abs=1e-6)


def test_confidence_of_a_single_label_is_its_score(reference: Reference) -> None:
    task, encoded = reference.task, reference.encoded
    confidences = task.confidences(reference.outputs, encoded, reference.golds)
    assert confidences is not None
    answers = task.decode(reference.outputs, encoded, task.parameters())
    assert confidences[:, 0] == pytest.approx([answer["labels"][0]["score"] for answer in answers])
    assert confidences[:, 1].mean() == task.metrics(reference.outputs, encoded, reference.golds)["accuracy"]


@pytest.mark.parametrize("task", GOLDS)
def test_every_task_is_judged_and_only_those_with_probabilities_are_calibrated(task: str, tmp_path: Path) -> None:
    write_bundle(tmp_path, task=task)
    golden = [json.loads(line)["input"] for line in (tmp_path / "golden.jsonl").read_text().splitlines()]
    from tasks.inputs import input_from_json

    inputs = [input_from_json(one, Predictor.load(tmp_path).task.input_types) for one in golden]
    reference = reference_of(tmp_path, inputs, [GOLDS[task]] * len(inputs))
    model = disturbed(tmp_path / "model.onnx", tmp_path / "int8-static.onnx", 2.0)
    report = judge("int8-static", model, SessionSettings(), reference, ExportSection(), relative_time=1.0)
    calibrated = task in ("single_label", "multi_label")
    assert (report.calibration_error is not None) == calibrated
    page = certificate_page(certificate_of(report))
    assert ("the answers of this task carry no probability" in page) == (not calibrated)
    assert 0 < report.changed_rows == sum(change.rows for change in report.changes)
    assert len(figures(page)) == 3


def test_multi_label_confidence_speaks_of_every_label(tmp_path: Path) -> None:
    write_bundle(tmp_path, task="multi_label")
    reference = reference_of(tmp_path, [TextInput("lost card"), TextInput("pin")], [("lost_card",), ()])
    confidences = reference.task.confidences(reference.outputs, reference.encoded, reference.golds)
    assert confidences is not None
    assert confidences.shape == (2 * len(LABELS), 2)
    assert confidences[:, 1].tolist() == [float(label == "lost_card") for label in LABELS] + [0.0] * len(LABELS)
    assert confidences[:, 0] == pytest.approx(1 / (1 + np.exp(-np.concatenate(reference.outputs))))


def test_points_are_a_sample_with_the_worst_row_in_it(reference: Reference, report: VariantReport) -> None:
    assert len(report.points.logits) == 400 * len(LABELS) == 2000
    assert max(delta for _, delta in report.points.deltas) == pytest.approx(report.delta_quantiles["p100"])
    logits = {round(float(value), 5) for output in reference.outputs for value in output}
    assert {round(left, 5) for left, _ in report.points.logits} <= logits
    longest = max(delta for _, delta in report.points.deltas)
    assert max(abs(left - right) for left, right in report.points.logits) == pytest.approx(longest, rel=1e-5)


def test_many_rows_are_plotted_by_two_thousand_points(reference: Reference, tiny_bundle: Path, tmp_path: Path) -> None:
    encoded, many = reference.encoded, 12
    windows = [replace(window, row=window.row + 400 * copy) for copy in range(many) for window in encoded.windows]
    larger = replace(
        reference,
        encoded=Encoded([*encoded.inputs] * many, windows),
        golds=[*reference.golds] * many,
        outputs=[*reference.outputs] * many,
    )
    model = disturbed(tiny_bundle / "model.onnx", tmp_path / "int8-static.onnx", 0.1)
    report = judge("int8-static", model, SessionSettings(), larger, ExportSection(), relative_time=1.0)
    page = certificate_page(certificate_of(report))
    assert [dots(figure) for figure in figures(page)] == [0, 2000, len(report.points.deltas)]
    assert 1999 <= len(report.points.deltas) <= 2000
    assert max(delta for _, delta in report.points.deltas) == pytest.approx(report.delta_quantiles["p100"])
    assert len(page) < 150_000


def test_page_loads_nothing_and_runs_nothing(report: VariantReport) -> None:
    page = certificate_page(certificate_of(report, name=EVIL, reason=EVIL, versions={EVIL: EVIL}))
    read = Page(page)
    assert read.text.count(EVIL) >= 4, "told as it is, not obeyed"
    assert not {"script", "link", "img", "iframe", "object", "image", "use"} & set(read.tags)
    assert not {"src", "href", "style"} & {name for name, _ in read.attributes}
    assert not any(name.startswith("on") for name, _ in read.attributes)
    assert "@import" not in page
    assert "url(" not in page


def test_every_text_from_outside_is_escaped(report: VariantReport) -> None:
    evil = replace(
        report,
        name=EVIL,
        gates=tuple(replace(gate, name=EVIL) for gate in report.gates),
        metrics={EVIL: 1.0},
        disabled_optimizers=(EVIL,),
        delta_quantiles={EVIL: 1.0},
        changes=(Change(EVIL, EVIL, 1),),
        worst_rows=(ChangedRow(0, EVIL, EVIL, EVIL, EVIL, 1.0),),
    )
    page = certificate_page(certificate_of(evil, published=EVIL, primary_metric=EVIL, pytorch={EVIL: 1.0}))
    assert "<script" not in page
    assert "script" not in Page(page).tags
    assert len(figures(page)) == 3


def test_page_is_made_for_light_dark_and_paper(report: VariantReport) -> None:
    page = certificate_page(certificate_of(report))
    style = page.split("<style>")[1].split("</style>")[0]
    assert "color-scheme: light dark" in style
    assert "@media print" in style
    used = {value for name, value in Page(page).attributes if name in ("fill", "stroke", "color")}
    assert used == set(), "figures take their colours from the style"


def test_json_stays_small_and_leaves_the_points_to_the_page(report: VariantReport) -> None:
    long = "ü" * 100
    rows = tuple(ChangedRow(row, "ü" * 200, "ü" * 200, "ü" * 200, "ü" * 200, 1.0) for row in range(10))
    wordy = replace(report, changes=(Change(long, long, 1),) * 20, worst_rows=rows)
    plain = certificate_of(*(replace(wordy, name=f"variant {number}") for number in range(6))).to_json()
    assert len(json.dumps(plain, indent=2, ensure_ascii=False).encode()) < 200_000
    assert all("points" not in variant for variant in plain["variants"])
    assert plain["variants"][0]["changes"][0] == {"pytorch": long, "variant": long, "rows": 1}
    assert plain["variants"][0]["calibration_error"]["confidences"] == 400


def test_long_summaries_are_cut(tmp_path: Path) -> None:
    write_bundle(tmp_path, task="token_classification")
    reference = reference_of(tmp_path, [TextInput("I lost my card in a train " * 40)], [()])
    model = disturbed(tmp_path / "model.onnx", tmp_path / "int8-static.onnx", 2.0)
    report = judge("int8-static", model, SessionSettings(), reference, ExportSection(), relative_time=1.0)
    assert max(len(change.pytorch) for change in report.changes) == 100
    assert all(len(row.pytorch) <= 200 and len(row.text) <= 200 for row in report.worst_rows)


def test_pareto_joins_the_passing_that_none_beats() -> None:
    def point(name: str, time: float, metric: float, passed: bool = True) -> plots.ParetoPoint:
        return plots.ParetoPoint(name, time, metric, metric - 0.01, metric + 0.01, passed)

    points = [
        point("fast", 1.0, 0.90),
        point("failing", 0.9, 0.99, passed=False),
        point("beaten", 1.5, 0.89),
        point("exact", 2.0, 0.92),
    ]
    figure = ElementTree.fromstring(plots.pareto(points, "accuracy", 0.92))
    lines = [line.attrib["points"].split() for line in figure.iter("polyline")]
    assert [len(line) for line in lines] == [2, 2, 2, 2, 2, 2]
    marks = {circle.attrib["cx"] + "," + circle.attrib["cy"] for circle in figure.iter("circle")}
    assert len(marks) == 3
    front = [line for line in lines if set(line) <= marks]
    assert len(front) == 1
    across = [float(place.split(",")[0]) for place in front[0]]
    assert across == sorted(across)
    names = [text for text in figure.iter("text") if text.text in {point.name for point in points}]
    assert len(names) == 4


def test_names_beside_equal_points_do_not_cover_each_other() -> None:
    points = [plots.ParetoPoint(f"variant {number}", 1.0, 0.9, 0.8, 1.0, passed=True) for number in range(5)]
    figure = ElementTree.fromstring(plots.pareto(points, "accuracy", 0.9))
    lines = sorted(float(text.attrib["y"]) for text in figure.iter("text") if (text.text or "").startswith("variant"))
    assert min(np.diff(lines)) >= 12


@pytest.mark.parametrize(
    "values", [[0.0], [1e-7, 3e-7], [-3.2, 8.1], [0.0, 0.0], [0.9182, 0.9183], [1e6, 5e6], [-2, -1]]
)
def test_axes_end_at_round_numbers_around_all_values(values: list[float]) -> None:
    axis = plots._Axis.over(values)
    slack = 1e-6 * axis.step
    assert axis.low <= min(values) + slack
    assert axis.high >= max(values) - slack
    assert 2 <= len(axis.ticks) <= 9
    assert f"{axis.step:e}"[0] in "125"
    assert axis.ticks[0] == pytest.approx(axis.low)
    assert axis.ticks[-1] == pytest.approx(axis.high)


def test_screening_stops_only_what_fails_beyond_doubt(reference: Reference, tiny_bundle: Path, tmp_path: Path) -> None:
    model = disturbed(tiny_bundle / "model.onnx", tmp_path / "model.onnx", 0.5)
    agreement = judge("x", model, SessionSettings(), reference, ExportSection(), relative_time=None).agreement
    assert 0.5 < agreement < 0.95

    def screened(name: str, **limits: float) -> VariantReport | None:
        return screen(name, model, reference, ExportSection(max_metric_loss=0.0, max_batch_delta=1e-3, **limits))

    failing = screened("int8-static", min_agreement=0.99)
    assert failing is not None
    assert (failing.rows, failing.relative_time) == (200, None)
    assert not failing.passed
    assert screened("int8-static", min_agreement=agreement + 0.02) is None, "so few rows cannot tell"
    in_company = screen("int8-static", model, reference, ExportSection(min_agreement=0.0, max_batch_delta=0.0))
    assert in_company is not None, "a difference that is too large stays too large"
    page = Page(certificate_page(certificate_of(failing))).text
    assert "It failed on 200 of the test rows beyond doubt" in page
    assert "not timed" in page
    assert f"{failing.changed_rows} of 200 test rows" in page
    assert certificate_of(failing).to_json()["pareto"][0]["relative_time"] is None


def test_a_part_of_the_test_rows_keeps_every_row_with_its_windows() -> None:
    windows = [Window(row, np.full(2, number), np.zeros(2), truncated=False) for number, row in enumerate((0, 1, 1, 2))]
    encoded = Encoded([TextInput(text) for text in "abc"], windows)
    part, places = encoded.part([2, 1])
    assert [one.text for one in part.inputs] == ["c", "b"]
    assert places == [3, 1, 2]
    assert [(window.row, int(window.input_ids[0])) for window in part.windows] == [(0, 3), (1, 1), (1, 2)]
    assert encoded.lengths() == [2, 4, 2]
    assert part.lengths() == [2, 4]


def variants_of(report: VariantReport) -> list[VariantReport]:
    """Time, size and metric; only the first fails its gates."""

    def variant(name: str, time: float, size: int, metric: float) -> VariantReport:
        interval = Interval(metric, metric - 0.01, metric + 0.01)
        return replace(report, name=name, gates=(), relative_time=time, size=size, metric=interval, agreement=0.99)

    failing = replace(variant("failing", 0.5, 1, 0.99), gates=report.gates)
    assert not failing.passed
    return [
        variant("exact", 3.0, 9_000_000, 0.92),
        variant("beaten", 1.5, 5_000_000, 0.89),
        variant("fast", 1.0, 5_000_000, 0.90),
        variant("small", 1.1, 2_000_000, 0.90),
        failing,
    ]


def test_pareto_table_holds_what_nothing_that_passed_beats_at_everything(report: VariantReport) -> None:
    table = pareto_table(variants_of(report))
    assert [row.name for row in table] == ["failing", "fast", "small", "beaten", "exact"], "fastest first"
    assert [row.name for row in table if row.on_front] == ["fast", "small", "exact"]
    twins = [replace(one, name=name) for one in variants_of(report)[2:3] for name in ("one", "other")]
    assert all(row.on_front for row in pareto_table(twins)), "equals do not beat each other"


def test_pareto_table_is_in_the_json_and_on_the_page(report: VariantReport) -> None:
    certificate = certificate_of(*variants_of(report))
    rows = {row["name"]: row for row in certificate.to_json()["pareto"]}
    assert rows["small"] == {
        "name": "small",
        "relative_time": 1.1,
        "size": 2_000_000,
        "metric": 0.90,
        "agreement": 0.99,
        "passed": True,
        "on_front": True,
    }
    assert "small1.102.00.90000.9900passyes" in Page(certificate_page(certificate)).text
    assert "beaten1.505.00.89000.9900passno" in Page(certificate_page(certificate)).text


def test_pareto_picture_is_a_png_with_a_mark_of_each_variant(report: VariantReport, tmp_path: Path) -> None:
    from matplotlib.image import imread

    assert draw_pareto(certificate_of(*variants_of(report)), tmp_path / "all.png")
    assert draw_pareto(certificate_of(variants_of(report)[0]), tmp_path / "one.png")
    colourful = [int((np.ptp(imread(path)[..., :3], axis=2) > 0.3).sum()) for path in sorted(tmp_path.iterdir())]
    assert colourful[0] > 3 * colourful[1] > 0


def test_without_matplotlib_there_is_no_picture_and_no_error(
    report: VariantReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not draw_pareto(certificate_of(report), tmp_path / "pareto.png")
    assert list(tmp_path.iterdir()) == []


def test_certificate_says_why_attention_is_not_fused(report: VariantReport) -> None:
    reason = "DebertaV2 does not use transformers' attention interface"
    certificate = certificate_of(report, fused_attentions=0, obstacle_to_fusion=reason)
    assert certificate.to_json()["obstacle_to_fusion"] == reason
    assert f"0 fused of 2 layers: {reason}" in Page(certificate_page(certificate)).text
    fused = certificate_of(report)
    assert fused.to_json()["obstacle_to_fusion"] is None
    assert "2 fused of 2 layers<" in certificate_page(fused)


@pytest.mark.parametrize(
    ("largest", "said"),
    [
        (0, None),
        (64, "64: the same integer sums on every processor"),
        (127, "127: the same integer sums on processors"),
    ],
)
def test_certificate_says_where_integer_sums_are_the_same(
    report: VariantReport, largest: int, said: str | None
) -> None:
    one = replace(report, largest_weight=largest)
    text = Page(certificate_page(certificate_of(one))).text
    assert (said in text) if said else ("integer sums" not in text)
    assert one.needs_exact_int8 == (largest == 127)
    assert one.to_json()["largest_weight"] == largest
