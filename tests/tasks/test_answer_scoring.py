import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.answer_scoring import characters_segments, score_answer, words_normalized

# exact match and F1 that SQuAD's evaluate-v2.0.py gives
SQUAD = [
    ("Denver Broncos", ["Denver Broncos"], 1, 1),
    ("the Denver Broncos!", ["denver  broncos"], 1, 1),
    ("Denver Broncos team", ["Denver Broncos"], 0, 0.8),
    ("gold gold gold", ["gold"], 0, 0.5),
    ("1,000", ["1000"], 1, 1),
    ("well-known", ["well known"], 0, 0),
    ("Tesla", ["Edison", "Nikola Tesla"], 0, 2 / 3),
    ("Nikola Tesla", ["Tesla", "Nikola Tesla", "Nikola"], 1, 1),
    ("Santa Clara, California", ["Levi's Stadium", "Levi's Stadium in Santa Clara, California."], 0, 2 / 3),
    ("—", ["-"], 0, 0),
    ("", ["Tesla"], 0, 0),
    ("", [], 1, 1),
    ("Tesla", [], 0, 0),
    # a normalized prediction that is empty says no answer, a gold that is empty says nothing
    ("the", [], 1, 1),
    ("The", ["a", "an"], 1, 1),
    ("Tesla", ["a", "Tesla"], 1, 1),
    ("", ["a", "Tesla"], 0, 0),
]

# worked out by hand from the rules of cmrc2018_evaluate.py
CMRC = [
    ("踢爆", ["踢爆"], 1, 1),
    ("“踢爆”。", ["踢爆"], 1, 1),
    # a common stretch of two of four and two characters
    ("即为踢爆", ["踢爆"], 0, 2 * 2 / 6),
    # the longest common stretch counts, not all common characters: 北京 of 北京和上海 and 北京上海
    ("北京和上海", ["北京上海"], 0, 2 * 2 / 9),
    ("上海北京", ["北京上海"], 0, 2 * 2 / 8),
    # Latin letters and digits are words: 韩国 + nexon against nexon
    ("韩国Nexon", ["NEXON"], 0, 2 * 1 / 4),
    ("光荣和ω-force", ["光荣和ω-force", "ω-force"], 1, 1),
    # a hyphen vanishes without parting words
    ("2-3", ["23"], 1, 1),
    ("2–3", ["23"], 0, 0),
    # ASCII brackets and per cent are segments of their own, and count for exact match
    ("50%", ["50"], 0, 2 * 1 / 3),
    ("(NPC)", ["NPC"], 0, 2 * 1 / 4),
    ("3.5米", ["3.5 米"], 0, 1),
    ("1,000人。", ["1,000人"], 1, 1),
    # an ellipsis is listed as two characters in the script, which never match one
    ("好……", ["好"], 0, 2 * 1 / 3),
    ("北京", ["上海", "北京市", "南京"], 0, 2 * 2 / 5),
    ("南京", ["北京"], 0, 2 * 1 / 4),
    ("东京", ["上海"], 0, 0),
    ("", ["上海"], 0, 0),
    ("", [], 1, 1),
    ("上海", [], 0, 0),
]


@pytest.mark.parametrize(("prediction", "golds", "exact", "f1"), SQUAD)
def test_words_are_scored_as_squad_does(prediction: str, golds: list[str], exact: float, f1: float) -> None:
    assert score_answer(prediction, golds, "words") == pytest.approx((exact, f1))


@pytest.mark.parametrize(("prediction", "golds", "exact", "f1"), CMRC)
def test_characters_are_scored_as_cmrc2018_does(prediction: str, golds: list[str], exact: float, f1: float) -> None:
    assert score_answer(prediction, golds, "characters") == pytest.approx((exact, f1))


def test_normalized_words_lose_case_punctuation_articles_and_blanks() -> None:
    assert words_normalized(" The  'A-Team'\tand an  Übermensch.") == "ateam and übermensch"


def test_segments_are_chinese_characters_and_runs_of_others() -> None:
    assert characters_segments(" 由韩国Nexon Corp.开发(2V2)，1,000人；约50%, a,b, 完. ") == [
        *("由", "韩", "国", "nexon", "corp", ".", "开", "发", "(", "2v2", ")", "1,000", "人"),
        *("约", "50", "%", ",", "a", ",", "b", ",", "完", "."),
    ]


@given(st.text("北京上海 aB1.,-。", max_size=12), st.lists(st.text("北京上海 aB1.,-。", max_size=12), max_size=3))
def test_scores_lie_between_0_and_1_and_a_gold_matches_itself(prediction: str, golds: list[str]) -> None:
    for scoring in ("words", "characters"):
        exact, f1 = score_answer(prediction, golds, scoring)
        assert exact in {0, 1} and 0 <= f1 <= 1
        assert all(score_answer(gold, [gold], scoring)[0] == 1 for gold in golds)
        assert score_answer(prediction, golds[::-1], scoring) == (exact, f1)
