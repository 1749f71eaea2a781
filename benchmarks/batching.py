"""Founds the constants of `bundle.batching` on measurement.

    python -m benchmarks.batching build/banking77/bundle

Times the bundle's graph on the test split's real lengths, cut by several token budgets and batch costs, interleaved.
A table for people, then one line of JSON.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel, ConfigDict, TypeAdapter
from tqdm import tqdm

from benchmarks.report import markdown_table
from benchmarks.rows import sample_windows, test_inputs
from bundle.batching import BATCH_COST, TOKEN_BUDGET, plan_batches
from bundle.cpu import available_cpus
from bundle.manifest import read_manifest
from export.timing import Spread, WorkerSpec, Workload, measure, ort_spec
from tasks import Window

__all__ = ["BUDGETS", "COSTS", "PlanTiming", "make_plans", "sweep"]

BUDGETS = (256, 512, 1024, 2048, 4096, 8192)
COSTS = (0, 4, 8, 12, 16, 24, 32, 64)

Plan = list[list[int]]


class PlanTiming(BaseModel):
    """How one way of cutting rows into batches did.

    Attributes:
        plan: budget and cost.
        batches: how many.
        padding: share of the tokens run that were padding.
        texts_per_s: throughput.
        ratio: to the constants in use, paired by round.
    """

    model_config = ConfigDict(frozen=True)

    plan: str
    batches: int
    padding: float
    texts_per_s: Spread
    ratio: Spread


def make_plans(lengths: Sequence[int]) -> dict[str, Plan]:
    """The usual padded 32, the constants in use, each budget at the cost in use, each cost at the budget in use.

    Constants that cut these rows as earlier ones do are left out.
    """
    rows = list(range(len(lengths)))
    pairs = [(TOKEN_BUDGET, BATCH_COST)]
    pairs += [(budget, BATCH_COST) for budget in BUDGETS] + [(TOKEN_BUDGET, cost) for cost in COSTS]
    plans = {"padded 32": [rows[start : start + 32] for start in range(0, len(rows), 32)]}
    for budget, cost in pairs:
        plan = plan_batches(lengths, budget, cost)
        if plan not in plans.values():
            plans[_name(budget, cost)] = plan
    return plans


def sweep(
    spec: WorkerSpec, windows: Sequence[Window], pad_id: int, *, rounds: int = 7, budget_s: float = 180.0
) -> list[PlanTiming]:
    """Times every plan on one engine.

    Raises:
        ParitybitError: if the engine fails.
    """
    lengths = [len(window) for window in windows]
    plans = make_plans(lengths)
    workloads = [Workload.of_windows(name, windows, plan, pad_id) for name, plan in plans.items()]
    with tqdm(desc="batching", unit="step", leave=False) as bar:
        seen = measure(
            {"engine": spec},
            workloads,
            rounds=rounds,
            min_rounds=min(3, rounds),
            budget_s=budget_s,
            progress=lambda done, total: _advance(bar, done, total),
        )
    present = _name(TOKEN_BUDGET, BATCH_COST)
    return [
        PlanTiming(
            plan=name,
            batches=len(plan),
            padding=1 - sum(lengths) / sum(len(batch) * max(lengths[row] for row in batch) for batch in plan),
            texts_per_s=seen.texts_per_s("engine", name),
            ratio=seen.speedup("engine", name, "engine", present),
        )
        for name, plan in plans.items()
    ]


def _name(budget: int, cost: int) -> str:
    return f"budget {budget}, cost {cost}"


def _advance(bar: "tqdm[Any]", done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)


def _table(timings: Sequence[PlanTiming]) -> str:
    header = ["plan", "batches", "padding", "texts/s", "× the constants in use"]
    rows = [
        [
            one.plan,
            str(one.batches),
            f"{one.padding:.1%}",
            f"{one.texts_per_s.median:.0f}",
            f"{one.ratio.median:.3f} ({one.ratio.q1:.3f}–{one.ratio.q3:.3f})",
        ]
        for one in timings
    ]
    return "\n".join(markdown_table(header, rows))


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Names the test split.  [default: beside BUNDLE]")
@click.option("--threads", type=click.IntRange(min=1), help="[default: all processors]")
@click.option("--sample", default=1024, show_default=True, help="Texts at most.")
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(min=1))
@click.option("--budget-s", default=180.0, show_default=True, help="No further round starts after so many seconds.")
def main(bundle: Path, checkpoint: Path | None, **options: Any) -> None:
    """Sweeps the batching constants on BUNDLE's graph and the test split's lengths."""
    timings = _of_bundle(bundle, checkpoint or bundle.parent / "checkpoint", options)
    click.echo(_table(timings))
    click.echo(TypeAdapter(list[PlanTiming]).dump_json(timings).decode())


def _of_bundle(bundle: Path, checkpoint: Path, options: Mapping[str, Any]) -> list[PlanTiming]:
    manifest = read_manifest(bundle)
    windows = sample_windows(manifest, bundle, test_inputs(checkpoint), options["sample"], seed=0)
    threads = options["threads"] or available_cpus()
    spec = ort_spec(bundle / manifest.variant.file, manifest.variant.session, threads)
    return sweep(spec, windows, manifest.pad_token_id, rounds=options["rounds"], budget_s=options["budget_s"])


if __name__ == "__main__":
    main()
