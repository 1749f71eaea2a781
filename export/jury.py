"""Every variant before PyTorch: screened, timed, and judged on all test rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bundle.manifest import SessionSettings
from export.certificate import Attempt, VariantReport
from export.gates import failed
from export.judge import Reference, judge, screen
from export.selection import Candidate, Speeds, choose_settings
from finetune.checkpoint import Checkpoint
from finetune.recipe import Recipe
from tasks.directory import sha256_of
from tasks.errors import GateError

__all__ = ["Jury", "Verdict", "refusal"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found of a set of variants.

    Attributes:
        candidates: fastest first, those that were not timed last.
        reports: of the candidates, in their order.
        speeds: what was timed.
        attempts: that led to the static int8 graph.
    """

    candidates: tuple[Candidate, ...]
    reports: tuple[VariantReport, ...]
    speeds: Speeds
    attempts: tuple[Attempt, ...] = ()


@dataclass(frozen=True)
class Jury:
    """Asks each graph once: what it said under the same settings is remembered.

    Attributes:
        report: told of each step in a line.
    """

    checkpoint: Checkpoint
    recipe: Recipe
    reference: Reference
    report: Callable[[str], None]
    _screened: dict[str, VariantReport | None] = field(default_factory=dict)
    _judged: dict[tuple[str, SessionSettings], VariantReport] = field(default_factory=dict)

    def screen_fp32(self, graph: Path) -> None:
        """Raises GateError if the float graph is not PyTorch's equal; nothing made from it can be trusted then."""
        fp32 = self.screen("fp32", graph)
        if fp32:
            raise GateError(refusal([fp32]))

    def screen(self, name: str, graph: Path) -> VariantReport | None:
        """The report on the first test rows if it fails there beyond doubt: `export.judge.screen`."""
        digest = sha256_of(graph)
        if digest not in self._screened:
            self.report(f"screening {name}")
            self._screened[digest] = screen(name, graph, self.reference, self.recipe.export)
        return self._screened[digest]

    def passes(self, name: str, graph: Path) -> bool:
        """Whether a graph passes every gate, with all of ONNX Runtime's fusions."""
        return not self.screen(name, graph) and self._judge(Candidate(name, graph, SessionSettings(), None)).passed

    def judge(self, graphs: Mapping[str, Path]) -> Verdict:
        """Times all graphs that the screening leaves, interleaved, and judges these.

        Args:
            graphs: by the names of their variants, `fp32` among them.

        Raises:
            GateError: if fp32 itself is not PyTorch's equal.
        """
        screened = {name: self.screen(name, path) for name, path in graphs.items()}
        left = {name: path for name, path in graphs.items() if not screened[name]}
        self.report("timing the candidates, interleaved")
        candidates, speeds = choose_settings(left, self.reference, self.checkpoint, self.recipe.export.objective)
        reports = [self._judge(one) for one in candidates]
        refused = [one for one in reports if one.name == "fp32" and not one.passed]
        if refused:
            raise GateError(refusal(refused))
        for name, verdict in screened.items():
            if verdict:
                candidates.append(Candidate(name, graphs[name], SessionSettings(), None))
                reports.append(verdict)
        return Verdict(tuple(candidates), tuple(reports), speeds)

    def _judge(self, one: Candidate) -> VariantReport:
        key = sha256_of(one.model), one.settings
        if key not in self._judged:
            self.report(f"judging {one.name}")
            self._judged[key] = judge(one.name, one.model, one.settings, self.reference, self.recipe.export, None)
            for gate in failed(self._judged[key].gates):
                self.report(f"  failed: {gate}")
        return replace(self._judged[key], relative_time=one.relative_time)


def refusal(reports: Sequence[VariantReport]) -> str:
    """What is said when nothing is published: every gate that failed, and the rows that are furthest off."""
    lines = ["no variant passed its gates; no bundle was published"]
    for one in reports:
        lines += [f"  {one.name}: {gate}" for gate in failed(one.gates)]
        lines += [
            f"    test row {row.row}: {row.text!r}: PyTorch says {row.pytorch}, {one.name} says {row.variant}, "
            f"|Δlogit| {row.delta:.3g}"
            for row in one.worst_rows[:3]
        ]
    return "\n".join(lines)
