from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.base import Encoded, FloatArray, TaskSpec
from tasks.encoding import Tokenizer
from tasks.errors import DataError, InputError, ParitybitError
from tasks.gold_answers import GoldAnswers
from tasks.inputs import QuestionInput
from tasks.question_answering import QuestionAnswering, QuestionAnsweringOptions, QuestionAnsweringParameters

CARD = QuestionInput("where", "my  card is lost ?")
NO_GOLD = GoldAnswers((), ())


def make_task(**options: Any) -> QuestionAnswering:
    return QuestionAnswering(
        TaskSpec(task="question_answering", labels=("start", "end"), max_length=32, options=options)
    )


def encoded_by(task: QuestionAnswering, tokenizer_file: Path, *inputs: QuestionInput, max_length: int = 32) -> Encoded:
    return task.encode(Tokenizer(tokenizer_file, max_length), inputs)


def logits(encoded: Encoded, *windows: Mapping[int, tuple[float, float]]) -> list[FloatArray]:
    """Start and end logits by token, for each window; -5 elsewhere."""
    outputs = []
    for window, values in zip(encoded.windows, windows, strict=True):
        output = np.full((len(window), 2), -5, dtype=np.float32)
        for token, pair in values.items():
            output[token] = pair
        outputs.append(output)
    return outputs


def decoded(
    task: QuestionAnswering, outputs: Sequence[FloatArray], encoded: Encoded, **parameters: Any
) -> list[dict[str, Any]]:
    return task.decode(outputs, encoded, QuestionAnsweringParameters(**parameters))


# tokens of CARD: [CLS] where [SEP] my card is lost ? [SEP]


def test_the_answer_is_what_stands_between_the_best_start_and_end(tokenizer_file: Path) -> None:
    task = make_task(max_answer_length=2)
    encoded = encoded_by(task, tokenizer_file, CARD)
    outputs = logits(encoded, {3: (2, -5), 4: (-5, 3)})
    (answer,) = decoded(task, outputs, encoded)
    # besides the best span (5) there are 8 more: 4 with one good end (-2 or -3), 4 with none (-10)
    assert answer["answers"][0].pop("score") == pytest.approx(
        np.exp(5) / (np.exp([5, -3, -2]).sum() + 6 * np.exp(-10)), rel=1e-6
    )
    assert answer == {"answers": [{"answer": "my  card", "start": 0, "end": 8}], "no_answer": None, "truncated": False}
    assert task.summary(answer) == task.gold_summary(GoldAnswers(("my  card", "card"), (0, 4))) == "'my  card' at 0"


def test_neither_the_question_nor_a_special_token_is_an_answer(tokenizer_file: Path) -> None:
    task = make_task()
    encoded = encoded_by(task, tokenizer_file, CARD)
    outputs = logits(encoded, {0: (9, 9), 1: (9, 9), 2: (9, 9), 8: (9, 9), 5: (1, 1)})
    assert decoded(task, outputs, encoded)[0]["answers"][0]["answer"] == "is"


def test_an_end_before_its_start_and_a_long_answer_do_not_count(tokenizer_file: Path) -> None:
    task = make_task(max_answer_length=3)
    encoded = encoded_by(task, tokenizer_file, CARD)
    outputs = logits(encoded, {4: (4, 0.5), 3: (0, 4), 7: (-5, 3.5)})
    assert decoded(task, outputs, encoded)[0]["answers"][0]["answer"] == "card"
    assert decoded(task, outputs, encoded, max_answer_len=4)[0]["answers"][0]["answer"] == "card is lost ?"
    assert decoded(task, outputs, encoded, max_answer_len=999)[0]["answers"][0]["answer"] == "card is lost ?"


def test_several_answers_fall_by_score_and_are_distinct(tokenizer_file: Path) -> None:
    task = make_task()
    encoded = encoded_by(task, tokenizer_file, CARD)
    outputs = logits(encoded, {3: (2, 1), 4: (3, 2.5), 6: (0, 0)})
    (answer,) = decoded(task, outputs, encoded, top_k=3)
    assert [one["answer"] for one in answer["answers"]] == ["card", "my  card", "my"]
    scores = [one["score"] for one in answer["answers"]]
    assert scores[0] / scores[1] == pytest.approx(np.exp(1), rel=1e-6)
    assert len(decoded(task, outputs, encoded, top_k=20)[0]["answers"]) == 15


def test_a_question_is_left_without_an_answer_where_that_beats_the_best_one_by_the_threshold(
    tokenizer_file: Path,
) -> None:
    # null 3 + 3, best span 2 + 2: margin 2
    scores = {0: (3, 3), 4: (2, 2)}
    for threshold, refused in ((1.9, True), (2.1, False)):
        task = make_task(no_answer=True, null_threshold=threshold, max_answer_length=1)
        encoded = encoded_by(task, tokenizer_file, CARD)
        (answer,) = decoded(task, logits(encoded, scores), encoded, top_k=2)
        null = np.exp(6) / (np.exp(6) + np.exp(4) + 4 * np.exp(-10))
        assert answer["no_answer"] == {"score": pytest.approx(null, rel=1e-6), "chosen": refused}
        assert [one["answer"] for one in answer["answers"]] == (["", "card"] if refused else ["card", "my"])
        assert (task.summary(answer) == task.gold_summary(NO_GOLD) == "no answer") == refused


def test_a_caller_may_ask_for_an_answer_or_allow_none(tokenizer_file: Path) -> None:
    for trained in (True, False, None):
        task = make_task(no_answer=trained)
        encoded = encoded_by(task, tokenizer_file, CARD)
        outputs = logits(encoded, {0: (3, 3), 4: (2, 2)})
        must, may, plain = (
            decoded(task, outputs, encoded, handle_impossible_answer=asked)[0] for asked in (False, True, None)
        )
        assert must["answers"][0]["answer"] == "card" and must["no_answer"] is None
        assert may["answers"][0] == {"answer": "", "start": 0, "end": 0, "score": may["no_answer"]["score"]}
        assert plain == (may if trained else must)


def test_a_span_of_several_windows_counts_once_and_every_window_must_deny_the_answer(tokenizer_file: Path) -> None:
    # 4 special tokens and question, 5 of the context, 2 of them shared: "my card is lost ?" and "lost ? how old must"
    task = make_task(no_answer=True, stride=2)
    encoded = encoded_by(task, tokenizer_file, QuestionInput("where", "my card is lost ? how old must"), max_length=9)
    first, second = encoded.windows
    assert len(first) == len(second) == 9
    outputs = logits(encoded, {0: (4, 4), 6: (2, 2), 7: (1, 0)}, {0: (1, 1), 3: (2.5, 2), 5: (0, 0)})
    (answer,) = decoded(task, outputs, encoded, top_k=20)
    assert answer["no_answer"]["chosen"] is False
    assert answer["answers"][0]["answer"] == "lost"
    places = [(one["start"], one["end"]) for one in answer["answers"]]
    assert len(places) == len(set(places))
    # "lost" 4.5 from the second window against the null score 2 of the second
    assert answer["answers"][0]["score"] / answer["no_answer"]["score"] == pytest.approx(np.exp(2.5), rel=1e-6)


def test_a_context_without_visible_characters_has_no_answer(tokenizer_file: Path) -> None:
    for no_answer in (True, False):
        task = make_task(no_answer=no_answer)
        encoded = encoded_by(task, tokenizer_file, QuestionInput("where", "\u200b\u200d\u200b"))
        (answer,) = decoded(task, logits(encoded, {}), encoded, top_k=5)
        assert answer["answers"] == [{"answer": "", "start": 0, "end": 0, "score": 1.0}]
        assert answer["no_answer"] == {"score": 1.0, "chosen": True}
        assert task.metrics(logits(encoded, {}), encoded, [NO_GOLD])["f1"] == 1


@pytest.mark.parametrize(
    ("context", "answer"),
    [
        ("old cafe\u0301 lost", "cafe\u0301"),
        ("old  ＣＡＦＥ\u3000lost", "ＣＡＦＥ"),
        ("old 😀 lost", "😀"),
        ("卡卡 卡", "卡"),
        ("שלום עולם כן", "עולם"),
        ("old\tcard\nlost", "card"),
    ],
)
def test_answers_index_the_callers_own_characters(tokenizer_file: Path, context: str, answer: str) -> None:
    task = make_task()
    encoded = encoded_by(task, tokenizer_file, QuestionInput("where", context))
    (found,) = decoded(task, logits(encoded, {4: (5, 5)}), encoded)
    best = found["answers"][0]
    assert best["answer"] == answer == context[best["start"] : best["end"]]


def test_decoding_nothing_gives_nothing(tokenizer_file: Path) -> None:
    task = make_task()
    assert decoded(task, [], encoded_by(task, tokenizer_file)) == []


def test_targets_are_the_tokens_that_hold_the_first_answer(tokenizer_file: Path) -> None:
    task = make_task()
    inputs = [CARD, QuestionInput("where is", "(card)s lost"), CARD, QuestionInput("where", "card \u200b")]
    encoded = encoded_by(task, tokenizer_file, *inputs)
    golds = [
        GoldAnswers(("card is", "my"), (4, 0)),
        GoldAnswers(("ard",), (2,)),
        NO_GOLD,
        GoldAnswers(("\u200b",), (5,)),
    ]
    targets = task.targets(encoded, golds)
    assert targets == [(4, 5), (5, 5), (0, 0), (0, 0)]
    batch = task.collate_targets(targets, 12)
    assert {name: array.tolist() for name, array in batch.items()} == {
        "start_positions": [4, 5, 0, 0],
        "end_positions": [5, 5, 0, 0],
    }
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int64)}


def test_a_window_that_holds_a_part_of_the_answer_only_has_none(tokenizer_file: Path) -> None:
    task = make_task(stride=1)
    # "my card is lost ?", "? how old must i"
    encoded = encoded_by(task, tokenizer_file, QuestionInput("where", "my card is lost ? how old must i"), max_length=9)
    for text, wanted in (("lost ?", [(6, 7), (0, 0)]), ("?", [(7, 7), (3, 3)]), ("? how", [(0, 0), (3, 4)])):
        start = encoded.inputs[0].context.index(text)  # type: ignore[union-attr]
        assert task.targets(encoded, [GoldAnswers((text,), (start,))]) == wanted
    assert task.targets(encoded, [GoldAnswers(("lost ? how",), (11,))]) == [(0, 0), (0, 0)]


def test_quality_is_the_best_match_over_the_right_answers(tokenizer_file: Path) -> None:
    task = make_task(no_answer=True)
    encoded = encoded_by(task, tokenizer_file, CARD, CARD, CARD, CARD)
    # "card is", nothing, "card", nothing
    outputs = logits(encoded, {4: (5, -5), 5: (-5, 5)}, {0: (5, 5)}, {4: (5, 5)}, {0: (5, 5)})
    golds = [GoldAnswers(("lost", "card is lost"), (12, 4)), NO_GOLD, NO_GOLD, GoldAnswers(("my",), (0,))]
    # two of three words: F1 0.8
    assert task.metrics(outputs, encoded, golds) == pytest.approx(
        {"f1": 1.8 / 4, "exact_match": 1 / 4, "answerable_f1": 0.8 / 2, "no_answer_accuracy": 1 / 2}
    )
    statistics = task.statistics(outputs, encoded, golds)
    assert statistics.tolist() == [[pytest.approx(0.8)], [1], [0], [0]]
    assert task.score(statistics) == pytest.approx(1.8 / 4)
    assert set(task.metrics(outputs[:1], encoded_by(task, tokenizer_file, CARD), golds[:1])) == {"f1", "exact_match"}


def test_chinese_answers_are_scored_by_characters_where_the_option_says_so(tokenizer_file: Path) -> None:
    one = QuestionInput("where", "卡片丢了")
    for scoring, f1 in (("words", 0), ("characters", 2 * 2 / 5)):
        task = make_task(scoring=scoring)
        encoded = encoded_by(task, tokenizer_file, one)
        outputs = logits(encoded, {3: (5, -5), 4: (-5, 5)})
        assert task.metrics(outputs, encoded, [GoldAnswers(("卡片丢",), (0,))])["f1"] == pytest.approx(f1)


def test_the_tuned_threshold_gives_the_best_f1_and_is_kept(tokenizer_file: Path) -> None:
    task = make_task(no_answer=True)
    encoded = encoded_by(task, tokenizer_file, CARD, CARD, CARD)
    # margins 2, 4 and 7 for "card"
    outputs = logits(encoded, *({0: (null, 0), 4: (0, 0)} for null in (2, 4, 7)))
    card = GoldAnswers(("card",), (4,))
    tuned = task.tuned(outputs, encoded, [card, card, NO_GOLD])
    assert tuned.spec.options == {"no_answer": True, "null_threshold": 5.5}
    assert task.metrics(outputs, encoded, [card, card, NO_GOLD])["f1"] == pytest.approx(1 / 3)
    assert tuned.metrics(outputs, encoded, [card, card, NO_GOLD])["f1"] == 1
    assert tuned.tuned(outputs, encoded, [NO_GOLD] * 3) is tuned
    for fixed in (make_task(no_answer=False), make_task(), make_task(no_answer=True, null_threshold=1.0)):
        assert fixed.tuned(outputs, encoded, [card, card, NO_GOLD]) is fixed


def test_models_agree_where_the_best_answer_stands_at_the_same_place(tokenizer_file: Path) -> None:
    task = make_task(no_answer=True)
    encoded = encoded_by(task, tokenizer_file, CARD, CARD, CARD, QuestionInput("where", "lost my lost"))
    left = logits(encoded, {4: (3, 3)}, {4: (3, 3)}, {0: (3, 3)}, {3: (3, 3)})
    right = logits(encoded, {4: (1, 1), 0: (0, 0)}, {0: (4, 4), 4: (3, 3)}, {0: (9, 9), 4: (8, 8)}, {5: (3, 3)})
    assert task.same_answer(left, right, encoded).tolist() == [True, False, True, False]


def test_a_model_that_never_answers_or_always_does_is_a_concern(tokenizer_file: Path) -> None:
    task = make_task(no_answer=True)
    encoded = encoded_by(task, tokenizer_file, CARD, CARD)
    refuses, answers = {0: (5, 5)}, {4: (5, 5)}
    assert task.concerns(logits(encoded, refuses, refuses), encoded) == ["the model collapsed: it answers no question"]
    assert task.concerns(logits(encoded, answers, answers), encoded) == ["no question is ever left without an answer"]
    assert task.concerns(logits(encoded, refuses, answers), encoded) == []
    assert make_task(no_answer=False).concerns(logits(encoded, answers, answers), encoded) == []


def test_a_question_that_fills_the_window_is_named(tokenizer_file: Path) -> None:
    long = QuestionInput("where is my card " * 20, "my card")
    with pytest.raises(InputError, match=r"^input 1: the question is too long: 80 tokens .* at most 21$"):
        encoded_by(make_task(), tokenizer_file, CARD, long)


def test_a_third_of_the_window_is_shared_unless_the_options_say_otherwise(tokenizer_file: Path) -> None:
    one = QuestionInput("where", "card " * 100)
    for options, shared in (({}, 10), ({"stride": 3}, 3), ({"stride": 0}, 0)):
        first, second, *_ = encoded_by(make_task(**options), tokenizer_file, one).windows
        assert len(np.intersect1d(first.aligned.positions[3:-1], second.aligned.positions[3:-1])) == shared
        assert not first.truncated


ROW = {"question": "where", "context": "my card is lost", "answers": {"text": ["card", "my"], "answer_start": [3, 0]}}


@pytest.mark.parametrize(
    "answers", [ROW["answers"], [{"text": "card", "answer_start": 3}, {"text": "my", "answer_start": 0, "id": 1}]]
)
def test_both_forms_of_squad_answers_are_read(answers: Any) -> None:
    example = QuestionAnswering.read_row(ROW | {"answers": answers}, QuestionAnsweringOptions())
    assert example.input == QuestionInput("where", "my card is lost")
    assert example.gold == GoldAnswers(("card", "my"), (3, 0))
    assert QuestionAnswering.names(example.gold) == ("answerable",)
    assert QuestionAnswering.group(example.input) == "my card is lost"
    assert hash(example.gold) == hash(GoldAnswers(("card", "my"), (3, 0)))


@pytest.mark.parametrize("answers", [{"text": [], "answer_start": []}, []])
def test_a_row_without_answers_is_unanswerable(answers: Any) -> None:
    example = QuestionAnswering.read_row(ROW | {"answers": answers, "is_impossible": True}, QuestionAnsweringOptions())
    assert example.gold == NO_GOLD
    assert QuestionAnswering.names(example.gold) == ("unanswerable",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": "  "}, "empty question"),
        ({"context": None}, "no context"),
        ({"answers": None}, "the answers are None; expected"),
        ({"answers": "card"}, "the answers are card; expected"),
        ({"answers": {"text": "card", "answer_start": 3}}, "the answers are {'text': 'card'.*expected"),
        ({"answers": {"text": ["card"]}}, "the answers are .*expected"),
        ({"answers": {"text": ["card", "my"], "answer_start": [3]}}, "2 texts of answers, but 1 places"),
        ({"answers": [{"text": "card"}]}, "answer 0: answer_start is None, expected a whole number"),
        ({"answers": [{"text": "card", "answer_start": "3"}]}, "answer 0: answer_start is '3', expected"),
        ({"answers": [{"text": "y", "answer_start": True}]}, "answer 0: answer_start is True, expected"),
        ({"answers": {"text": ["card", " "], "answer_start": [3, 2]}}, "answer 1: found ' ', expected a text"),
        ({"answers": {"text": [None], "answer_start": [3]}}, "answer 0: found None, expected a text"),
        ({"answers": {"text": ["card"], "answer_start": [4]}}, "answer 0: 'ard ' stands at character 4 .*'card'"),
        ({"answers": {"text": ["t"], "answer_start": [-1]}}, "answer 0: '' stands at character -1"),
        ({"answers": {"text": ["t"], "answer_start": [99]}}, "answer 0: '' stands at character 99"),
        ({"is_impossible": True}, "is_impossible is True, but there are 2 answers"),
        ({"answers": [], "is_impossible": False}, "is_impossible is False, but there are 0 answers"),
    ],
)
def test_a_bad_row_is_explained(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        QuestionAnswering.read_row(ROW | change, QuestionAnsweringOptions())


def test_training_rows_say_whether_a_question_may_have_no_answer() -> None:
    card = GoldAnswers(("card",), (4,))

    def options_of(golds: list[GoldAnswers], **options: Any) -> dict[str, Any]:
        asked = QuestionAnsweringOptions(**options)
        spec = QuestionAnswering.make_spec(golds, labels=None, max_length=9, options=asked)
        assert (spec.task, spec.labels, spec.max_length) == ("question_answering", ("start", "end"), 9)
        return spec.options

    assert options_of([card, NO_GOLD]) == {"no_answer": True}
    assert options_of([card], stride=4) == {"no_answer": False, "stride": 4}
    assert options_of([card], no_answer=True) == {"no_answer": True}
    assert options_of([card, NO_GOLD], no_answer=False) == {"no_answer": False}
    with pytest.raises(DataError, match="no row has an answer"):
        options_of([NO_GOLD])


def test_a_row_without_an_answer_is_refused_where_the_model_always_gives_one() -> None:
    with pytest.raises(DataError, match="no answer, but the model always gives one"):
        make_task(no_answer=False).check(NO_GOLD)
    make_task(no_answer=True).check(NO_GOLD)
    # of a model from elsewhere nobody knows
    make_task().check(NO_GOLD)
    make_task(no_answer=False).check(GoldAnswers(("card",), (4,)))


def test_other_outputs_than_two_and_unknown_options_are_refused() -> None:
    with pytest.raises(ParitybitError, match="two outputs, start and end"):
        QuestionAnswering(TaskSpec(task="question_answering", labels=("start",), max_length=9))
    with pytest.raises(ParitybitError, match=r"options\.max_answer_length"):
        make_task(max_answer_length=0)
