"""`paritybit`: a thin skin over the stages, each imported only when its command runs."""

import io
import json
import os
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Any, NoReturn

# before any stage loads a library that reads them
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import click

from tasks.errors import GateError, InputError, MissingExtraError, ParitybitError

__all__ = ["cli", "main"]

_EXTRA_OF = {
    "torch": "finetune",
    "transformers": "finetune",
    "datasets": "finetune",
    "accelerate": "finetune",
    "sklearn": "finetune",
    "onnx": "export",
    "onnxscript": "export",
    "bentoml": "serve",
    "matplotlib": "bench",
    "optuna": "sweep",
}

_PATH = click.Path(path_type=Path)
_TRACKERS = ("tensorboard", "mlflow", "wandb")
_SHOWN_SUSPECTS, _SHOWN_CHARS = 20, 200
_FORMATS = ("csv", "tsv", "jsonl", "parquet", "conll", "squad")


class _ExamplesCommand(click.Command):
    """A command whose help ends with examples as they are typed."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.epilog:
            with formatter.section("Examples"):
                for line in self.epilog.strip().splitlines():
                    formatter.write(f"  {line.strip()}\n")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="paritybit")
def cli() -> None:
    """Fine-tune an encoder, export it to ONNX, prove that it says the same, serve it without PyTorch."""


@cli.command(
    cls=_ExamplesCommand,
    epilog="""
    paritybit finetune recipes/banking77.toml
    paritybit finetune my.toml --set train.learning_rate=3e-5 --set train.epochs=4
    paritybit finetune my.toml --output build/mine/checkpoint --force
    paritybit finetune my.toml --report-to tensorboard
    """,
)
@click.argument("recipe", type=_PATH)
@click.option("--output", type=_PATH, help="The checkpoint directory.  [default: build/NAME/checkpoint]")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a recipe key; repeatable.")
@click.option("--force", is_flag=True, help="Train again even when nothing changed.")
@click.option("--report-to", multiple=True, type=click.Choice(_TRACKERS), help="Tell a tracker too; repeatable.")
def finetune(
    recipe: Path, output: Path | None, overrides: tuple[str, ...], force: bool, report_to: tuple[str, ...]
) -> None:
    """Fine-tune the base model of RECIPE on its data: a checkpoint directory.

    Started by `torchrun -m paritybit finetune`, several processes train it together.
    """
    from finetune.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    from finetune.processes import is_first
    from finetune.training import finetune as run

    target = output or Path("build") / loaded.name / "checkpoint"
    result = run(loaded, target, force=force, report=_say, report_to=report_to)
    if is_first():
        _say(f"{'up to date' if result.reused else 'finished'}: {result.checkpoint}")
        click.echo(json.dumps(result.metrics))


@cli.command(
    cls=_ExamplesCommand,
    epilog="""
    paritybit study my.toml --seeds 10
    paritybit study my.toml --seeds 5 --least 0.8 --workers 4
    paritybit study my.toml --compare "train.warmup_ratio=0.0" --compare "regularize.r_drop=1.0 train.dropout=0.1"
    """,
)
@click.argument("recipe", type=_PATH)
@click.option("--seeds", type=click.IntRange(1), default=10, show_default=True, help="From the recipe's own upwards.")
@click.option("--compare", multiple=True, metavar="'KEY=VALUE …'", help="Also with these keys overridden; repeatable.")
@click.option("--least", type=float, help="Runs whose test metric is under this count as failed.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Trainings side by side.")
@click.option("--output", type=_PATH, help="The study's directory.  [default: build/NAME/study]")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a recipe key; repeatable.")
def study(
    recipe: Path,
    seeds: int,
    compare: tuple[str, ...],
    least: float | None,
    workers: int,
    output: Path | None,
    overrides: tuple[str, ...],
) -> None:
    """Fine-tune RECIPE with many seeds: mean, spread and failed runs, a plot, and the best checkpoint."""
    from finetune.recipe import load_recipe

    recipes = {"recipe": load_recipe(recipe, overrides)}
    for changes in compare:
        recipes[changes] = load_recipe(recipe, [*overrides, *shlex.split(changes)])
    from finetune.study import run_study, to_table
    from finetune.study_plot import draw

    loaded = recipes["recipe"]
    target = output or Path("build") / loaded.name / "study"
    found = run_study(
        recipes, range(loaded.seed, loaded.seed + seeds), target, workers=workers, least=least, report=_say
    )
    draw(found, target / "study.png")
    _say(to_table(found))
    best = found.best_checkpoint()
    click.echo(json.dumps({"study": str(target), "best_checkpoint": best and str(best)}))


@cli.command(
    cls=_ExamplesCommand,
    epilog="""
    paritybit suspects my.toml
    paritybit suspects my.toml --folds 10 --workers 4
    """,
)
@click.argument("recipe", type=_PATH)
@click.option("--folds", type=click.IntRange(2), default=5, show_default=True, help="Trainings; each leaves one out.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Trainings side by side.")
@click.option("--output", type=_PATH, help="Directory of the result.  [default: build/NAME/suspects]")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a recipe key; repeatable.")
def suspects(recipe: Path, folds: int, workers: int, output: Path | None, overrides: tuple[str, ...]) -> None:
    """List training rows of RECIPE whose labels models doubt that were trained without them."""
    from finetune.recipe import load_recipe
    from finetune.suspects import SUSPECTS_FILE, find_suspects

    loaded = load_recipe(recipe, overrides)
    target = output or Path("build") / loaded.name / "suspects"
    found = find_suspects(loaded, target, folds=folds, workers=workers, report=_say)
    for one in found[:_SHOWN_SUSPECTS]:
        text = " ".join(one.text.split())[:_SHOWN_CHARS]
        _say(f"{one.place}: says {one.expected}, looks like {one.said} (loss {one.loss:.2f}): {text}")
    click.echo(json.dumps({"suspects": str(target / SUSPECTS_FILE), "rows": len(found)}))


@cli.command(
    cls=_ExamplesCommand,
    epilog="""
    paritybit sweep my.toml
    paritybit sweep my.toml --storage postgresql://user@host/optuna --set sweep.trials=100
    """,
)
@click.argument("recipe", type=_PATH)
@click.option("--storage", metavar="URL", help="Share the search.  [default: a SQLite file in the output]")
@click.option("--output", type=_PATH, help="The search's directory.  [default: build/NAME/sweep]")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a recipe key; repeatable.")
def sweep(recipe: Path, storage: str | None, output: Path | None, overrides: tuple[str, ...]) -> None:
    """Search the [sweep] ranges of RECIPE for what does best on validation rows; keeps the best checkpoint."""
    from finetune.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    from finetune.sweep import run_sweep, to_table

    target = output or Path("build") / loaded.name / "sweep"
    found = run_sweep(recipe, overrides, target, storage=storage, report=_say)
    _say(to_table(found))
    click.echo(json.dumps(found.to_json()))


@cli.command(
    cls=_ExamplesCommand,
    epilog="""
    paritybit export build/banking77/checkpoint
    paritybit export build/banking77/checkpoint --set export.max_metric_loss=0.003
    paritybit export ./some-hugging-face-model --recipe my.toml --output build/mine/bundle
    paritybit export some/hub-model --recipe my.toml --allow-pickle
    paritybit export build/banking77/checkpoint --only int8-static --budget 0.3 --objective latency
    """,
)
@click.argument("checkpoint")
@click.option("--recipe", type=_PATH, help="Take data and limits from this recipe, not from the checkpoint's own.")
@click.option("--output", type=_PATH, help="The bundle directory.  [default: bundle, beside the checkpoint]")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a recipe key; repeatable.")
@click.option(
    "--only",
    type=click.Choice(["fp32", "int8-dynamic", "int8-static", "fp16"]),
    help="Publish this variant or none; fp16 is for CUDA.",
)
@click.option("--budget", type=click.FloatRange(0, 100), help="Points of the task's metric that int8 may lose.")
@click.option(
    "--objective", type=click.Choice(["balanced", "latency", "throughput", "size"]), help="What to be best at."
)
@click.option("--allow-pickle", is_flag=True, help="Read pytorch_model.bin where there are no safetensors weights.")
@click.option("--force", is_flag=True, help="Export again even when nothing changed.")
def export(
    checkpoint: str,
    recipe: Path | None,
    output: Path | None,
    overrides: tuple[str, ...],
    only: str | None,
    budget: float | None,
    objective: str | None,
    allow_pickle: bool,
    force: bool,
) -> None:
    """Export CHECKPOINT (a directory or a hub id) to a quantized, certified bundle."""
    from finetune.recipe import load_recipe, recipe_of_run

    if only is not None:
        overrides += (f'export.variants=["{only}"]',)
    if budget is not None:
        overrides += (f"export.max_metric_loss={budget / 100!r}",)
    if objective is not None:
        overrides += (f"export.objective={objective}",)
    chosen = load_recipe(recipe, overrides) if recipe else recipe_of_run(Path(checkpoint), overrides)
    from export.pipeline import export_bundle

    beside = Path(checkpoint).parent if Path(checkpoint).is_dir() and recipe is None else Path("build") / chosen.name
    result = export_bundle(
        checkpoint, output or beside / "bundle", recipe=chosen, allow_pickle=allow_pickle, force=force, report=_say
    )
    _say(f"{'up to date' if result.reused else 'published'}: {result.bundle}")
    click.echo(json.dumps({"published": result.certificate["published"], "reason": result.certificate["reason"]}))


@cli.command(
    cls=_ExamplesCommand,
    epilog="""
    paritybit predict build/banking77/bundle "Where is my card?"
    paritybit predict build/banking77/bundle "Where is my card?" "How old must I be?" -p top_k=3
    paritybit predict build/banking77/bundle - < texts.txt
    paritybit predict build/squad/bundle --json '{"question": "Who?", "context": "Ann came."}'
    """,
)
@click.argument("bundle", type=_PATH)
@click.argument("texts", nargs=-1, required=True)
@click.option("-p", "--parameter", "parameters", multiple=True, metavar="KEY=VALUE", help="A parameter of the task.")
@click.option("--json", "as_json", is_flag=True, help="Each text is an input as a JSON object: text_pair, question, …")
def predict(bundle: Path, texts: tuple[str, ...], parameters: tuple[str, ...], as_json: bool) -> None:
    """Answer TEXTS with BUNDLE, a JSON object a line; `-` reads a text a line from standard input."""
    from bundle import Predictor

    predictor = Predictor.load(bundle)
    rows = _stdin_lines() if texts == ("-",) else list(texts)
    asked = [_json(position, row) for position, row in enumerate(rows)] if as_json else rows
    for answer in predictor(asked, **dict(map(_parameter, parameters))):
        click.echo(json.dumps(answer, ensure_ascii=False))


@cli.command(
    cls=_ExamplesCommand,
    epilog="""
    paritybit check build/banking77/bundle
    paritybit check build/banking77/bundle --data new.jsonl --column text=question
    paritybit check build/banking77/bundle --data new.jsonl --checkpoint build/banking77/checkpoint
    """,
)
@click.argument("bundle", type=_PATH)
@click.option("--data", type=_PATH, help="Certify again on the labelled rows of this file.")
@click.option("--format", "file_format", type=click.Choice(_FORMATS), help="Of the file.  [default: by its suffix]")
@click.option("--column", "columns", multiple=True, metavar="FIELD=COLUMN", help="Where a field stands; repeatable.")
@click.option("--checkpoint", type=_PATH, help="Compare with the checkpoint that the bundle was made from.")
def check(bundle: Path, data: Path | None, file_format: Any, columns: tuple[str, ...], checkpoint: Path | None) -> None:
    """Verify the checksums of BUNDLE and replay its golden rows on this machine.

    With --data, also measure it on labelled rows and hold it to its certified limits: a table, then one JSON line.
    """
    if data is None and (file_format or columns or checkpoint):
        raise click.UsageError("--format, --column and --checkpoint need --data.")
    column_of = dict(map(_column, columns))
    from bundle import Predictor

    predictor = Predictor.load(bundle)
    _say(f"{len(predictor.manifest.files)} files have their certified SHA-256")
    golden = predictor.replay_golden()
    if not golden.same_machine:
        certified = " ".join(predictor.manifest.instruction_set)
        _say(f"warning: certified on another instruction set ({certified or 'unknown'}): only answers are compared")
    if not golden.same_sums:
        _say("warning: its int8 weights use the full range, whose sums this processor cuts off: export it again here")
    summary = (
        f"{golden.rows} golden rows, {golden.changed_answers} changed answers, max |Δlogit| {golden.max_delta:.3g}"
    )
    if not golden.passed:
        raise GateError(f"{bundle}: golden rows are not reproduced: {summary} (limit {golden.tolerance:.3g})")
    if data is None:
        click.echo(f"{bundle}: pass: {summary}")
        return
    _say(f"pass: {summary}")
    from export.recertify import recertify, to_table

    result = recertify(predictor, data, file_format=file_format, columns=column_of, checkpoint=checkpoint)
    _say(f"{bundle}, {result.variant}, on {result.rows:,} rows of {data}\n{to_table(result)}")
    checked = {"bundle": str(bundle), "data": str(data), "same_instruction_set": golden.same_machine}
    click.echo(json.dumps(checked | result.to_json(), ensure_ascii=False))
    if result.failed:
        raise GateError(f"{bundle}: not met on {data}: {'; '.join(map(str, result.failed))}")


@cli.command(
    cls=_ExamplesCommand,
    epilog="""
    paritybit bench build/banking77/bundle
    paritybit bench build/banking77/bundle --threads 1 --output build/banking77/bench-1-thread
    paritybit bench build/banking77/bundle --texts 1000 --seconds 600
    """,
)
@click.argument("bundle", type=_PATH)
@click.option("--checkpoint", type=_PATH, help="The PyTorch baseline.  [default: checkpoint, beside the bundle]")
@click.option("--output", type=_PATH, help="Where the results go.  [default: bench, beside the bundle]")
@click.option("--threads", type=click.IntRange(min=1), help="Of every engine.  [default: all processors]")
@click.option("--texts", type=click.IntRange(min=1), help="Real texts of a round at most.  [default: 256]")
@click.option(
    "--seconds", type=click.FloatRange(min=0), help="No new round after so many; three at least.  [default: 60]"
)
@click.option("--force", is_flag=True, help="Measure again even when nothing changed.")
def bench(
    bundle: Path,
    checkpoint: Path | None,
    output: Path | None,
    threads: int | None,
    texts: int | None,
    seconds: float | None,
    force: bool,
) -> None:
    """Time BUNDLE and every exported variant against PyTorch, interleaved in one run."""
    from benchmarks.report import BenchSettings
    from benchmarks.run import bench as run

    given = {name: value for name, value in {"sample": texts, "budget_s": seconds}.items() if value is not None}
    run(
        bundle,
        checkpoint or bundle.parent / "checkpoint",
        output=output or bundle.parent / "bench",
        threads=threads,
        settings=BenchSettings.model_validate(given),
        force=force,
        report=click.echo,
    )


def main() -> NoReturn:
    """Runs the command line: a mendable error is one line (or a list) on stderr and its exit code."""
    try:
        cli.main(standalone_mode=False)
    except ParitybitError as error:
        _fail(str(error), error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        module = (error.name or "").split(".")[0]
        if module not in _EXTRA_OF:
            raise
        missing = MissingExtraError(_EXTRA_OF[module], module)
        _fail(str(missing), missing.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted", 130)
    except BrokenPipeError:
        # the reader of our output went away; nothing is left to be said to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        _fail(f"{error.filename or 'the system'}: {error.strerror or error}", 1)
    sys.exit(0)


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"paritybit: {message}", err=True)
    sys.exit(code)


def _say(line: str) -> None:
    click.echo(line, err=True)


def _stdin_lines() -> list[str]:
    try:
        # not str.splitlines, which also cuts at separators that may stand in a text
        return [line.rstrip("\r\n") for line in io.StringIO(sys.stdin.buffer.read().decode("utf-8"))]
    except UnicodeDecodeError as error:
        raise InputError(f"standard input: byte {error.start}: not valid UTF-8") from None


def _json(position: int, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"input {position}: malformed JSON: {error}") from None


def _column(text: str) -> tuple[str, str]:
    field, equals, column = text.partition("=")
    if not field or not equals or not column:
        raise click.UsageError(f"--column {text!r}: expected FIELD=COLUMN.")
    return field, column


def _parameter(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise InputError(f"parameter {text!r}: expected KEY=VALUE")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value
