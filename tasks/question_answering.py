"""Extractive question answering: the stretch of a text of any length that answers a question, or that none does."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field

from tasks.answer_scoring import Scoring, score_answer
from tasks.answer_spans import Found, Span, best_null_threshold, find, token_spans
from tasks.base import (
    Answer,
    Encoded,
    Example,
    Fields,
    FloatArray,
    Frozen,
    IntArray,
    LossName,
    Task,
    TaskSpec,
    options_of,
)
from tasks.classification import Scores, softmax
from tasks.encoding import Texts, Tokenizer
from tasks.errors import DataError, InputError, ParitybitError
from tasks.gold_answers import GoldAnswers, read_answers
from tasks.inputs import Input, QuestionInput
from tasks.reading import text_cell
from tasks.windows import Cut, Positions, overlapping

__all__ = ["GoldAnswers", "QuestionAnswering", "QuestionAnsweringOptions", "QuestionAnsweringParameters"]

_BEST = 20
"""Spans of a window that are weighed against each other, as many as in the reference script `run_qa.py`."""

_UNTUNED = 0.0


class QuestionAnsweringOptions(Frozen):
    """`[options]` of question answering."""

    stride: int | None = Field(
        default=None, ge=0, description="Tokens that neighbouring windows share; a third of max_length when missing."
    )
    max_answer_length: int = Field(default=30, ge=1, description="Of an answer, in tokens.")
    no_answer: bool | None = Field(
        default=None,
        description="Whether a question may be left without an answer; whether a training row is, when missing.",
    )
    null_threshold: float | None = Field(
        default=None,
        description="By how much no answer must beat the best one; tuned on the validation rows when missing.",
    )
    scoring: Scoring = Field(
        default="words", description="Quality by words, as SQuAD, or by Chinese characters, as CMRC2018."
    )


class QuestionAnsweringParameters(Frozen):
    """Per-request parameters; the names are those of the Hugging Face inference form.

    Of that form, `doc_stride`, `max_seq_len` and `max_question_len` are no parameters, since windows are those that the
    model was certified with and no question is cut; nor is `align_to_words`: answers begin and end with a token.
    """

    top_k: int = Field(default=1, ge=1, le=_BEST, description="How many answers to return, if there are as many.")
    max_answer_len: int | None = Field(default=None, ge=1, description="Of an answer, in tokens; the model's own.")
    handle_impossible_answer: bool | None = Field(
        default=None, description="Whether the question may be left without an answer; as trained when missing."
    )


class QuestionAnswering:
    """An answer is a stretch of the context. Outputs are logits of starts and ends, shape `[tokens, 2]`."""

    name: ClassVar[str] = "question_answering"
    auto_model: ClassVar[str] = "AutoModelForQuestionAnswering"
    problem_type: ClassVar[str | None] = None
    loss: ClassVar[LossName] = "cross_entropy"
    primary_metric: ClassVar[str] = "f1"
    min_agreement: ClassVar[float] = 0.9
    takes_labels: ClassVar[bool] = False
    input_types: ClassVar[tuple[type, ...]] = (QuestionInput,)
    fields: ClassVar[tuple[Fields, ...]] = (Fields(("question", "context", "answers"), ("id", "is_impossible")),)
    options: ClassVar[type[BaseModel]] = QuestionAnsweringOptions
    parameters: ClassVar[type[BaseModel]] = QuestionAnsweringParameters

    def __init__(self, spec: TaskSpec) -> None:
        """Keeps the specification.

        Raises:
            ParitybitError: if there are not two outputs, or an option is wrong.
        """
        if len(spec.labels) != 2:
            raise ParitybitError(f"{self.name} has two outputs, start and end, got {list(spec.labels)}")
        self.spec = spec
        self._options = options_of(spec, QuestionAnsweringOptions)
        self._threshold = _UNTUNED if self._options.null_threshold is None else self._options.null_threshold

    @classmethod
    def read_row(cls, values: Mapping[str, Any], options: Any) -> Example:
        """A question, its context, and answers in one of SQuAD's two forms; an empty one where there are none."""
        one = QuestionInput(text_cell(values, "question"), text_cell(values, "context"))
        gold = read_answers(values["answers"], one.context)
        impossible = values.get("is_impossible")
        if impossible is not None and bool(impossible) == bool(gold.texts):
            raise DataError(f"is_impossible is {impossible!r}, but there are {len(gold.texts)} answers")
        return Example(one, gold)

    @classmethod
    def names(cls, gold: GoldAnswers) -> tuple[str, ...]:
        """Whether there is an answer."""
        return ("answerable",) if gold.texts else ("unanswerable",)

    @classmethod
    def group(cls, one: Input) -> Hashable | None:
        """The context: many questions are asked about a paragraph."""
        return _question(one).context

    @classmethod
    def make_spec(
        cls, golds: Sequence[GoldAnswers], *, labels: tuple[str, ...] | None, max_length: int, options: Any
    ) -> TaskSpec:
        """The two outputs, and whether there are questions without an answer."""
        if not any(gold.texts for gold in golds):
            raise DataError("no row has an answer")
        learnt = {"no_answer": not all(gold.texts for gold in golds)} if options.no_answer is None else {}
        return TaskSpec(
            task=cls.name,
            labels=("start", "end"),
            max_length=max_length,
            options=options.model_copy(update=learnt).model_dump(exclude_defaults=True),
        )

    def check(self, gold: GoldAnswers) -> None:
        """Whether the question may be left without an answer, where it has none."""
        if not gold.texts and self._options.no_answer is False:
            raise DataError("no answer, but the model always gives one (the option no_answer is false)")

    def texts(self, one: Input) -> Texts:
        """The question and the context."""
        asked = _question(one)
        return asked.question, asked.context

    def encode(self, tokenizer: Tokenizer, inputs: Sequence[Input]) -> Encoded:
        """Overlapping windows over the context, each with the whole question.

        Raises:
            InputError: as the tokenizer does, and for a question that leaves no room.
        """
        stride = tokenizer.max_length // 3 if self._options.stride is None else self._options.stride
        windows = tokenizer.encode([self.texts(one) for one in inputs], _over_context(stride), aligned=True)
        return Encoded(inputs, windows)

    def targets(self, encoded: Encoded, golds: Sequence[GoldAnswers]) -> list[tuple[int, int]]:
        """First and last token of the first right answer; twice the first special token where it is not all there."""
        targets: list[tuple[int, int]] = []
        for span, gold in zip(encoded.spans(), golds, strict=True):
            start, end = (gold.starts[0], gold.starts[0] + len(gold.texts[0])) if gold.texts else (0, 0)
            targets += token_spans(encoded.windows[span], start, end)
        return targets

    def initial_bias(self, targets: Sequence[tuple[int, int]]) -> FloatArray | None:
        """None."""
        return None

    def collate_targets(self, targets: Sequence[tuple[int, int]], length: int) -> dict[str, npt.NDArray[Any]]:
        """`start_positions` and `end_positions`, int64, shape `[batch]`."""
        positions: IntArray = np.array(targets, dtype=np.int64)
        return {"start_positions": positions[:, 0], "end_positions": positions[:, 1]}

    def decode(self, outputs: Sequence[FloatArray], encoded: Encoded, parameters: Any) -> list[Answer]:
        """Answers by falling score: `{"answers": [{"answer", "start", "end", "score"}, …], "no_answer", "truncated"}`.

        `start` and `end` are characters of the context, and `answer` is what stands there. Scores are probabilities
        among the best spans, with no answer as one of them where that is possible; then `no_answer` holds its
        `score` and whether it was `chosen`, else None. Where it was, an empty answer stands first.
        """
        longest = parameters.max_answer_len or self._options.max_answer_length
        found = self._find(outputs, encoded, longest, _BEST)
        return [self._answer(*pair, parameters) for pair in zip(encoded.inputs, found, strict=True)]

    def summary(self, answer: Answer) -> str:
        """The best answer and its place: `'in 1999' at 17`."""
        best = answer["answers"][0]
        return _summary(best["answer"], best["start"])

    def gold_summary(self, gold: GoldAnswers) -> str:
        """The same of the first right answer."""
        return _summary(gold.texts[0], gold.starts[0]) if gold.texts else _summary("", 0)

    def same_answer(
        self, left: Sequence[FloatArray], right: Sequence[FloatArray], encoded: Encoded
    ) -> npt.NDArray[np.bool_]:
        """Whether the best answer has the same place, or there is none on both sides."""
        pairs = zip(self._places(left, encoded), self._places(right, encoded), strict=True)
        return np.array([first == second for first, second in pairs], dtype=np.bool_)

    def metrics(
        self, outputs: Sequence[FloatArray], encoded: Encoded, golds: Sequence[GoldAnswers]
    ) -> dict[str, float]:
        """F1 and exact match with the nearest right answer, by the rules of `scoring`.

        Where some questions have no answer, also F1 over those that have one, and how many of the others are left
        without one (SQuAD's HasAns_f1 and NoAns_f1).
        """
        exact, f1 = self._scores(self._places(outputs, encoded), encoded, golds).T
        values = {"f1": float(f1.mean()), "exact_match": float(exact.mean())}
        answerable = np.array([bool(gold.texts) for gold in golds])
        if answerable.all():
            return values
        if answerable.any():
            values["answerable_f1"] = float(f1[answerable].mean())
        return values | {"no_answer_accuracy": float(f1[~answerable].mean())}

    def statistics(
        self, outputs: Sequence[FloatArray], encoded: Encoded, golds: Sequence[GoldAnswers]
    ) -> npt.NDArray[np.float64]:
        """F1 of each question, shape `[inputs, 1]`."""
        return self._scores(self._places(outputs, encoded), encoded, golds)[:, 1:]

    def score(self, statistics: npt.NDArray[np.float64]) -> float:
        """Mean F1."""
        return float(statistics.mean())

    def confidences(
        self, outputs: Sequence[FloatArray], encoded: Encoded, golds: Sequence[Any]
    ) -> npt.NDArray[np.float64] | None:
        """None: scores are shared out among the n-best answers alone."""
        return None

    def tuned(self, outputs: Sequence[FloatArray], encoded: Encoded, golds: Sequence[GoldAnswers]) -> Task:
        """The task with the null threshold of the best F1, where no answer is possible and it has none yet."""
        if not self._options.no_answer or self._options.null_threshold is not None:
            return self
        found = self._find(outputs, encoded, self._options.max_answer_length, 1)
        f1 = self._scores([_place(one.spans) for one in found], encoded, golds)[:, 1]
        gains = [score if gold.texts else -1.0 for score, gold in zip(f1, golds, strict=True)]
        threshold = best_null_threshold([one.margin for one in found], gains)
        return QuestionAnswering(
            self.spec.model_copy(update={"options": self.spec.options | {"null_threshold": threshold}})
        )

    def concerns(self, outputs: Sequence[FloatArray], encoded: Encoded) -> list[str]:
        """Whether no question is answered, or all are although some may have no answer."""
        answered = [place is not None for place in self._places(outputs, encoded)]
        if not any(answered):
            return ["the model collapsed: it answers no question"]
        if self._options.no_answer and all(answered):
            return ["no question is ever left without an answer"]
        return []

    def _find(self, outputs: Sequence[FloatArray], encoded: Encoded, longest: int, count: int) -> list[Found]:
        return [
            find(outputs[span], encoded.windows[span], _question(one).context, longest, count)
            for one, span in zip(encoded.inputs, encoded.spans(), strict=True)
        ]

    def _refuses(self, found: Found, may_refuse: bool | None) -> bool:
        return not found.spans or (bool(may_refuse) and found.margin > self._threshold)

    def _places(self, outputs: Sequence[FloatArray], encoded: Encoded) -> list[tuple[int, int] | None]:
        found = self._find(outputs, encoded, self._options.max_answer_length, 1)
        return [None if self._refuses(one, self._options.no_answer) else _place(one.spans) for one in found]

    def _scores(
        self, places: Sequence[tuple[int, int] | None], encoded: Encoded, golds: Sequence[GoldAnswers]
    ) -> Scores:
        """Exact match and F1, shape `[inputs, 2]`."""
        rows = [
            score_answer(_question(one).context[slice(*place)] if place else "", gold.texts, self._options.scoring)
            for one, place, gold in zip(encoded.inputs, places, golds, strict=True)
        ]
        return np.array(rows, dtype=np.float64).reshape(-1, 2)

    def _answer(self, one: Input, found: Found, parameters: Any) -> Answer:
        asked = parameters.handle_impossible_answer
        may_refuse = self._options.no_answer if asked is None else asked
        refused = self._refuses(found, may_refuse)
        weighed = [span.score for span in found.spans] + ([found.null] if may_refuse or refused else [])
        scores = softmax(np.array(weighed)).tolist()
        entries = [
            _entry(span, score, _question(one).context) for span, score in zip(found.spans, scores, strict=False)
        ]
        if refused:
            entries.insert(0, {"answer": "", "start": 0, "end": 0, "score": scores[-1]})
        no_answer = {"score": scores[-1], "chosen": refused} if may_refuse or refused else None
        return {"answers": entries[: parameters.top_k], "no_answer": no_answer, "truncated": False}


def _question(one: Input) -> QuestionInput:
    assert isinstance(one, QuestionInput)
    return one


def _over_context(stride: int) -> Cut:
    slide = overlapping(stride, slide_second=True)

    def cut(first: int, second: int, room: int) -> list[tuple[Positions, Positions]]:
        try:
            return slide(first, second, room)
        except InputError as error:
            raise InputError(f"the question is too long: {error}") from None

    return cut


def _entry(span: Span, score: float, context: str) -> dict[str, Any]:
    return {"answer": context[span.start : span.end], "start": span.start, "end": span.end, "score": score}


def _summary(text: str, start: int) -> str:
    return f"{text!r} at {start}" if text else "no answer"


def _place(spans: Sequence[Span]) -> tuple[int, int] | None:
    return (spans[0].start, spans[0].end) if spans else None
