import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bundle.predictor
from bundle import Predictor
from bundle.golden import GoldenRow, read_golden, write_golden
from bundle.manifest import SessionSettings, read_manifest
from bundle.session import Session
from tasks import QuestionInput, TextInput, WordsInput
from tasks.errors import BundleError, InputError
from tasks.inputs import input_to_json
from tests.bundles import LABELS, LONG_TEXT, MAX_LENGTH, TINY, seal

TEXTS = [
    "Where is my card?",
    "卡在哪里",
    "I lost my card 💳 " * 30,
    "blocked",
    "-",
    "שלום",
    "what is the exchange rate",
]


@pytest.fixture(scope="module")
def predictor(tiny_bundle: Path) -> Predictor:
    return Predictor.load(tiny_bundle)


def test_answers_come_in_order_whatever_the_batches(predictor: Predictor) -> None:
    together = predictor(TEXTS)
    for text, answer in zip(TEXTS, together, strict=True):
        (alone,) = predictor(text)
        assert [entry["label"] for entry in alone["labels"]] == [entry["label"] for entry in answer["labels"]]
        assert [entry["score"] for entry in alone["labels"]] == pytest.approx(
            [entry["score"] for entry in answer["labels"]], abs=1e-5
        )
    assert [answer["truncated"] for answer in together] == [False, False, True, False, False, False, False]
    assert set(LABELS) == {entry["label"] for entry in together[0]["labels"]}


def test_fifty_thousand_characters_are_answered_and_told(predictor: Predictor) -> None:
    (answer,) = predictor("lost card " * 5_000)
    assert answer["truncated"] is True


def test_no_inputs_no_answers(predictor: Predictor) -> None:
    assert predictor([]) == []


def test_pairs_are_inputs_too(predictor: Predictor) -> None:
    assert len(predictor([TextInput("my card", "lost")], top_k=1)[0]["labels"]) == 1


@pytest.mark.parametrize(
    ("parameters", "message"),
    [({"top_k": 0}, "parameter top_k"), ({"topk": 3}, "parameter topk: Extra inputs"), ({"top_k": "many"}, "top_k")],
)
def test_wrong_parameters_are_named(predictor: Predictor, parameters: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        predictor("card", **parameters)


def test_what_is_no_input_is_refused_with_its_position(predictor: Predictor) -> None:
    with pytest.raises(InputError, match=r'^input 1: expected a text or {"text", "text_pair"}$'):
        predictor(["a", 1])  # type: ignore[list-item]
    with pytest.raises(InputError, match=r"^input 2: text_pair: expected a text$"):
        predictor(["a", "b", {"text": "c", "text_pair": 7}])
    with pytest.raises(InputError, match=r"^input 1: text: the text is empty$"):
        predictor(["a", " "])
    with pytest.raises(InputError, match=r"^input 0: expected a text or"):
        predictor(QuestionInput("who?", "me"))
    with pytest.raises(InputError, match="input 0: expected Unicode text"):
        predictor("\ud800")


def inputs_of(predictor: Predictor) -> list[Any]:
    return [*TINY[predictor.task.name].golden]


def assert_alike(left: Any, right: Any) -> None:
    """Equal but for the last digits of scores."""
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        left, right = list(left.values()), list(right.values())
    if isinstance(left, list):
        for one, other in zip(left, right, strict=True):
            assert_alike(one, other)
    else:
        assert left == (pytest.approx(right, abs=1e-5) if isinstance(right, float) else right)


def test_every_task_answers_alone_as_in_company_and_dictionaries_as_objects(task_bundle: Path) -> None:
    predictor = Predictor.load(task_bundle, token_budget=200)
    inputs = inputs_of(predictor)
    together = predictor(inputs)
    assert len(together) == len(inputs)
    for one, answer in zip(inputs, together, strict=True):
        assert_alike(predictor(one), [answer])
        assert_alike(predictor(input_to_json(one)), [answer])
    json.dumps(together)
    assert_alike(predictor([input_to_json(one) for one in reversed(inputs)]), together[::-1])


def test_golden_rows_of_every_task_are_reproduced(task_bundle: Path) -> None:
    predictor = Predictor.load(task_bundle)
    report = predictor.replay_golden()
    assert (report.passed, report.changed_answers, report.rows) == (True, 0, len(inputs_of(predictor)))


def test_golden_rows_hold_the_outputs_of_all_windows(task_bundle: Path) -> None:
    predictor = Predictor.load(task_bundle)
    rows = read_golden(task_bundle / "golden.jsonl", predictor.task.input_types)
    windows = [len(predictor.task.encode(predictor.tokenizer, [row.input]).windows) for row in rows]
    assert [len(row.outputs) for row in rows] == windows
    assert (max(windows) > 2) == TINY[predictor.task.name].each_token


def test_golden_rows_that_are_cut_otherwise_here_are_named(task_bundle: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(task_bundle, tmp_path / "bundle")
    manifest = read_manifest(directory)
    first, *rest = read_golden(directory / "golden.jsonl", Predictor.load(directory).task.input_types)
    write_golden(directory / "golden.jsonl", [GoldenRow(first.input, first.outputs * 2), *rest])
    seal(directory, manifest)
    with pytest.raises(BundleError, match=r"golden\.jsonl:1: outputs of shape .* here, .* when certified"):
        Predictor.load(directory).replay_golden()


def test_words_and_their_text_are_answered_alike(task_bundle: Path) -> None:
    predictor = Predictor.load(task_bundle)
    if WordsInput not in predictor.task.input_types:
        with pytest.raises(InputError, match=r"^input 0: "):
            predictor({"words": ["my", "card"]})
        return
    words = LONG_TEXT.split()
    (of_words,), (of_text,) = predictor({"words": words}), predictor(" ".join(words))
    found = of_words["entities"]
    assert len(found) > 5
    assert all(entity["text"] == " ".join(words)[entity["start"] : entity["end"]] for entity in found)
    begins = {entity["start"] for entity in of_text["entities"]}
    assert sum(entity["start"] in begins for entity in found) > len(found) / 2


def test_micro_batches_keep_the_budget(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Predictor.load(tiny_bundle, token_budget=64)
    shapes = []
    run = small.session.run
    monkeypatch.setattr(small.session, "run", lambda batch: shapes.append(batch["input_ids"].shape) or run(batch))
    small(["lost card"] * 100 + ["what is the exchange rate today"] * 10)
    assert sum(rows for rows, _ in shapes) == 110
    assert max(rows * tokens for rows, tokens in shapes) <= 64


def test_warm_up_covers_the_length_range(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []
    run = predictor.session.run
    monkeypatch.setattr(
        predictor.session, "run", lambda batch: lengths.append(batch["input_ids"].shape[1]) or run(batch)
    )
    predictor.warm_up()
    assert (min(lengths), max(lengths)) == (1, MAX_LENGTH)


def test_threads_are_those_asked_for_or_available(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Predictor.load(tiny_bundle, threads=3).session.threads == 3
    monkeypatch.setattr("bundle.session.available_cpus", lambda: 5)
    assert Predictor.load(tiny_bundle).session.threads == 5


def test_golden_rows_are_reproduced(predictor: Predictor) -> None:
    report = predictor.replay_golden()
    assert (report.passed, report.changed_answers, report.rows) == (True, 0, 6)


def test_other_outputs_fail_on_the_same_machine_and_answers_count_elsewhere(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    rows = read_golden(directory / "golden.jsonl", [TextInput])
    shifted_rows = [GoldenRow(row.input, tuple(output + np.float32(0.01) for output in row.outputs)) for row in rows]
    write_golden(directory / "golden.jsonl", shifted_rows)
    seal(directory, read_manifest(directory))
    shifted = Predictor.load(directory).replay_golden()
    assert not shifted.passed
    assert shifted.changed_answers == 0
    monkeypatch.setattr(bundle.predictor, "instruction_set", lambda: ("another",))
    assert Predictor.load(directory).replay_golden().passed
    write_golden(directory / "golden.jsonl", [GoldenRow(row.input, (-row.outputs[0],)) for row in rows])
    seal(directory, read_manifest(directory))
    assert not Predictor.load(directory).replay_golden().passed


@pytest.mark.parametrize(
    ("needs", "flags", "same"),
    [(True, ("avx2",), False), (True, ("avx512_vnni",), True), (False, ("avx2",), True)],
)
def test_sums_of_full_range_weights_are_the_certified_ones_only_where_they_are_exact(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs: bool, flags: tuple[str, ...], same: bool
) -> None:
    directory = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    manifest = read_manifest(directory)
    variant = manifest.variant.model_copy(update={"needs_exact_int8": needs})
    seal(directory, manifest.model_copy(update={"variants": {manifest.default_variant: variant}}))
    monkeypatch.setattr(bundle.predictor, "instruction_set", lambda: flags)
    assert Predictor.load(directory).replay_golden().same_sums is same


def test_damaged_bundle_is_not_loaded(tiny_bundle: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    (directory / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(BundleError, match=r"model\.onnx: changed"):
        Predictor.load(directory)
    with pytest.raises(BundleError, match=r"model\.onnx: ONNX Runtime cannot load it"):
        Predictor.load(directory, verify=False)


def test_another_graph_than_the_manifests_is_not_served(tiny_bundle: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    manifest = read_manifest(directory)
    seal(directory, manifest.model_copy(update={"inputs": manifest.inputs[:2]}))
    with pytest.raises(BundleError, match="inputs or outputs are not the manifest's"):
        Predictor.load(directory)


def test_disabled_fusions_reach_the_session(tiny_bundle: Path) -> None:
    session = Session(tiny_bundle / "model.onnx", SessionSettings(disabled_optimizers=("SkipLayerNormFusion",)))
    assert session.run(
        {name: np.ones((1, 4), dtype=np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
    ).shape == (1, 5)


def test_bundle_needs_neither_torch_nor_transformers(tiny_bundle: Path) -> None:
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'torch', 'transformers', 'datasets', 'onnx', 'sklearn'}:\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import json; from bundle import Predictor\n"
        "print(json.dumps(Predictor.load(sys.argv[1])(['Where is my card?'], top_k=1)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tiny_bundle)], capture_output=True, text=True, check=True)
    assert len(json.loads(done.stdout)[0]["labels"]) == 1
