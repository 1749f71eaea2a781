"""Examples a second in training, beside what the example script `run_glue.py` of transformers does.

python -m benchmarks.training_speed --rounds 3      # writes benchmarks/results/training/speed.json and speed.md

The script itself is transformers' `Trainer` with its defaults, on rows padded to 128 tokens, or, with
`--pad_to_max_length False --train_sampling_strategy group_by_length`, on batches of similar length. That is written
down here, the script is not run. All take the same rows in batches of 32, one after the other in one process, round
after round.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
import transformers
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.machine import machine_facts
from finetune.base_model import open_base_model, quiet_transformers
from finetune.data import LabelledData, Split, load_data
from finetune.defaults import make_plan
from finetune.recipe import Recipe, load_recipe
from finetune.record import write_json
from finetune.trainer import EncodedSplit, train
from tasks.catalogue import load_task
from tasks.errors import DataError

__all__ = ["main", "measure", "table"]

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "training"
_PADDED_TO = 128
_BATCH = 32
_WARM = 4  # steps that are not timed
PADDED, GROUPED, OURS, ALIKE = (
    "run_glue, padded to 128",
    "run_glue, grouped by length",
    "recipe",
    "recipe, all weights trained, dropout .1",
)
_ALIKE = ("train.freeze_embeddings=false", "train.dropout=0.1")


def measure(recipe_file: Path, *, overrides: tuple[str, ...] = (), steps: int, rounds: int) -> dict[str, Any]:
    """Times a few steps of each way in turn.

    Args:
        recipe_file: of a `single_label` task.
        overrides: of its keys.
        steps: optimizer steps of each way and round, the first four of which are not timed.
        rounds: how often all of them are timed.

    Raises:
        DataError: if there are fewer training rows than are to be timed.

    Returns:
        `examples_per_s`: for each way, one figure a round; and what else the table needs.
    """
    recipe, alike = (load_recipe(recipe_file, (*overrides, *more)) for more in ((), _ALIKE))
    data = _first_rows(load_data(recipe), steps * _BATCH)
    ways: dict[str, Callable[[], None]] = {
        PADDED: lambda: _reference(recipe, data, padded=True),
        GROUPED: lambda: _reference(recipe, data, padded=False),
        OURS: lambda: _ours(recipe, data),
        ALIKE: lambda: _ours(alike, data),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            rates[name].append(round(_rate(way), 2))
            click.echo(f"{name}: {rates[name][-1]} examples/s", err=True)
    facts = {"recipe": recipe.name, "rows": len(data.train), "steps": steps, "batch_size": _BATCH}
    return facts | {"threads": torch.get_num_threads(), "examples_per_s": rates, "machine": machine_facts()}


def table(result: dict[str, Any]) -> str:
    """The medians and the ratios to both references, round by round, as Markdown."""
    rates = result["examples_per_s"]
    lines = [
        f"# Training speed: {result['recipe']}",
        "",
        f"Written by `python -m benchmarks.training_speed`: {result['rows']:,} rows, "
        f"batches of {result['batch_size']}, {result['threads']} threads, {result['machine']['cpu']}, "
        f"{len(rates[OURS])} interleaved rounds; the first "
        f"{_WARM} of {result['steps']} steps are not timed. Medians, and lowest and highest round.",
        "",
        f"| | examples/s | × {PADDED} | × {GROUPED} |",
        "|---|---|---|---|",
    ]
    for name, found in rates.items():
        ratios = [[a / b for a, b in zip(found, rates[other], strict=True)] for other in (PADDED, GROUPED)]
        cells = [_spread(values, digits) for values, digits in zip([found, *ratios], (1, 2, 2), strict=True)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _spread(values: list[float], digits: int) -> str:
    low, middle, high = (f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low}–{high})"


def _rate(way: Callable[[], None]) -> float:
    """Examples a second between the last untimed step's end and the last step's."""
    ends: list[float] = []
    handle = register_optimizer_step_post_hook(lambda *_: ends.append(time.perf_counter()))
    try:
        way()
    finally:
        handle.remove()
    return (len(ends) - _WARM) * _BATCH / (ends[-1] - ends[_WARM - 1])


def _first_rows(data: LabelledData, count: int) -> LabelledData:
    if len(data.train) < count:
        raise DataError(f"training rows: found {len(data.train)}; expected {count}, as many as are timed")
    train = Split("train", data.train.inputs[:count], data.train.golds[:count])
    few = Split("validation", data.validation.inputs[:_BATCH], data.validation.golds[:_BATCH])
    return LabelledData(train, few, data.test, data.spec, data.fingerprint)


def _model(recipe: Recipe, data: LabelledData) -> Any:
    transformers.set_seed(recipe.seed)
    location = open_base_model(recipe.base_model, recipe.max_length).location
    return transformers.AutoModelForSequenceClassification.from_pretrained(
        location, num_labels=len(data.spec.labels), dtype=torch.float32
    )


def _ours(recipe: Recipe, data: LabelledData) -> None:
    base, task = open_base_model(recipe.base_model, recipe.max_length), load_task(data.spec)
    splits = [EncodedSplit(task.encode(base.tokenizer, one.inputs), one.golds) for one in (data.train, data.validation)]
    settings = recipe.train.model_copy(update={"epochs": 1, "batch_size": _BATCH, "evaluations_per_epoch": 1})
    plan = make_plan(settings, windows=len(data.train), hidden_size=base.config.hidden_size)
    with tempfile.TemporaryDirectory() as work, quiet_transformers():
        train(
            recipe.model_copy(update={"train": settings}),
            plan,
            task,
            model=_model(recipe, data),
            splits=(splits[0], splits[1]),
            pad_id=base.tokenizer.pad_id,
            work=Path(work),
            report=lambda line: None,
            watch=None,
        )


def _reference(recipe: Recipe, data: LabelledData, *, padded: bool) -> None:
    """As `run_glue.py` sets up its trainer."""
    tokenizer = open_base_model(recipe.base_model, recipe.max_length).hf_tokenizer
    ids = {label: number for number, label in enumerate(data.spec.labels)}
    texts = [one.text for one in data.train.inputs]  # type: ignore[union-attr]
    limits = {"max_length": _PADDED_TO, "truncation": True, "padding": "max_length" if padded else False}
    encoded = tokenizer(texts, **limits)
    rows = [
        {name: values[row] for name, values in encoded.items()} | {"label": ids[gold]}
        for row, gold in enumerate(data.train.golds)
    ]
    strategy: dict[str, Any] = {} if padded else {"train_sampling_strategy": "group_by_length"}
    with tempfile.TemporaryDirectory() as work, quiet_transformers():
        arguments = transformers.TrainingArguments(
            output_dir=work,
            num_train_epochs=1,
            per_device_train_batch_size=_BATCH,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=torch.cuda.is_available(),
            **strategy,
        )
        collate = transformers.default_data_collator if padded else transformers.DataCollatorWithPadding(tokenizer)
        trainer = transformers.Trainer(
            model=_model(recipe, data), args=arguments, train_dataset=rows, data_collator=collate
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()


@click.command()
@click.option("--steps", type=click.IntRange(min=_WARM + 2), default=20, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
def main(steps: int, rounds: int) -> None:
    """Time training on BANKING77 and write the result."""
    result = measure(ROOT / "recipes" / "banking77.toml", steps=steps, rounds=rounds)
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_json(RESULTS / "speed.json", result)
    (RESULTS / "speed.md").write_text(table(result), encoding="utf-8")
    click.echo(table(result))
    click.echo(json.dumps(result["examples_per_s"]))


if __name__ == "__main__":
    main()
