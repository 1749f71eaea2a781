"""How near an answer comes to the right ones: by words as SQuAD counts, or by characters as CMRC2018 does.

The rules are those of the official scripts: `evaluate-v2.0.py` of SQuAD (Rajpurkar et al. 2018, arXiv:1806.03822) and
`cmrc2018_evaluate.py` (Cui et al. 2019, arXiv:1810.07366). Theirs are percentages, these lie between 0 and 1.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from typing import Literal

__all__ = ["Score", "Scoring", "characters_segments", "score_answer", "words_normalized"]

Scoring = Literal["words", "characters"]

Score = tuple[float, float]
"""Exact match and F1."""

_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")

_CMRC_PUNCTUATION = str.maketrans("", "", r"-:_*^/\~`+=，。：？！“”；’《》·、「」（）－～『』")
"""The script lists "……" too, but looks at single characters, so an ellipsis stays."""

_CHINESE = re.compile(r"([\u4e00-\u9fa5])")
_MARKS = re.compile(r"([;@#$%&?!\"'()\[\]{}<>–—]|,(?!\d)|\.(?=\s*$))")
"""What NLTK's word tokenizer, which the script calls, sets apart in a run of other characters; contractions aside."""


def score_answer(prediction: str, golds: Sequence[str], scoring: Scoring) -> Score:
    """Exact match and F1 of an answer with the gold that each is best for.

    Args:
        prediction: the answer; empty for none.
        golds: right answers; none at all where there is none.
        scoring: whose rules count.
    """
    if scoring == "words":
        # a gold of nothing but articles and punctuation does not count
        usable = [gold for gold in golds if words_normalized(gold)] or [""]
        return _best(_score_words, prediction, usable)
    if not golds:
        return float(not prediction), float(not prediction)
    return _best(_score_characters, prediction, golds)


def words_normalized(text: str) -> str:
    """Lower case, without ASCII punctuation, articles and superfluous white space."""
    bare = text.lower().translate(_ASCII_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def characters_segments(text: str) -> list[str]:
    """Chinese characters one by one, other runs as words; lower case, without punctuation."""
    pieces = _CHINESE.split(_without_cmrc_punctuation(text))
    return [segment for piece in pieces for segment in _MARKS.sub(r" \1 ", piece).split()]


def _best(score: Callable[[str, str], Score], prediction: str, golds: Sequence[str]) -> Score:
    exact, f1 = zip(*(score(prediction, gold) for gold in set(golds)), strict=True)
    return max(exact), max(f1)


def _score_words(prediction: str, gold: str) -> Score:
    left, right = words_normalized(prediction), words_normalized(gold)
    words = left.split(), right.split()
    if not left or not right:
        return float(left == right), float(left == right)
    return float(left == right), _f1((Counter(words[0]) & Counter(words[1])).total(), *words)


def _score_characters(prediction: str, gold: str) -> Score:
    left, right = characters_segments(prediction), characters_segments(gold)
    common = SequenceMatcher(None, left, right, autojunk=False).find_longest_match().size
    return float(_without_cmrc_punctuation(prediction) == _without_cmrc_punctuation(gold)), _f1(common, left, right)


def _f1(common: int, left: Sequence[str], right: Sequence[str]) -> float:
    return 2 * common / (len(left) + len(right)) if common else 0.0


def _without_cmrc_punctuation(text: str) -> str:
    return text.lower().strip().translate(_CMRC_PUNCTUATION)
