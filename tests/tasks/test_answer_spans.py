import unicodedata
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from tasks.answer_spans import best_null_threshold, find
from tasks.base import Encoded, FloatArray, TaskSpec
from tasks.encoding import Tokenizer
from tasks.gold_answers import GoldAnswers
from tasks.inputs import QuestionInput
from tasks.question_answering import QuestionAnswering, QuestionAnsweringParameters

QUESTION = "Who is it?"
CORPUS = [
    QUESTION,
    "Anna lost her old café card in 北京 , cost 1,000 € !",
    "王小明在北京丢了卡",
    "שלום עולם 😀👩‍💻",
] * 3
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
PIECES = (
    "Anna",
    "lost",
    "cafe\u0301",
    "é",
    "\u0301",
    "北京",
    "王",
    "שָׁלוֹם",
    "عمر\u200f",
    "각",
    "👩\u200d💻",
    "🇩🇪",
    "❤\ufe0f",
)
OTHERS = (
    "ＦＵＬＬ",
    "ﬁ",
    "İ",
    "ß",
    "\u200b",
    "\ufeff",
    "\u00ad",
    "\t",
    "\n ",
    "\u00a0",
    " ",
    "   ",
    ".",
    "[SEP]",
    "\x00",
    "\ufffd",
)

anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
contexts = st.lists(st.sampled_from(PIECES + OTHERS) | anything, min_size=1, max_size=25).map("".join)
kinds = st.sampled_from(["word-pieces", "bytes"])
Spans = dict[tuple[int, int], float]


@cache
def tokenizer_of(kind: str, max_length: int) -> Tokenizer:
    trainer: Any
    if kind == "word-pieces":
        raw = RawTokenizer(models.WordPiece(unk_token="[UNK]"))
        raw.normalizer = normalizers.BertNormalizer(lowercase=True)
        raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=SPECIAL, show_progress=False)
    else:
        raw = RawTokenizer(models.BPE())
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        )
    raw.train_from_iterator(CORPUS, trainer)
    pair = "[CLS] $A [SEP] $B:1 [SEP]:1"
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair=pair, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    with TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        raw.save(str(path))
        return Tokenizer(path, max_length)


def make_task(stride: int = 6) -> QuestionAnswering:
    options = {"stride": stride, "no_answer": False}
    return QuestionAnswering(
        TaskSpec(task="question_answering", labels=("start", "end"), max_length=32, options=options)
    )


def windows_of(kind: str, context: str, max_length: int = 32, stride: int = 6) -> Encoded:
    return make_task(stride).encode(tokenizer_of(kind, max_length), [QuestionInput(QUESTION, context)])


def random_logits(encoded: Encoded, seed: int) -> list[FloatArray]:
    generator = np.random.default_rng(seed)
    return [generator.normal(size=(len(window), 2)).astype(np.float32) for window in encoded.windows]


def visible(context: str, begin: int, end: int) -> tuple[int, int]:
    while begin < end and context[begin].isspace():
        begin += 1
    while begin < end and context[end - 1].isspace():
        end -= 1
    while begin < end < len(context) and unicodedata.category(context[end]).startswith("M"):
        end += 1
    return begin, end


def all_spans(outputs: list[FloatArray], encoded: Encoded, context: str, longest: int) -> Spans:
    """Each possible answer with its best score, by trying every start with every end."""
    scores: Spans = {}
    for output, window in zip(outputs, encoded.windows, strict=True):
        offsets = window.aligned.offsets.tolist()
        tokens = [
            token
            for token, source in enumerate(window.aligned.source)
            if source == 1 and context[slice(*offsets[token])].strip()
        ]
        for first in tokens:
            for last in tokens:
                if first <= last < first + longest:
                    place = visible(context, offsets[first][0], offsets[last][1])
                    score = float(output[first, 0]) + float(output[last, 1])
                    scores[place] = max(score, scores.get(place, score))
    return scores


@settings(max_examples=150, deadline=None)
@given(kinds, contexts, st.integers(0, 9), st.integers(1, 8))
def test_every_answer_is_what_stands_at_its_place_and_short_enough(
    kind: str, context: str, seed: int, longest: int
) -> None:
    encoded = windows_of(kind, context)
    outputs = random_logits(encoded, seed)
    asked = QuestionAnsweringParameters(top_k=20, max_answer_len=longest)
    (answer,) = make_task().decode(outputs, encoded, asked)
    possible = all_spans(outputs, encoded, context, longest)
    if not possible:
        assert answer["no_answer"]["chosen"]
        return
    assert answer["answers"]
    for one in answer["answers"]:
        assert one["answer"] == context[one["start"] : one["end"]]
        assert one["answer"] and one["answer"] == one["answer"].strip()
        assert (one["start"], one["end"]) in possible
    scores = [one["score"] for one in answer["answers"]]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) <= 1 + 1e-9


@settings(max_examples=150, deadline=None)
@given(kinds, contexts, st.integers(0, 9), st.integers(1, 8))
def test_the_best_span_is_the_best_of_all_starts_and_ends_of_all_windows(
    kind: str, context: str, seed: int, longest: int
) -> None:
    encoded = windows_of(kind, context)
    outputs = random_logits(encoded, seed)
    possible = all_spans(outputs, encoded, context, longest)
    for count in (1, 20):
        found = find(outputs, encoded.windows, context, longest, count)
        assert all(span.score <= possible[span.start, span.end] for span in found.spans)
        assert max((span.score for span in found.spans), default=None) == max(possible.values(), default=None)
        assert found.null == min(float(output[0, 0]) + float(output[0, 1]) for output in outputs)


@pytest.mark.parametrize("seed", range(5))
def test_the_n_best_are_the_best_of_all_where_no_two_tokens_share_a_character(seed: int) -> None:
    context = " ".join(f"word{number}" for number in range(30))
    encoded = windows_of("word-pieces", context, max_length=20)
    assert len(encoded.windows) > 3
    outputs = random_logits(encoded, seed)
    possible = all_spans(outputs, encoded, context, 7)
    found = find(outputs, encoded.windows, context, 7, 20)
    best = sorted(possible, key=lambda place: -possible[place])[:20]
    assert [(span.start, span.end) for span in found.spans] == best


def test_of_equal_spans_the_first_and_shortest_is_taken() -> None:
    encoded = windows_of("word-pieces", "Anna lost her old card")
    outputs = [np.zeros((len(window), 2), dtype=np.float32) for window in encoded.windows]
    places = [(span.start, span.end) for span in find(outputs, encoded.windows, "Anna lost her old card", 30, 3).spans]
    assert places == sorted(places) and places[0][0] == 0


def one_hot(encoded: Encoded, targets: list[tuple[int, int]]) -> list[FloatArray]:
    outputs = [np.zeros((len(window), 2), dtype=np.float32) for window in encoded.windows]
    for output, (start, end) in zip(outputs, targets, strict=True):
        output[start, 0] += 10
        output[end, 1] += 10
    return outputs


def round_trip(encoded: Encoded, context: str, begin: int, end: int) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """The targets of an answer, and the place that a model decodes to that gives exactly them."""
    task = make_task()
    targets = task.targets(encoded, [GoldAnswers((context[begin:end],), (begin,))])
    (answer,) = task.decode(one_hot(encoded, targets), encoded, QuestionAnsweringParameters())
    best = answer["answers"][0]
    return targets, (best["start"], best["end"])


@settings(max_examples=200, deadline=None)
@given(kinds, contexts, st.data())
def test_an_answer_on_token_boundaries_comes_back_from_its_targets(
    kind: str, context: str, data: st.DataObject
) -> None:
    whole = windows_of(kind, context, max_length=500).windows[0].aligned
    tokens = np.flatnonzero(whole.source == 1)
    assume(len(tokens))
    first = data.draw(st.integers(0, len(tokens) - 1))
    last = data.draw(st.integers(first, min(first + 5, len(tokens) - 1)))
    begin, end = visible(context, int(whole.offsets[tokens[first], 0]), int(whole.offsets[tokens[last], 1]))
    assume(begin < end)
    inside = [token for token in tokens if whole.offsets[token, 0] < end and whole.offsets[token, 1] > begin]
    # not so where a mark, or bytes of a character, belong to a token that goes on behind it
    assume(visible(context, int(whole.offsets[inside[0], 0]), int(whole.offsets[inside[-1], 1])) == (begin, end))
    encoded = windows_of(kind, context)
    targets, place = round_trip(encoded, context, begin, end)
    # windows share 6 tokens, so one of 7 always stands whole in one of them
    assert any(target != (0, 0) for target in targets) or len(inside) > 7
    if any(target != (0, 0) for target in targets):
        assert place == (begin, end)


@pytest.mark.parametrize("kind", ["word-pieces", "bytes"])
def test_answers_at_the_edges_of_windows_and_in_several_come_back(kind: str) -> None:
    words = ["Anna", "lost", "card", "in"] * 10
    context = " ".join(words)
    ends = np.cumsum([len(word) + 1 for word in words]) - 1
    begins = ends - [len(word) for word in words]
    encoded = windows_of(kind, context, max_length=20)
    assert len(encoded.windows) > 3
    edges = [window.aligned.positions[window.aligned.source == 1][[0, -1]].tolist() for window in encoded.windows]
    assert all(right[0] <= left[1] for left, right in pairwise(edges))
    in_several = 0
    for first in range(len(words)):
        for last in range(first, min(first + 2, len(words))):
            targets, place = round_trip(encoded, context, int(begins[first]), int(ends[last]))
            in_several += sum(target != (0, 0) for target in targets) > 1
            assert place == (begins[first], ends[last])
    assert in_several


def reached(margins: list[float], gains: list[float], threshold: float) -> float:
    return sum(gain for margin, gain in zip(margins, gains, strict=True) if margin <= threshold)


small = st.integers(-6, 6).map(lambda number: number / 2)
rows = st.lists(st.tuples(small | st.just(float("inf")), st.sampled_from([-1.0, 0.0, 0.4, 1.0])), max_size=12)


@settings(max_examples=200, deadline=None)
@given(rows)
def test_no_threshold_is_better_than_the_chosen_one_and_no_row_stands_on_it(rows: list[tuple[float, float]]) -> None:
    margins, gains = [margin for margin, _ in rows], [gain for _, gain in rows]
    threshold = best_null_threshold(margins, gains)
    others = [-99.0, *(margin for margin in margins if np.isfinite(margin))]
    best = max(reached(margins, gains, other) for other in others)
    assert reached(margins, gains, threshold) == pytest.approx(best)
    assert threshold not in margins
