"""The command line as a user types it: real processes, their exit codes and what they say."""

import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from paritybit.cli import cli

COMMANDS = sorted(cli.commands)


def paritybit(
    *arguments: str | Path, stdin: bytes = b"", cwd: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "paritybit", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=120, check=False, cwd=cwd)


def said(done: subprocess.CompletedProcess[bytes]) -> str:
    return done.stderr.decode().strip()


def test_help_comes_in_well_under_a_second() -> None:
    """In processor time: the tests share the machine."""
    fastest = float("inf")
    for _ in range(3):
        before = _children_seconds()
        assert paritybit("--help").returncode == 0
        fastest = min(fastest, _children_seconds() - before)
    assert fastest < 1.0


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_examples_that_parse(name: str) -> None:
    command = cli.commands[name]
    assert command.epilog is not None
    examples = [line.strip() for line in command.epilog.strip().splitlines()]
    assert examples
    for example in examples:
        words = shlex.split(example.partition("<")[0])
        assert words[:2] == ["paritybit", name]
        command.make_context(name, words[2:])
    text = command.get_help(click.Context(command))
    assert all(example in text for example in examples)


def test_no_stage_is_imported_for_help() -> None:
    code = "import sys, paritybit.cli; print({'torch', 'transformers', 'onnxruntime', 'bentoml'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code]) == b"set()\n"


def test_predict_answers_a_line_a_text(tiny_bundle: Path) -> None:
    done = paritybit("predict", tiny_bundle, "Where is my card?", "卡在哪里 😀", "-p", "top_k=2")
    assert done.returncode == 0
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [len(answer["labels"]) for answer in answers] == [2, 2]


def test_predict_reads_standard_input(tiny_bundle: Path) -> None:
    done = paritybit("predict", tiny_bundle, "-", stdin=b"one\ntwo\n")
    assert len(done.stdout.splitlines()) == 2
    broken = paritybit("predict", tiny_bundle, "-", stdin=b"one\ntw\xff\n")
    assert (broken.returncode, said(broken)) == (7, "paritybit: standard input: byte 6: not valid UTF-8")


def test_a_line_of_standard_input_ends_only_at_a_line_break(tiny_bundle: Path) -> None:
    done = paritybit("predict", tiny_bundle, "-", stdin="one\u2028still one\r\ntwo".encode())
    assert len(done.stdout.splitlines()) == 2


def test_predict_takes_json_objects(tiny_bundle: Path) -> None:
    pair = json.dumps({"text": "my card", "text_pair": "lost"})
    named = paritybit("predict", tiny_bundle, "--json", pair, '"my card"')
    assert named.returncode == 0
    both = [json.loads(line) for line in named.stdout.splitlines()]
    assert both[0] != both[1]
    assert both[1:] == [json.loads(paritybit("predict", tiny_bundle, "my card").stdout)]
    piped = paritybit("predict", tiny_bundle, "--json", "-", stdin=f"{pair}\n{pair}\n".encode())
    assert len(piped.stdout.splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("my card", "input 0: malformed JSON: Expecting value: line 1 column 1 (char 0)"),
        ('{"question": "who?"}', "input 0: text: missing"),
        ("7", 'input 0: expected a text or {"text", "text_pair"}'),
    ],
)
def test_predict_says_what_is_wrong_with_json(tiny_bundle: Path, text: str, message: str) -> None:
    done = paritybit("predict", tiny_bundle, "--json", text)
    assert (done.returncode, said(done)) == (7, f"paritybit: {message}")


def test_predict_refuses_an_unknown_parameter_in_one_line(tiny_bundle: Path) -> None:
    done = paritybit("predict", tiny_bundle, "text", "-p", "topk=2")
    assert done.returncode == 7
    assert said(done).startswith("paritybit: parameter topk:")
    assert "\n" not in said(done)


def test_check_passes_a_whole_bundle_and_names_a_damaged_file(tiny_bundle: Path, tmp_path: Path) -> None:
    done = paritybit("check", tiny_bundle)
    assert done.returncode == 0
    assert b"pass: 6 golden rows, 0 changed answers" in done.stdout
    damaged = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    content = bytearray((damaged / "model.onnx").read_bytes())
    content[-1] ^= 1
    (damaged / "model.onnx").write_bytes(content)
    done = paritybit("check", damaged)
    assert done.returncode == 5
    assert said(done) == f"paritybit: {damaged / 'model.onnx'}: changed: its SHA-256 is not the manifest's"


def test_check_says_when_golden_rows_differ(tiny_bundle: Path, tmp_path: Path) -> None:
    import numpy as np

    from bundle import read_manifest
    from bundle.golden import GoldenRow, read_golden, write_golden
    from tasks import TextInput
    from tests.bundles import seal

    other = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    rows = read_golden(other / "golden.jsonl", [TextInput])
    shifted = [GoldenRow(row.input, tuple(output + np.float32(0.5) for output in row.outputs)) for row in rows]
    write_golden(other / "golden.jsonl", shifted)
    seal(other, read_manifest(other))
    done = paritybit("check", other)
    assert done.returncode == 6
    assert "golden rows are not reproduced: 6 golden rows, 0 changed answers, max |Δlogit| 0.5" in said(done)


@pytest.mark.parametrize("flag", ["avx2", "avx512_vnni"])
def test_check_warns_where_the_processor_cuts_off_sums_of_full_range_weights(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    from bundle import read_manifest
    from paritybit.cli import cli
    from tests.bundles import seal

    other = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    manifest = read_manifest(other)
    variant = manifest.variant.model_copy(update={"needs_exact_int8": True})
    seal(other, manifest.model_copy(update={"variants": {manifest.default_variant: variant}}))
    monkeypatch.setattr("bundle.predictor.instruction_set", lambda: (flag,))
    result = CliRunner().invoke(cli, ["check", str(other)], catch_exceptions=False)
    assert result.exit_code == 0
    warned = "warning: its int8 weights use the full range" in result.output
    assert warned == (flag == "avx2")


def labelled_rows(folder: Path) -> Path:
    from tests.bundles import GOLDEN_TEXTS, LABELS
    from tests.toy import write_jsonl

    return write_jsonl(
        folder / "rows.jsonl",
        [{"question": text, "label": label} for text, label in zip(GOLDEN_TEXTS, LABELS, strict=True)],
    )


def certified_elsewhere(tiny_bundle: Path, target: Path, max_batch_delta: float) -> Path:
    """A copy with another limit and another processor."""
    from bundle import read_manifest
    from tests.bundles import seal

    other = shutil.copytree(tiny_bundle, target)
    limits = {"max_batch_delta": max_batch_delta}
    (other / "certificate.json").write_text(json.dumps({"verdict": "pass", "limits": limits}))
    seal(other, read_manifest(other).model_copy(update={"instruction_set": ("abacus",)}))
    return other


@pytest.mark.real
def test_check_on_data_passes_with_a_table_and_one_line_of_json(tiny_bundle: Path, tmp_path: Path) -> None:
    other = certified_elsewhere(tiny_bundle, tmp_path / "bundle", 1e-4)
    done = paritybit("check", other, "--data", labelled_rows(tmp_path), "--column", "text=question")
    assert done.returncode == 0, said(done)
    told = json.loads(done.stdout)
    assert (told["verdict"], told["rows"]) == ("pass", 5)
    assert f"on 5 rows of {tmp_path / 'rows.jsonl'}" in said(done)
    assert said(done).endswith("limit <= 0.0001: pass")


@pytest.mark.real
def test_check_on_data_fails_with_the_gate_after_its_json(tiny_bundle: Path, tmp_path: Path) -> None:
    other = certified_elsewhere(tiny_bundle, tmp_path / "bundle", 0.0)
    done = paritybit("check", other, "--data", labelled_rows(tmp_path), "--column", "text=question")
    assert done.returncode == 6
    told = json.loads(done.stdout)
    assert done.stdout.count(b"\n") == 1
    assert (told["verdict"], told["rows"], told["same_instruction_set"]) == ("fail", 5, False)
    assert told["metric"]["low"] <= told["metrics"]["accuracy"] <= told["metric"]["high"]
    assert "warning: certified on another instruction set (abacus)" in said(done)
    assert any(
        line.split()[:2] == ["accuracy", f"{told['metrics']['accuracy']:.4f}"] for line in said(done).splitlines()
    )
    value = told["gates"][0]["value"]
    assert said(done).splitlines()[-1] == (
        f"paritybit: {other}: not met on {tmp_path / 'rows.jsonl'}: max_batch_delta {value:.6g}, limit <= 0"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--column", "text=question"), "--format, --column and --checkpoint need --data."),
        (("--data", "x.jsonl", "--column", "text"), "--column 'text': expected FIELD=COLUMN."),
        (("--data", "x", "--format", "xls"), "'xls' is not one of 'csv', 'tsv', 'jsonl', 'parquet', 'conll', 'squad'"),
    ],
)
def test_check_explains_how_its_options_go_together(
    tiny_bundle: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = paritybit("check", tiny_bundle, *arguments)
    assert (done.returncode, message in said(done)) == (2, True), said(done)


def test_check_reads_the_formats_that_a_recipe_knows() -> None:
    from typing import get_args

    from finetune.recipe import Format

    option = next(one for one in cli.commands["check"].params if one.name == "file_format")
    assert isinstance(option.type, click.Choice)
    assert tuple(option.type.choices) == get_args(Format)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("finetune", "absent.toml"), 2, "absent.toml: no such recipe"),
        (("export", "absent"), 4, "absent: no run.json"),
        (("predict", "absent", "text"), 5, "absent: not a bundle (manifest.json is missing)"),
        (("check", "absent"), 5, "absent: not a bundle (manifest.json is missing)"),
        (("bench", "absent"), 5, "absent: not a bundle (manifest.json is missing)"),
    ],
)
def test_what_is_missing_is_one_line_and_its_exit_code(
    tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    done = paritybit(*arguments, cwd=tmp_path)
    assert (done.returncode, message in said(done), "\n" in said(done)) == (code, True, False), said(done)


def test_recipe_problems_are_listed_together(tmp_path: Path) -> None:
    recipe = tmp_path / "bad.toml"
    recipe.write_text(
        'name = "x"\nbase_model = "y"\nepoch = 3\n[data]\ntrain = "a"\ntest = "b"\n[train]\nepochs = "4"\n'
    )
    done = paritybit("finetune", recipe, "--set", "train.warmup_ratio=2")
    assert done.returncode == 2
    for key in ("epoch", "train.epochs", "train.warmup_ratio"):
        assert f"\n  {key}: " in said(done)


def test_unknown_option_is_a_usage_error() -> None:
    done = paritybit("export", "x", "--fast")
    assert done.returncode == 2
    assert "No such option" in said(done)


def without_torch(*arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'torch':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "sys.argv = ['paritybit', *sys.argv[1:]]\n"
        "from paritybit.cli import main; main()\n"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=False, env=os.environ | {"PYTHONPATH": str(Path.cwd())})


def test_an_absent_extra_is_told_with_the_command(tiny_bundle: Path) -> None:
    checkpoint = tiny_bundle.parent
    (checkpoint / "run.json").write_text(
        json.dumps({"recipe": {"name": "x", "base_model": "y", "data": {"train": "a", "test": "b"}}})
    )
    for arguments in (("export", checkpoint), ("check", tiny_bundle, "--data", "rows.jsonl")):
        done = without_torch(*arguments)
        assert done.returncode == 8
        assert said(done).splitlines()[-1] == (
            "paritybit: torch is not installed; run: pip install 'paritybit[finetune]'"
        )


def test_check_needs_no_torch(tiny_bundle: Path) -> None:
    done = without_torch("check", tiny_bundle)
    assert (done.returncode, b"pass: 6 golden rows" in done.stdout) == (0, True), said(done)


def test_options_of_export_are_keys_of_the_recipe(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from export.pipeline import ExportResult

    seen: list[Any] = []

    def keep(_: str, output: Path, *, recipe: Any, **more: Any) -> ExportResult:
        seen.append(recipe.export)
        return ExportResult(output, {"published": "", "reason": ""}, reused=True)

    monkeypatch.setattr("export.pipeline.export_bundle", keep)
    options = ["--only", "int8-static", "--budget", "0.3", "--objective", "latency"]
    result = CliRunner().invoke(cli, ["export", str(tiny_checkpoint), *options], catch_exceptions=False)
    assert result.exit_code == 0
    assert seen[0].variants == ("int8-static",)
    assert seen[0].max_metric_loss == pytest.approx(0.003)
    assert seen[0].objective == "latency"
