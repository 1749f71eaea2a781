"""What a benchmark found: one frozen model for machines, Markdown tables for people."""

from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict

from export.timing import Spread

__all__ = ["SCHEMA_VERSION", "BenchReport", "BenchSettings", "EngineFacts", "Timing", "markdown_table", "tables"]

SCHEMA_VERSION = 1


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BenchSettings(_Frozen):
    """What a run of the benchmark may be asked for.

    Attributes:
        sample: real texts at most.
        rounds: of interleaved measurement at most.
        min_rounds: whatever the budget says.
        warmup_s: what each engine runs each workload for before the first round.
        budget_s: no further round starts once it is spent, loading included.
        seed: of the sample, the random ids and the order of the rounds.
    """

    sample: int = 256
    rounds: int = 9
    min_rounds: int = 3
    warmup_s: float = 0.5
    budget_s: float = 60.0
    seed: int = 0


class Timing(_Frozen):
    """One engine on one workload.

    Attributes:
        engine: as in `BenchReport.engines`.
        workload: as in `BenchReport.shapes` or `BenchReport.real`.
        texts: rows of a pass.
        passes: how many were timed.
        ms: milliseconds of a pass.
        p95_ms: 95th percentile of them.
        texts_per_s: throughput of a pass.
        speedup: times the throughput of the baseline engine on the same texts in the same round.
    """

    engine: str
    workload: str
    texts: int
    passes: int
    ms: Spread
    p95_ms: float
    texts_per_s: Spread
    speedup: Spread


class EngineFacts(_Frozen):
    """What an engine costs beside time.

    Attributes:
        load_s: from the start of its process to its first batch, libraries included.
        peak_mib: most memory its process held.
        file_mib: size of its weights on disk.
        verdict: of the gates, for a graph that export made.
    """

    load_s: float
    peak_mib: float
    file_mib: float
    verdict: str | None = None


class BenchReport(_Frozen):
    """`bench.json`.

    Attributes:
        shapes: workloads of one batch, `batch×tokens`, whose latency counts.
        real: workloads on real texts, whose throughput counts; the first is the baseline's usual way.
        baseline: the engine that speedups are relative to.
        inputs_digest: of all that the figures depend on; equal inputs need no second run.
    """

    schema_version: int = SCHEMA_VERSION
    name: str
    created: str
    inputs_digest: str
    machine: dict[str, str]
    settings: BenchSettings
    threads: int
    rounds: int
    baseline: str
    shapes: tuple[str, ...]
    real: tuple[str, ...]
    engines: dict[str, EngineFacts]
    timings: tuple[Timing, ...]

    def timing(self, engine: str, workload: str) -> Timing:
        """The timing of one engine on one workload; KeyError when it was not taken."""
        for one in self.timings:
            if (one.engine, one.workload) == (engine, workload):
                return one
        raise KeyError((engine, workload))

    @property
    def real_texts(self) -> int:
        """Texts of the real workloads."""
        return self.timing(self.baseline, self.real[0]).texts


def tables(report: BenchReport) -> str:
    """The report as Markdown whose columns also line up in a terminal."""
    machine = report.machine
    versions = ", ".join(
        f"{name} {machine[name]}" for name in machine if name not in ("cpu", "instruction_set", "cpus")
    )
    return "\n".join(
        [
            f"{report.name}: {machine['cpu']} ({machine['instruction_set']}), {report.threads} threads, "
            f"{report.rounds} interleaved rounds, {report.created[:10]}",
            versions,
            "",
            f"Latency of one batch (texts × tokens), ms: median (quartiles), p95; × = times {report.baseline}",
            "",
            *_latency(report),
            "",
            f"Throughput on {report.real_texts} real texts, texts/s: median (quartiles); "
            f"× = times {report.baseline}, {report.real[0]}",
            "",
            *_throughput(report),
            "",
            "Load time from process start, most memory of the process, weights on disk",
            "",
            *_cost(report),
        ]
    )


def _latency(report: BenchReport) -> list[str]:
    header = ["engine"]
    for shape in report.shapes:
        header += [shape, "p95", "×"]
    rows = []
    for engine in report.engines:
        row = [engine]
        for shape in report.shapes:
            one = report.timing(engine, shape)
            row += [_spread(one.ms), _number(one.p95_ms), _spread(one.speedup)]
        rows.append(row)
    return markdown_table(header, rows)


def _throughput(report: BenchReport) -> list[str]:
    header = ["engine"]
    for workload in report.real:
        header += [workload, "×"]
    rows = []
    for engine in report.engines:
        row = [engine]
        for workload in report.real:
            one = report.timing(engine, workload)
            row += [_spread(one.texts_per_s), _spread(one.speedup)]
        rows.append(row)
    return markdown_table(header, rows)


def _cost(report: BenchReport) -> list[str]:
    rows = [
        [engine, f"{facts.load_s:.2f}", f"{facts.peak_mib:.0f}", f"{facts.file_mib:.1f}", facts.verdict or ""]
        for engine, facts in report.engines.items()
    ]
    return markdown_table(["engine", "load s", "peak MiB", "file MiB", "gates"], rows)


def _spread(spread: Spread) -> str:
    return f"{_number(spread.median)} ({_number(spread.q1)}–{_number(spread.q3)})"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table whose columns line up; the first is aligned left, the others right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def line(cells: Sequence[str]) -> str:
        first, *rest = zip(cells, widths, strict=True)
        return "| " + " | ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]) + " |"

    return [line(lines[0]), line(rule), *map(line, lines[1:])]
