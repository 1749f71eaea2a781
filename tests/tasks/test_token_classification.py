import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from seqeval.metrics import classification_report
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from tasks.base import Encoded, TaskSpec
from tasks.encoding import Tokenizer
from tasks.errors import DataError, InputError, ParitybitError
from tasks.inputs import Input, TextInput, WordsInput
from tasks.token_classification import (
    Entity,
    TokenClassification,
    TokenClassificationOptions,
    TokenClassificationParameters,
)
from tasks.units import Units, units_of

BIO = ("O", "B-person", "I-person", "B-place", "I-place")
BIOES = ("O", *(f"{prefix}-{kind}" for kind in ("person", "place") for prefix in "BIES"))
FOREIGN = ("I-place", "person", "L-place", "O", "U_place", "B-person")
PLAIN = TokenClassificationParameters()

CORPUS = [
    "Ann Lee met 王小明 in New York , O'Neil and 👩‍💻 .",
    "café im Zürich",
    "שלום Ann",
    "ＦＵＬＬ width",
    "ann lives",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = ["Ann", "Lee", "lives", "in", "New", "York", "Neil", "cafe", "Zürich", "zurich", "##er"]
SAMPLES = (
    *(
        "Ann",
        "lives",
        "O'Neil",
        "Zürich",
        "cafe\u0301",
        "e\u0301\u0323",
        "\u0301",
        "שָׁלוֹם",
        "عمر\u200f",
        "王小明",
        "한국",
        "각",
    ),
    *(
        "👩\u200d💻",
        "🇩🇪",
        "❤\ufe0f",
        "ＦＵＬＬ",
        "ﬁ",
        "İ",
        "\u200b",
        "\u200d",
        "\ufeff",
        "\u00ad",
        "\t",
        "\n",
        "\u00a0",
        " ",
        "  ",
    ),
    *(".", ",", "-", "1999", "[SEP]", "</s>", "Ⅷ", "ß", "\x00", "\ufffd"),
)


def texts(max_size: int = 14) -> st.SearchStrategy[str]:
    anything = st.text(st.characters(exclude_categories=("Cs",)), max_size=4)
    return st.lists(st.sampled_from(SAMPLES) | anything, min_size=1, max_size=max_size).map("".join).filter(str.strip)


def word_piece(*, uncased: bool) -> RawTokenizer:
    # training breaks ties by chance; golden answers need the same pieces always
    letters = sorted({letter for text in CORPUS for letter in text + text.lower()} - {" "})
    pieces = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *WORDS, *(word.lower() for word in WORDS)]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    raw = RawTokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=uncased, strip_accents=uncased)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return raw


def byte_level() -> RawTokenizer:
    raw = RawTokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    raw.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), trim_offsets=True)
    return raw


MAKERS = {
    "uncased": lambda: word_piece(uncased=True),
    "cased": lambda: word_piece(uncased=False),
    "byte level": byte_level,
}


@cache
def tokenizer_json(kind: str) -> str:
    return str(MAKERS[kind]().to_str())


@cache
def tokenizer(kind: str, max_length: int) -> Tokenizer:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        path.write_text(tokenizer_json(kind), encoding="utf-8")
        return Tokenizer(path, max_length)


def task(labels: Sequence[str] = BIO, **options: Any) -> TokenClassification:
    return TokenClassification(
        TaskSpec(task="token_classification", labels=tuple(labels), max_length=64, options=options)
    )


def one_hot(targets: Sequence[np.ndarray], labels: int) -> list[np.ndarray]:
    """Logits that say what the targets say, and nonsense where nothing is judged."""
    return [np.where(ids[:, None] == np.arange(labels), 9.0, 0.0).astype(np.float32) for ids in targets]


def entities_of(one: TokenClassification, outputs: Sequence[np.ndarray], encoded: Encoded) -> list[dict[str, Any]]:
    (answer,) = one.decode(outputs, encoded, PLAIN)
    assert answer["truncated"] is False
    return list(answer["entities"])


def tagged(encoded: Encoded, labels: Sequence[str], tags: str) -> list[np.ndarray]:
    """Logits of the only window from the tags of its tokens; special tokens get wild ones."""
    ids = [len(labels) - 1, *(labels.index(tag) for tag in tags.split()), len(labels) - 1]
    assert len(ids) == len(encoded.windows[0])
    return one_hot([np.array(ids)], len(labels))


def plain(entities: Sequence[dict[str, Any]]) -> list[tuple[str, int, int, str]]:
    return [(one["text"], one["start"], one["end"], one["label"]) for one in entities]


# golden answers

GOLDEN = [
    # text, tags of its tokens, entities
    ("Ann Lee in New York", "B-person I-person O B-place I-place", [("Ann Lee", 0, 7), ("New York", 11, 19)]),
    ("  ANN \t Lee\n", "I-person I-person", [("ANN \t Lee", 2, 11)]),
    ("Ann Lee", "B-person B-person", [("Ann", 0, 3), ("Lee", 4, 7)]),
    ("Ann Lee", "B-person I-place", [("Ann", 0, 3), ("Lee", 4, 7)]),
    ("王小明", "B-person I-person I-person", [("王小明", 0, 3)]),
    ("王小明", "O I-person O", [("小", 1, 2)]),
    ("cafe\u0301 .", "B-place O", [("cafe\u0301", 0, 5)]),
    ("in \u200bAnn\u200b", "O B-person", [("Ann", 4, 7)]),
    ("O'Neil", "B-person I-person I-person", [("O'Neil", 0, 6)]),
]


@pytest.mark.parametrize(("text", "tags", "expected"), GOLDEN)
def test_golden_answers(text: str, tags: str, expected: list[tuple[str, int, int]]) -> None:
    one = task()
    encoded = one.encode(tokenizer("uncased", 64), [TextInput(text)])
    found = entities_of(one, tagged(encoded, BIO, tags), encoded)
    assert [entity[:3] for entity in plain(found)] == expected


def test_a_word_is_decided_by_its_first_piece_or_by_all() -> None:
    encoded = task().encode(tokenizer("uncased", 64), [TextInput("nn Ann nn")])
    (window,) = encoded.windows
    assert window.aligned.words.tolist() == [-1, 0, 0, 1, 2, 2, -1], "nn is n ##n"
    outputs = tagged(encoded, BIO, "B-person I-place O O B-place")
    assert plain(entities_of(task(), outputs, encoded)) == [("nn", 0, 2, "person")]
    by_pieces = plain(entities_of(task(pieces="all"), outputs, encoded))
    assert by_pieces == [("n", 0, 1, "person"), ("n", 1, 2, "place"), ("n", 8, 9, "place")]


def test_score_is_the_mean_probability_of_the_tags() -> None:
    encoded = task().encode(tokenizer("uncased", 64), [TextInput("Ann Lee")])
    logits = np.zeros((4, 5), dtype=np.float32)
    logits[1, 1], logits[2, 2] = np.log(4 * 3), np.log(4)
    (entity,) = entities_of(task(), [logits], encoded)
    assert entity["score"] == pytest.approx((0.75 + 0.5) / 2)
    for threshold, count in ((0.62, 1), (0.63, 0)):
        (answer,) = task().decode([logits], encoded, TokenClassificationParameters(min_score=threshold))
        assert len(answer["entities"]) == count


def test_ignored_labels_are_left_out_and_the_aggregation_changes_nothing() -> None:
    encoded = task().encode(tokenizer("uncased", 64), [TextInput("Ann in York")])
    outputs = tagged(encoded, BIO, "B-person O B-place")
    asked = TokenClassificationParameters.model_validate({"ignore_labels": ["person"], "aggregation_strategy": "max"})
    (answer,) = task().decode(outputs, encoded, asked)
    assert plain(answer["entities"]) == [("York", 7, 11, "place")]


def test_words_of_the_caller_are_decided_by_the_first_unit_that_begins_in_them() -> None:
    words = WordsInput(("O'Neil", "\u200b", "Lee", "", "York", "\u200b"))
    encoded = task().encode(tokenizer("uncased", 64), [words])
    found = entities_of(task(), tagged(encoded, BIO, "B-person B-place O I-person I-place"), encoded)
    assert plain(found) == [("O'Neil \u200b Lee", 0, 12, "person"), ("York", 14, 18, "place")]
    assert [(one["start_word"], one["end_word"]) for one in found] == [(0, 3), (4, 5)]


def test_joined_characters_give_words_without_spaces() -> None:
    one = task(joiner="")
    encoded = one.encode(tokenizer("uncased", 64), [WordsInput(tuple("王小明"))])
    (found,) = entities_of(one, tagged(encoded, BIO, "O B-person I-person"), encoded)
    assert (found["text"], found["start_word"], found["end_word"]) == ("小明", 1, 3)


def test_words_that_the_tokenizer_reads_as_one_have_one_tag() -> None:
    one = task(joiner="")
    encoded = one.encode(tokenizer("uncased", 64), [WordsInput(("王", "A", "n", "n", "明", "L", "ee"))])
    found = entities_of(one, tagged(encoded, BIO, "O B-person O B-place"), encoded)
    assert [(each["text"], each["start_word"], each["end_word"]) for each in found] == [("Ann", 1, 4), ("Lee", 5, 7)]


def test_text_without_tokens_has_no_entities() -> None:
    encoded = task().encode(tokenizer("uncased", 64), [TextInput("\u200b"), WordsInput(("", " "))])
    answers = task().decode([np.ones((2, 5), dtype=np.float32)] * 2, encoded, PLAIN)
    assert answers == [{"entities": [], "truncated": False}] * 2
    assert [ids.tolist() for ids in task().targets(encoded, [(), ()])] == [[-100, -100]] * 2


def test_nothing_asked_nothing_answered() -> None:
    encoded = task().encode(tokenizer("uncased", 64), [])
    assert task().decode([], encoded, PLAIN) == []
    assert task().statistics([], encoded, []).shape == (0, 3)


def test_second_text_is_refused_with_its_place() -> None:
    with pytest.raises(InputError, match="input 1: text_pair: token_classification takes one text"):
        task().encode(tokenizer("uncased", 64), [TextInput("a"), TextInput("a", "b")])


# properties


@given(
    text=texts(),
    kind=st.sampled_from(sorted(MAKERS)),
    pieces=st.sampled_from(["first", "all"]),
    labels=st.sampled_from([BIO, BIOES, FOREIGN]),
    max_length=st.integers(5, 24),
    stride=st.none() | st.integers(0, 30),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=200, deadline=None)
def test_any_answer_indexes_the_text(
    text: str, kind: str, pieces: str, labels: tuple[str, ...], max_length: int, stride: int | None, seed: int
) -> None:
    one = task(labels, pieces=pieces, stride=stride)
    encoded = one.encode(tokenizer(kind, max_length), [TextInput(text)])
    generator = np.random.default_rng(seed)
    outputs = [generator.normal(size=(len(window), len(labels))).astype(np.float32) for window in encoded.windows]
    reached = 0
    for entity in entities_of(one, outputs, encoded):
        assert text[entity["start"] : entity["end"]] == entity["text"] == entity["text"].strip() != ""
        assert entity["start"] >= reached
        assert entity["label"] in ("person", "place")
        assert 0 < entity["score"] <= 1
        reached = entity["end"]
        assert unicodedata.category((text + " ")[reached])[0] != "M", "a mark belongs to the letter before it"


@given(
    words=st.lists(texts(3) | st.sampled_from(["", " ", "\u200b"]), min_size=1, max_size=10),
    joiner=st.sampled_from([" ", ""]),
    kind=st.sampled_from(sorted(MAKERS)),
    pieces=st.sampled_from(["first", "all"]),
    max_length=st.integers(5, 24),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_answers_over_words_stand_at_their_words(
    words: list[str], joiner: str, kind: str, pieces: str, max_length: int, seed: int
) -> None:
    one = task(pieces=pieces, joiner=joiner)
    asked = WordsInput(tuple(words))
    encoded = one.encode(tokenizer(kind, max_length), [asked])
    generator = np.random.default_rng(seed)
    outputs = [generator.normal(size=(len(window), len(BIO))).astype(np.float32) for window in encoded.windows]
    text, reached = joiner.join(words), 0
    for entity in entities_of(one, outputs, encoded):
        begin, end = entity["start_word"], entity["end_word"]
        assert reached <= begin < end <= len(words)
        assert entity["text"] == joiner.join(words[begin:end]).strip() == text[entity["start"] : entity["end"]]
        assert entity["start"] >= len(joiner.join([*words[:begin], ""]))
        reached = end


def runs_of(units: Units, text: str, data: st.DataObject) -> tuple[Entity, ...]:
    """Entities over whole units; units that share characters are taken together."""
    bounds = [(int(begin), int(end)) for begin, end in zip(units.begins, units.ends, strict=True)]
    clusters: list[tuple[int, int]] = []
    for begin, end in bounds:
        if clusters and begin < clusters[-1][1]:
            clusters[-1] = (clusters[-1][0], max(clusters[-1][1], end))
        else:
            clusters.append((begin, end))
    golds, place = [], 0
    while place < len(clusters):
        length = data.draw(st.integers(0, 4))
        if length and place + length <= len(clusters):
            label = data.draw(st.sampled_from(["person", "place"]))
            golds.append(Entity(clusters[place][0], clusters[place + length - 1][1], label))
        place += max(length, 1)
    return tuple(golds)


@given(
    text=texts(20),
    kind=st.sampled_from(sorted(MAKERS)),
    pieces=st.sampled_from(["first", "all"]),
    labels=st.sampled_from([BIO, BIOES]),
    max_length=st.integers(5, 24),
    stride=st.none() | st.integers(0, 30),
    data=st.data(),
)
@settings(max_examples=200, deadline=None)
def test_targets_decode_to_the_entities_they_were_made_of(
    text: str, kind: str, pieces: Any, labels: tuple[str, ...], max_length: int, stride: int | None, data: st.DataObject
) -> None:
    one = task(labels, pieces=pieces, stride=stride)
    encoded = one.encode(tokenizer(kind, max_length), [TextInput(text)])
    gold = runs_of(units_of(encoded.windows, text, pieces), text, data)
    outputs = one_hot(one.targets(encoded, [gold]), len(labels))
    found = entities_of(one, outputs, encoded)
    assert [(entity["start"], entity["end"], entity["label"]) for entity in found] == [
        (entity.start, entity.end, entity.label) for entity in gold
    ]
    assert one.metrics(outputs, encoded, [gold])["entity_f1"] == (1.0 if gold else 0.0)


@given(
    words=st.lists(st.tuples(st.sampled_from(["Ann", "O'Neil", "王小", "nn", "👩\u200d💻x"]), st.sampled_from(BIO))),
    kind=st.sampled_from(sorted(MAKERS)),
    pieces=st.sampled_from(["first", "all"]),
    max_length=st.integers(5, 24),
)
@settings(max_examples=100, deadline=None)
def test_tags_of_words_come_back_as_the_same_entities(
    words: list[tuple[str, str]], kind: str, pieces: str, max_length: int
) -> None:
    assume(words)
    one = task(BIOES, pieces=pieces)
    row = {"words": [word for word, _ in words], "tags": [tag for _, tag in words]}
    example = one.read_row(row, TokenClassificationOptions())
    encoded = one.encode(tokenizer(kind, max_length), [example.input])
    outputs = one_hot(one.targets(encoded, [example.gold]), len(BIOES))
    found = entities_of(one, outputs, encoded)
    assert [(entity["start"], entity["end"], entity["label"]) for entity in found] == [
        (entity.start, entity.end, entity.label) for entity in example.gold
    ]


@given(
    text=texts(20),
    kind=st.sampled_from(sorted(MAKERS)),
    max_length=st.integers(5, 16),
    stride=st.integers(0, 12),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_windows_decode_as_one_where_they_agree(text: str, kind: str, max_length: int, stride: int, seed: int) -> None:
    one = task(stride=stride)
    whole, cut = (one.encode(tokenizer(kind, length), [TextInput(text)]) for length in (4096, max_length))
    (window,) = whole.windows
    table = np.random.default_rng(seed).normal(size=(len(window), len(BIO))).astype(np.float32)
    pieces = [table[part.aligned.positions] for part in cut.windows]
    assert entities_of(one, pieces, cut) == entities_of(one, [table], whole)
    assert one.same_answer(pieces, pieces, cut).tolist() == [True]


@pytest.mark.parametrize(
    ("stride", "places", "chosen"),
    [
        # 3 is one from the end of window 0 and at the edge of window 1, 4 the other way round
        (2, [[1, 2, 3, 4], [3, 4, 5, 6], [5, 6, 7, 8], [7, 8, 9]], "000112233"),
        # 4 and 7 stand at an edge of both their windows
        (1, [[1, 2, 3, 4], [4, 5, 6, 7], [7, 8, 9]], "000011122"),
    ],
)
def test_a_token_is_read_where_it_has_most_context(stride: int, places: list[list[int]], chosen: str) -> None:
    one = task(("O", *(f"B-{number}" for number in range(4))), stride=stride)
    encoded = one.encode(tokenizer("uncased", 6), [TextInput("Ann " * 9)])
    assert [window.aligned.positions[1:-1].tolist() for window in encoded.windows] == places
    outputs = one_hot([np.full(len(window), number + 1) for number, window in enumerate(encoded.windows)], 5)
    assert "".join(entity["label"] for entity in entities_of(one, outputs, encoded)) == chosen


def test_what_stands_between_words_decides_none() -> None:
    one = task(joiner="-")
    encoded = one.encode(tokenizer("uncased", 64), [WordsInput(("\u200b", "Lee"))])
    assert entities_of(one, tagged(encoded, BIO, "B-person O"), encoded) == []


def test_a_word_is_learnt_only_where_its_first_piece_stands() -> None:
    one = task(stride=0)
    encoded = one.encode(tokenizer("uncased", 4), [TextInput("Ann nn Lee")])
    assert [window.aligned.positions[1:-1].tolist() for window in encoded.windows] == [[1, 2], [3, 4]]
    targets = one.targets(encoded, [(Entity(4, 10, "place"),)])
    assert [ids.tolist() for ids in targets] == [[-100, 0, 3, -100], [-100, -100, 4, -100]]
    batch = one.collate_targets(targets, 6)["labels"]
    assert batch.dtype == np.int64
    assert batch.tolist() == [[-100, 0, 3, -100, -100, -100], [-100, -100, 4, -100, -100, -100]]


@pytest.mark.parametrize(("pieces", "expected"), [("first", [0, 3]), ("all", [0, 0, 0, 3, 4, 4, 4])])
def test_a_word_of_the_caller_is_learnt_by_its_first_piece(pieces: str, expected: list[int]) -> None:
    one = task(pieces=pieces)
    words = one.encode(tokenizer("uncased", 64), [WordsInput(("O'Ann", "nnnn"))])
    (targets,) = one.targets(words, [(Entity(6, 10, "place"),)])
    assert targets[targets >= 0].tolist() == expected
    # which words a text holds is the pre-tokenizer's word
    text = one.encode(tokenizer("uncased", 64), [TextInput("O'Ann nnnn")])
    (targets,) = one.targets(text, [(Entity(6, 10, "place"),)])
    assert targets[targets >= 0].tolist()[:3] == [0, 0, 0]


def test_a_unit_belongs_to_the_entity_that_it_shares_most_with() -> None:
    encoded = task().encode(tokenizer("uncased", 64), [TextInput("nnnn Ann")])
    golds = [
        ((Entity(0, 1, "person"), Entity(1, 4, "place")), [3, 0]),
        ((Entity(0, 2, "person"), Entity(2, 4, "place")), [1, 0]),
        ((Entity(3, 6, "place"),), [3, 4]),
        ((Entity(4, 5, "place"),), [0, 0]),
    ]
    for gold, expected in golds:
        (targets,) = task().targets(encoded, [gold])
        assert targets[targets >= 0].tolist() == expected


# quality

TAGS = st.sampled_from(["O", *(f"{prefix}-{kind}" for prefix in "BI" for kind in ("person", "place", "group"))])


def words_of(rows: Sequence[Sequence[str]]) -> list[Input]:
    return [WordsInput(("Ann",) * len(row)) for row in rows]


@given(st.lists(st.lists(st.tuples(TAGS, TAGS), min_size=1, max_size=8), min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_quality_is_what_seqeval_reports(rows: list[list[tuple[str, str]]]) -> None:
    gold_tags, found_tags = ([[pair[side] for pair in row] for row in rows] for side in (0, 1))
    # seqeval cannot report on no entity at all
    assume(any(tag != "O" for row in gold_tags for tag in row))
    report = classification_report(gold_tags, found_tags, output_dict=True, zero_division=0)
    labels = ("O", *(f"{prefix}-{kind}" for kind in ("person", "place", "group") for prefix in "BI"))
    one = task(labels)
    options = TokenClassificationOptions()
    golds = [one.read_row({"words": ["Ann"] * len(tags), "tags": tags}, options).gold for tags in gold_tags]
    encoded = one.encode(tokenizer("uncased", 64), words_of(rows))
    outputs = one_hot([np.array([0, *(labels.index(tag) for tag in tags), 0]) for tags in found_tags], len(labels))
    metrics = one.metrics(outputs, encoded, golds)
    micro = report["micro avg"]
    assert metrics["entity_f1"] == pytest.approx(micro["f1-score"])
    assert metrics["entity_precision"] == pytest.approx(micro["precision"])
    assert metrics["entity_recall"] == pytest.approx(micro["recall"])
    types = [value for name, value in report.items() if " avg" not in name and value["support"]]
    assert metrics["macro_entity_f1"] == pytest.approx(np.mean([value["f1-score"] for value in types]))
    assert one.score(one.statistics(outputs, encoded, golds)) == metrics["entity_f1"]


def test_statistics_concerns_and_summaries() -> None:
    one = task()
    encoded = one.encode(tokenizer("uncased", 64), [TextInput("Ann in York"), TextInput("Ann")])
    none = one_hot([np.zeros(len(window), dtype=int) for window in encoded.windows], len(BIO))
    some = [tagged(encoded, BIO, "B-person O B-person")[0], none[1]]
    gold = (Entity(0, 3, "person"), Entity(7, 11, "place"))
    assert one.statistics(some, encoded, [gold, (Entity(0, 3, "person"),)]).tolist() == [[1, 2, 2], [0, 0, 1]]
    assert one.score(np.zeros((2, 3))) == 0.0
    assert one.same_answer(some, none, encoded).tolist() == [False, True]
    assert one.tuned(some, encoded, [gold, ()]) is one
    assert one.concerns(none, encoded) == ["the model collapsed: it finds no entity at all"]
    assert one.concerns(some, encoded) == ["1 of 2 types of entities are never predicted: place"]
    summaries = [one.summary(answer) for answer in one.decode(some, encoded, PLAIN)]
    assert summaries == ["person[0:3], person[7:11]", "no entity"]
    assert one.gold_summary(gold) == "person[0:3], place[7:11]"
    assert one.gold_summary(()) == "no entity"


# specifications


def test_specification_holds_the_tags_of_the_types() -> None:
    golds = [(Entity(0, 1, "place"),), (), (Entity(0, 1, "person"),)]
    options = TokenClassificationOptions(scheme="BIOES", joiner="")
    spec = TokenClassification.make_spec(golds, labels=None, max_length=9, options=options)
    assert spec.labels == BIOES
    assert (spec.task, spec.max_length, spec.options) == (
        "token_classification",
        9,
        {"scheme": "BIOES", "joiner": ""},
    )
    plain_options = TokenClassificationOptions()
    chosen = TokenClassification.make_spec(golds, labels=("place", "group"), max_length=9, options=plain_options)
    assert chosen.labels == ("O", "B-place", "I-place", "B-group", "I-group")
    with pytest.raises(DataError, match="unknown label 'person'"):
        TokenClassification(chosen).check(golds[2])
    with pytest.raises(DataError, match="no entity in any row"):
        TokenClassification.make_spec([()], labels=None, max_length=9, options=plain_options)


@pytest.mark.parametrize(("labels", "message"), [(("O",), "needs a label beside O"), (("O", "x", "x"), "stands twice")])
def test_labels_that_cannot_be_a_tag_set(labels: tuple[str, ...], message: str) -> None:
    with pytest.raises(ParitybitError, match=message):
        task(labels)
