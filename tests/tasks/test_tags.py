import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB2, IOBES, Entities

from tasks.tags import OUTSIDE, Chunk, Scheme, Tag, chunks, closest, parse_tag, prefixes, tag_labels

KINDS = ("person", "creative-work")


def read(*labels: str) -> list[tuple[str, int, int]]:
    return [(chunk.kind, chunk.begin, chunk.end) for chunk in chunks([parse_tag(label) for label in labels])]


@pytest.mark.parametrize(
    ("label", "tag"),
    [
        ("O", OUTSIDE),
        ("O-x", OUTSIDE),
        ("B-PER", Tag("B", "PER")),
        ("I_PER", Tag("I", "PER")),
        ("B-creative-work", Tag("B", "creative-work")),
        ("L-PER", Tag("E", "PER")),
        ("U-PER", Tag("S", "PER")),
        ("M-PER", Tag("I", "PER")),
        ("PER", Tag("I", "PER")),
        ("Other", Tag("I", "Other")),
        ("LABEL_0", Tag("I", "LABEL_0")),
        ("B", Tag("B", "_")),
        ("E-", Tag("E", "_")),
        ("", Tag("I", "")),
    ],
)
def test_label_of_any_scheme_is_read(label: str, tag: Tag) -> None:
    assert parse_tag(label) == tag


@pytest.mark.parametrize(
    ("labels", "entities"),
    [
        ("O B-x I-x O B-y", [("x", 1, 3), ("y", 4, 5)]),
        ("B-x B-x", [("x", 0, 1), ("x", 1, 2)]),
        ("O I-x I-x O", [("x", 1, 3)]),
        ("B-x I-y I-y", [("x", 0, 1), ("y", 1, 3)]),
        ("B-x O I-x", [("x", 0, 1), ("x", 2, 3)]),
        ("I-x B-x I-x", [("x", 0, 1), ("x", 1, 3)]),
        ("S-x B-x I-x E-x", [("x", 0, 1), ("x", 1, 4)]),
        ("E-x E-x", [("x", 0, 1), ("x", 1, 2)]),
        ("S-x I-x E-x", [("x", 0, 1), ("x", 1, 3)]),
        ("B-x I-x S-x", [("x", 0, 2), ("x", 2, 3)]),
        ("B-x E-x I-x", [("x", 0, 2), ("x", 2, 3)]),
        ("B-x E-y", [("x", 0, 1), ("y", 1, 2)]),
        ("B-x I-x", [("x", 0, 2)]),
        ("B-x L-x U-x U-x", [("x", 0, 2), ("x", 2, 3), ("x", 3, 4)]),
        ("x x O y x", [("x", 0, 2), ("y", 3, 4), ("x", 4, 5)]),
        ("O", []),
    ],
)
def test_broken_sequences_are_mended_by_the_stated_rules(labels: str, entities: list[tuple[str, int, int]]) -> None:
    assert read(*labels.split()) == entities


@given(st.lists(st.sampled_from(["O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in KINDS)]), max_size=12))
@settings(max_examples=200, deadline=None)
def test_any_sequence_gives_the_entities_of_seqeval(labels: list[str]) -> None:
    assert read(*labels) == [(kind, first, last + 1) for kind, first, last in get_entities(labels)]


Layout = list[tuple[str | None, int]]


def tagged(layout: Layout, scheme: Scheme) -> tuple[list[str], list[Chunk]]:
    labels = tag_labels(KINDS, scheme)
    ids = {parse_tag(label): index for index, label in enumerate(labels)}
    tags: list[str] = []
    expected = []
    for kind, length in layout:
        if kind is None:
            tags += ["O"] * length
        else:
            expected.append(Chunk(kind, len(tags), len(tags) + length))
            tags += [labels[closest(ids, prefix, kind)] for prefix in prefixes(length)]
    return tags, expected


@given(
    st.lists(st.tuples(st.sampled_from([None, *KINDS]), st.integers(1, 4)), min_size=1, max_size=6),
    st.sampled_from(["BIO", "BIOES"]),
)
@settings(max_examples=200, deadline=None)
def test_written_tags_are_valid_to_seqeval_and_read_back(layout: Layout, scheme: Scheme) -> None:
    tags, expected = tagged(layout, scheme)
    strict = Entities([tags], IOB2 if scheme == "BIO" else IOBES).entities[0]
    assert [(one.tag, one.start, one.end) for one in strict] == read(*tags)
    assert chunks([parse_tag(tag) for tag in tags]) == expected


def test_labels_of_the_schemes() -> None:
    assert tag_labels(("a", "b"), "BIO") == ("O", "B-a", "I-a", "B-b", "I-b")
    assert tag_labels(("a",), "BIOES") == ("O", "B-a", "I-a", "E-a", "S-a")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("O B-x I-x", "B-x I-x I-x B-x"),
        ("O x", "x x x x"),
        ("O B-x I-x L-x U-x", "B-x I-x L-x U-x"),
        ("O B-x", "B-x B-x B-x B-x"),
    ],
)
def test_a_tag_set_without_the_tag_gets_the_closest(labels: str, expected: str) -> None:
    names = labels.split()
    ids = {parse_tag(label): index for index, label in enumerate(names)}
    assert [names[closest(ids, prefix, "x")] for prefix in ("B", "I", "E", "S")] == expected.split()


def test_prefixes_of_no_unit_are_none() -> None:
    assert prefixes(0) == []
    assert prefixes(2) == ["B", "E"]
