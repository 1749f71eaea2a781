"""Tags of token classification: their names, what they say of entities, and how broken sequences are mended.

A label is a prefix, a `-` or `_`, and a type: `B-person`. The prefixes are those of the BIO and BIOES schemes; what
other schemes call them is read as the same: L (last) and U (unit) of BILOU as E and S, M (middle) of BMES as I. A
label without a prefix is a type by itself and means "inside" (the IO scheme), a prefix alone belongs to the type `_`.

Any sequence of tags gives entities, by the rules of the CoNLL-2000 evaluation (`conlleval`), which seqeval follows too:

- O is outside of every entity.
- B and S begin an entity.
- I and E go on with the entity of the tag before if that is a B or I of the same type; else they begin one.
- An entity ends before a tag that does not go on with it. So S always, and E, stand last in theirs: what follows
  begins another.

Nothing is thrown away: `O I-x I-x`, `E-x` and `B-x I-y` are entities (of two, one, and one and one tags).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["OUTSIDE", "Chunk", "Scheme", "Tag", "chunks", "closest", "parse_tag", "prefixes", "tag_labels"]

Prefix = Literal["O", "B", "I", "E", "S"]
Scheme = Literal["BIO", "BIOES"]

_UNTYPED = "_"
_READ_AS: dict[str, Prefix] = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S"}
_INSTEAD: dict[Prefix, tuple[Prefix, ...]] = {
    "B": ("B", "I", "S", "E"),
    "I": ("I", "E", "B", "S"),
    "E": ("E", "I", "B", "S"),
    "S": ("S", "B", "I", "E"),
}
"""For each prefix, those that stand in for it in a tag set that lacks it, the best first."""


@dataclass(frozen=True, slots=True)
class Tag:
    """What a label says of one unit of text."""

    prefix: Prefix
    kind: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """An entity as the units `[begin, end)` of a sequence."""

    kind: str
    begin: int
    end: int


OUTSIDE = Tag("O", "")


def parse_tag(label: str) -> Tag:
    """The tag that a label means; every label means one."""
    if re.match(r"O(?:[-_]|$)", label):
        return OUTSIDE
    parts = re.fullmatch(r"([BIMELSU])(?:[-_](.*))?", label, re.DOTALL)
    if parts is None:
        return Tag("I", label)
    return Tag(_READ_AS[parts[1]], parts[2] or _UNTYPED)


def tag_labels(kinds: Iterable[str], scheme: Scheme) -> tuple[str, ...]:
    """The labels of a model that tells the types apart: `O`, then all prefixes of each type."""
    letters = scheme.replace("O", "")
    return ("O", *(f"{letter}-{kind}" for kind in kinds for letter in letters))


def chunks(tags: Sequence[Tag]) -> list[Chunk]:
    """The entities of a sequence of tags, by the rules at the top of this module."""
    found: list[Chunk] = []
    previous = OUTSIDE
    for place, tag in enumerate(tags):
        if _goes_on(previous, tag):
            found[-1] = Chunk(tag.kind, found[-1].begin, place + 1)
        elif tag.prefix != "O":
            found.append(Chunk(tag.kind, place, place + 1))
        previous = tag
    return found


def prefixes(length: int) -> list[Prefix]:
    """The prefixes of an entity of some units, in BIOES."""
    inside: list[Prefix] = ["I"] * (length - 2)
    return ["B", *inside, "E"] if length > 1 else ["S"] * length


def closest(ids: Mapping[Tag, int], prefix: Prefix, kind: str) -> int:
    """The id of a tag, or of the one that says nearly the same in a tag set that does not know it.

    Args:
        ids: of the tag set, which knows the type.
        prefix: of BIOES.
        kind: the type.
    """
    tags = (Tag(letter, kind) for letter in _INSTEAD[prefix])
    return next(ids[tag] for tag in tags if tag in ids)


def _goes_on(previous: Tag, tag: Tag) -> bool:
    return previous.prefix in "BI" and tag.prefix in "IE" and previous.kind == tag.kind
