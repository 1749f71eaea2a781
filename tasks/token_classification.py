"""Token classification: named entities and other labelled spans of a text of any length."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field

from tasks.base import Answer, Encoded, Example, Fields, FloatArray, Frozen, IntArray, LossName, Task, TaskSpec
from tasks.encoding import Texts, Tokenizer, Window
from tasks.entities import (
    Entity,
    Found,
    entity_f1,
    find_entities,
    macro_entity_f1,
    overlapped,
    read_spans,
    read_words,
)
from tasks.errors import DataError, InputError, ParitybitError
from tasks.inputs import Input, TextInput, WordsInput
from tasks.reading import sorted_labels
from tasks.tags import OUTSIDE, Scheme, closest, parse_tag, prefixes, tag_labels
from tasks.units import Pieces, Units, merged, snapped, units_of, word_offsets
from tasks.windows import overlapping

__all__ = ["Entity", "TokenClassification", "TokenClassificationOptions", "TokenClassificationParameters"]

IGNORED = -100
"""The target that the models' loss leaves out."""

Golds = Sequence[tuple[Entity, ...]]


class TokenClassificationOptions(Frozen):
    """`[options]` of token classification."""

    pieces: Pieces = Field(
        default="first",
        description="Which word-pieces are labelled and decoded: the first of a word, or all. A tokenizer without"
        " words, or with words longer than an entity (byte-level ones on Chinese), needs all.",
    )
    scheme: Scheme = Field(default="BIO", description="Tags of a new model; a trained one has its own.")
    joiner: str = Field(default=" ", description='Stands between the words of a row; "" for Chinese characters.')
    stride: int | None = Field(
        default=None, ge=0, description="Tokens that neighbouring windows share; a quarter of max_length when missing."
    )


class TokenClassificationParameters(Frozen):
    """Per-request parameters; all but `min_score` are those of the Hugging Face inference form."""

    min_score: float | None = Field(default=None, ge=0, le=1, description="Leaves out entities of a lower score.")
    ignore_labels: tuple[str, ...] = Field(default=(), description="Types of entities to leave out.")
    aggregation_strategy: Literal["none", "simple", "first", "average", "max"] | None = Field(
        default=None,
        description="Accepted and without effect: pieces are always put together, as the model was trained to.",
    )


class TokenClassification:
    """Labelled spans of a text. Model outputs are logits of shape `[tokens, tags]`; a gold is a tuple of `Entity`."""

    name: ClassVar[str] = "token_classification"
    auto_model: ClassVar[str] = "AutoModelForTokenClassification"
    problem_type: ClassVar[str | None] = None
    loss: ClassVar[LossName] = "cross_entropy"
    primary_metric: ClassVar[str] = "entity_f1"
    min_agreement: ClassVar[float] = 0.95
    takes_labels: ClassVar[bool] = True
    input_types: ClassVar[tuple[type, ...]] = (TextInput, WordsInput)
    fields: ClassVar[tuple[Fields, ...]] = (Fields(("words", "tags")), Fields(("text", "spans")))
    options: ClassVar[type[BaseModel]] = TokenClassificationOptions
    parameters: ClassVar[type[BaseModel]] = TokenClassificationParameters

    def __init__(self, spec: TaskSpec) -> None:
        """Reads the tags.

        Raises:
            ParitybitError: if no label names an entity or one stands twice.
        """
        if len(set(spec.labels)) != len(spec.labels):
            raise ParitybitError(f"{self.name}: a label stands twice among {list(spec.labels)}")
        self.spec = spec
        self._options = TokenClassificationOptions.model_validate(spec.options)
        self._tags = tuple(parse_tag(label) for label in spec.labels)
        # of labels that mean the same, the first one is trained
        self._ids = {tag: index for index, tag in reversed(list(enumerate(self._tags)))}
        self._kinds = tuple(dict.fromkeys(tag.kind for tag in self._tags if tag != OUTSIDE))
        if not self._kinds:
            raise ParitybitError(f"{self.name} needs a label beside O, got {list(spec.labels)}")

    @classmethod
    def read_row(cls, values: Mapping[str, Any], options: Any) -> Example:
        """Words with their tags, or a text with its spans."""
        return read_words(values, options.joiner) if "words" in values else read_spans(values)

    @classmethod
    def names(cls, gold: tuple[Entity, ...]) -> tuple[str, ...]:
        """The types of the entities, each once."""
        return tuple(dict.fromkeys(entity.label for entity in gold))

    @classmethod
    def group(cls, one: Input) -> Hashable | None:
        """Every row stands for itself."""
        return None

    @classmethod
    def make_spec(cls, golds: Golds, *, labels: tuple[str, ...] | None, max_length: int, options: Any) -> TaskSpec:
        """Tags of the types of entities that the rows hold, sorted, unless the types are given as `labels`."""
        kinds = labels or sorted_labels(entity.label for gold in golds for entity in gold)
        if not kinds:
            raise DataError("no entity in any row")
        return TaskSpec(
            task=cls.name,
            labels=tag_labels(kinds, options.scheme),
            max_length=max_length,
            options=options.model_dump(exclude_defaults=True),
        )

    def check(self, gold: tuple[Entity, ...]) -> None:
        """Whether all types are known."""
        for entity in gold:
            if entity.label not in self._kinds:
                raise DataError(f"unknown label {entity.label!r}")

    def texts(self, one: Input) -> Texts:
        """The text, or the words joined to one."""
        if isinstance(one, WordsInput):
            return self._options.joiner.join(one.words), None
        assert isinstance(one, TextInput)
        return one.text, None

    def encode(self, tokenizer: Tokenizer, inputs: Sequence[Input]) -> Encoded:
        """Overlapping windows over the whole text.

        Raises:
            InputError: as the tokenizer does, and for a second text.
        """
        for place, one in enumerate(inputs):
            if isinstance(one, TextInput) and one.text_pair is not None:
                raise InputError(f"input {place}: text_pair: {self.name} takes one text")
        stride = tokenizer.max_length // 4 if self._options.stride is None else self._options.stride
        return Encoded(inputs, tokenizer.encode([self.texts(one) for one in inputs], overlapping(stride), aligned=True))

    def targets(self, encoded: Encoded, golds: Golds) -> list[IntArray]:
        """The tag of each token, int64, shape `[tokens]`; -100 for a token that is not judged.

        Of words that the caller gave, the first pieces are judged, as in Devlin et al. 2019, 5.3. A token has the same
        tag in all of its windows, so a word whose first piece stands in another window is not judged by its other
        pieces.
        """
        targets: list[IntArray] = []
        for one, span, gold in zip(encoded.inputs, encoded.spans(), golds, strict=True):
            windows = encoded.windows[span]
            ids = np.full(1 + max(int(window.aligned.positions[-1]) for window in windows), IGNORED)
            units = units_of(windows, self.texts(one)[0], self._options.pieces)
            if self._options.pieces == "first":
                # what stands inside a word (`#obama`, `bit.ly/ann`) would teach that names are none
                units = self._as_given(units, one)
            ids[units.tokens] = self._tag_ids(overlapped(units, gold), gold)
            targets += [ids[window.aligned.positions] for window in windows]
        return targets

    def initial_bias(self, targets: Sequence[IntArray]) -> FloatArray:
        """How often each tag is given, as logarithm of its share; most tokens are outside of all entities."""
        ids = np.concatenate(targets)
        given = np.bincount(ids[ids != IGNORED], minlength=len(self.spec.labels)) + 1
        log_shares: FloatArray = np.log(given / given.sum()).astype(np.float32)
        return log_shares

    def collate_targets(self, targets: Sequence[IntArray], length: int) -> dict[str, npt.NDArray[Any]]:
        """`labels`, int64, shape `[batch, length]`, -100 for padding."""
        batch = np.full((len(targets), length), IGNORED, dtype=np.int64)
        for row, target in zip(batch, targets, strict=True):
            row[: len(target)] = target
        return {"labels": batch}

    def decode(self, outputs: Sequence[FloatArray], encoded: Encoded, parameters: Any) -> list[Answer]:
        """Entities in order: `{"entities": [{"label", "text", "start", "end", "score"}, …], "truncated": False}`.

        `start` and `end` are characters of the text (of the words joined, which are counted too then, as `start_word`
        and `end_word`), and `text` is what stands there. The score is the mean probability of the entity's tags.
        """
        answers = []
        for one, found in zip(encoded.inputs, self._find(outputs, encoded), strict=True):
            text = self.texts(one)[0]
            kept = [each for each in found if _asked_for(each, parameters)]
            answers.append({"entities": [_entry(each, text, one) for each in kept], "truncated": False})
        return answers

    def summary(self, answer: Answer) -> str:
        """The entities by their places: `person[0:3], location[10:15]`."""
        return _summary([Entity(one["start"], one["end"], one["label"]) for one in answer["entities"]])

    def gold_summary(self, gold: tuple[Entity, ...]) -> str:
        """The same of the right entities."""
        return _summary(gold)

    def same_answer(
        self, left: Sequence[FloatArray], right: Sequence[FloatArray], encoded: Encoded
    ) -> npt.NDArray[np.bool_]:
        """Whether all entities are the same, whatever their scores."""
        pairs = zip(self._predict(left, encoded), self._predict(right, encoded), strict=True)
        return np.array([first == second for first, second in pairs], dtype=np.bool_)

    def metrics(self, outputs: Sequence[FloatArray], encoded: Encoded, golds: Golds) -> dict[str, float]:
        """F1, precision and recall of whole entities, as CoNLL counts: right are only those of equal span and type.

        `macro_entity_f1` is the mean over the types that occur in the right answers.
        """
        predicted = self._predict(outputs, encoded)
        correct, found, gold = _counts(predicted, golds).sum(axis=0)
        return {
            "entity_f1": entity_f1(correct, found, gold),
            "entity_precision": float(correct / found) if found else 0.0,
            "entity_recall": float(correct / gold) if gold else 0.0,
            "macro_entity_f1": macro_entity_f1(predicted, golds),
        }

    def statistics(self, outputs: Sequence[FloatArray], encoded: Encoded, golds: Golds) -> npt.NDArray[np.float64]:
        """How many entities are right, were found, and should have been; shape `[inputs, 3]`."""
        return _counts(self._predict(outputs, encoded), golds)

    def score(self, statistics: npt.NDArray[np.float64]) -> float:
        """F1 over all entities; 0.0 where there are none."""
        return entity_f1(*statistics.sum(axis=0))

    def confidences(
        self, outputs: Sequence[FloatArray], encoded: Encoded, golds: Sequence[Any]
    ) -> npt.NDArray[np.float64] | None:
        """None: the score of an entity is not the probability that it is right as a whole."""
        return None

    def tuned(self, outputs: Sequence[FloatArray], encoded: Encoded, golds: Golds) -> Task:
        """Itself: there is no threshold."""
        return self

    def concerns(self, outputs: Sequence[FloatArray], encoded: Encoded) -> list[str]:
        """Whether no entity is found at all, or none of some type."""
        seen = {entity.label for found in self._predict(outputs, encoded) for entity in found}
        never = [kind for kind in self._kinds if kind not in seen]
        if not seen:
            return ["the model collapsed: it finds no entity at all"]
        if never:
            listed = ", ".join(never[:5]) + (", …" if len(never) > 5 else "")
            return [f"{len(never)} of {len(self._kinds)} types of entities are never predicted: {listed}"]
        return []

    def _tag_ids(self, owners: IntArray, gold: tuple[Entity, ...]) -> IntArray:
        ids = np.full(len(owners), self._ids.get(OUTSIDE, IGNORED))
        for place, entity in enumerate(gold):
            own = np.flatnonzero(owners == place)
            ids[own] = [closest(self._ids, prefix, entity.label) for prefix in prefixes(len(own))]
        return ids

    def _as_given(self, units: Units, one: Input) -> Units:
        """The caller's words instead of the pre-tokenizer's, where the caller gave words."""
        return snapped(units, word_offsets(one.words, self._options.joiner)) if isinstance(one, WordsInput) else units

    def _predict(self, outputs: Sequence[FloatArray], encoded: Encoded) -> list[tuple[Entity, ...]]:
        return [tuple(each.entity for each in found) for found in self._find(outputs, encoded)]

    def _find(self, outputs: Sequence[FloatArray], encoded: Encoded) -> list[list[Found]]:
        return [
            self._find_in(outputs[span], encoded.windows[span], one)
            for one, span in zip(encoded.inputs, encoded.spans(), strict=True)
        ]

    def _find_in(self, outputs: Sequence[FloatArray], windows: Sequence[Window], one: Input) -> list[Found]:
        text = self.texts(one)[0]
        units = self._as_given(units_of(windows, text, self._options.pieces), one)
        return find_entities(merged(outputs, windows)[units.tokens], self._tags, units, text)


def _asked_for(found: Found, parameters: Any) -> bool:
    low = parameters.min_score is not None and found.score < parameters.min_score
    return not low and found.entity.label not in parameters.ignore_labels


def _entry(found: Found, text: str, one: Input) -> dict[str, Any]:
    entity = found.entity
    entry = {
        "label": entity.label,
        "text": text[entity.start : entity.end],
        "start": entity.start,
        "end": entity.end,
        "score": found.score,
    }
    if isinstance(one, WordsInput):
        entry["start_word"], entry["end_word"] = found.words
    return entry


def _summary(entities: Sequence[Entity]) -> str:
    return ", ".join(f"{one.label}[{one.start}:{one.end}]" for one in entities) or "no entity"


def _counts(predicted: Golds, golds: Golds) -> npt.NDArray[np.float64]:
    rows = [({*found} & {*gold}, found, gold) for found, gold in zip(predicted, golds, strict=True)]
    return np.array([[len(one) for one in row] for row in rows], dtype=np.float64).reshape(-1, 3)
