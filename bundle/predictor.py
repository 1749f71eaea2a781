"""`Predictor`: a bundle, ready to answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError

from bundle.batching import TOKEN_BUDGET, plan_batches
from bundle.cpu import instruction_set, sums_int8_exactly
from bundle.golden import read_golden
from bundle.manifest import GOLDEN_FILE, Manifest, read_manifest, verify_files
from bundle.session import Session
from tasks import Answer, Encoded, Input, Tokenizer, Window, collate, load_task
from tasks.base import FloatArray
from tasks.encoding import without_padding
from tasks.errors import BundleError, InputError
from tasks.inputs import Asked, input_from_json

__all__ = ["GoldenReport", "Predictor"]


@dataclass(frozen=True, slots=True)
class GoldenReport:
    """What replaying the golden rows gave.

    Attributes:
        rows: how many there are.
        changed_answers: how many decode to another answer than certified.
        max_delta: largest |Δoutput| over all rows.
        tolerance: what `max_delta` may be.
        same_machine: whether this processor has the instruction sets of the certifying one.
        same_sums: whether the graph's integer sums are the certified ones here.
    """

    rows: int
    changed_answers: int
    max_delta: float
    tolerance: float
    same_machine: bool
    same_sums: bool = True

    @property
    def passed(self) -> bool:
        """Same answers; on the same instruction set also the same outputs within the tolerance."""
        return self.changed_answers == 0 and (not self.same_machine or self.max_delta <= self.tolerance)


class Predictor:
    """Answers inputs with a certified bundle. Safe to call from several threads."""

    def __init__(self, manifest: Manifest, directory: Path, session: Session, token_budget: int = TOKEN_BUDGET) -> None:
        """Joins the parts; `Predictor.load` is the usual way in."""
        self.manifest = manifest
        self.directory = directory
        self.task = load_task(manifest.task)
        self.tokenizer = Tokenizer(directory / "tokenizer.json", manifest.task.max_length, manifest.pad_token_id)
        self.session = session
        self._token_budget = token_budget

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        threads: int | None = None,
        token_budget: int = TOKEN_BUDGET,
        verify: bool = True,
        spinning: bool = True,
    ) -> "Predictor":
        """Opens a bundle.

        Args:
            path: the bundle directory.
            threads: of one run; all that affinity and cgroup quota give when None.
            token_budget: padded tokens of a micro-batch at most.
            verify: whether every file's SHA-256 is compared with the manifest's.
            spinning: whether idle engine threads spin for work.

        Raises:
            BundleError: if the bundle is missing, damaged, of an unknown schema or not certified.
        """
        directory = Path(path)
        manifest = read_manifest(directory)
        if verify:
            verify_files(directory, manifest)
        session = Session(directory / manifest.variant.file, manifest.variant.session, threads, spinning)
        if session.inputs != manifest.inputs or session.outputs != manifest.outputs:
            raise BundleError(f"{directory / manifest.variant.file}: inputs or outputs are not the manifest's")
        return cls(manifest, directory, session, token_budget)

    def __call__(self, inputs: Asked | Sequence[Asked], **parameters: Any) -> list[Answer]:
        """Answers one input or many, in order.

        Args:
            inputs: an input or a sequence of them; each an object of the task's `input_types`, the same as a
                dictionary, or, where the task takes plain texts, a text.
            parameters: the task's, for instance `top_k=3`.

        Raises:
            InputError: if an input, named by its position, or a parameter cannot be used.
        """
        asked = [inputs] if isinstance(inputs, (str, dict, Input)) else inputs
        return self.predict(_as_inputs(asked, self.task.input_types), self.parameters(parameters))

    def parameters(self, values: dict[str, Any]) -> BaseModel:
        """The task's per-request parameters from plain values.

        Raises:
            InputError: for an unknown key or a value out of range, naming it.
        """
        try:
            return self.task.parameters.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            raise InputError(f"parameter {'.'.join(map(str, first['loc']))}: {first['msg']}") from None

    def predict(self, inputs: Sequence[Input], parameters: BaseModel) -> list[Answer]:
        """Answers inputs with validated parameters, in order."""
        encoded = self.task.encode(self.tokenizer, inputs)
        return self.task.decode(self.outputs(encoded.windows), encoded, parameters)

    def outputs(self, windows: Sequence[Window]) -> list[FloatArray]:
        """Raw outputs of each window without padding, in order, run in micro-batches of similar length."""
        outputs: list[FloatArray] = [np.empty(0, dtype=np.float32)] * len(windows)
        for rows in plan_batches([len(window) for window in windows], self._token_budget):
            for row, output in zip(rows, self.run_batch([windows[row] for row in rows]), strict=True):
                outputs[row] = output
        return outputs

    def run_batch(self, windows: Sequence[Window]) -> list[FloatArray]:
        """Raw outputs of each window without padding, in order, run as one batch."""
        return without_padding(self.session.run(collate(windows, self.tokenizer.pad_id)), windows)

    def warm_up(self) -> None:
        """Runs once at each of some lengths up to max_length, so that the first caller does not pay for allocation."""
        length = self.manifest.task.max_length
        while length >= 1:
            ids = np.full(length, self.tokenizer.pad_id, dtype=np.int64)
            self.outputs([Window(0, ids, np.zeros(length, dtype=np.int64), truncated=False)])
            length //= 2

    def replay_golden(self) -> GoldenReport:
        """Runs the golden rows and compares them with what was certified.

        Raises:
            BundleError: if the golden rows cannot be read, or are cut into other windows here than when certified.
        """
        path = self.directory / GOLDEN_FILE
        golden = read_golden(path, self.task.input_types)
        encoded = self.task.encode(self.tokenizer, [row.input for row in golden])
        outputs = self.outputs(encoded.windows)
        expected = [output for row in golden for output in row.outputs]
        _check_shapes(path, encoded, outputs, [row.outputs for row in golden])
        return GoldenReport(
            rows=len(golden),
            changed_answers=int((~self.task.same_answer(outputs, expected, encoded)).sum()),
            max_delta=max(float(np.abs(a - b).max()) for a, b in zip(outputs, expected, strict=True)),
            tolerance=self.manifest.golden_tolerance,
            same_machine=instruction_set() == self.manifest.instruction_set,
            same_sums=not self.manifest.variant.needs_exact_int8 or sums_int8_exactly(instruction_set()),
        )


def _as_inputs(asked: Sequence[Asked], kinds: Sequence[type]) -> list[Input]:
    inputs = []
    for position, one in enumerate(asked):
        try:
            inputs.append(input_from_json(one, kinds))
        except InputError as error:
            raise InputError(f"input {position}: {error}") from None
    return inputs


def _check_shapes(
    path: Path, encoded: Encoded, outputs: Sequence[FloatArray], expected: Sequence[Sequence[FloatArray]]
) -> None:
    # another release of the tokenizers library may cut a text otherwise
    for number, (span, certified) in enumerate(zip(encoded.spans(), expected, strict=True), start=1):
        here, there = [one.shape for one in outputs[span]], [one.shape for one in certified]
        if here != there:
            raise BundleError(f"{path}:{number}: outputs of shape {here} here, {there} when certified")
