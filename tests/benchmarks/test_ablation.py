import pytest
from scipy.stats import ttest_ind

from benchmarks.ablation import _BASE, ARMS, _half_width, table
from benchmarks.stages import ROOT
from finetune.recipe import load_recipe


@pytest.mark.parametrize("change", ARMS.values(), ids=list(ARMS))
def test_every_arm_is_a_recipe_and_not_the_base(change: str) -> None:
    file = ROOT / "recipes" / "banking77.toml"
    assert load_recipe(file, [*_BASE, *change.split()]) != load_recipe(file, _BASE)


def test_the_interval_is_that_of_welchs_test() -> None:
    one, other = [0.90, 0.92, 0.91], [0.85, 0.89, 0.80]
    interval = ttest_ind(one, other, equal_var=False).confidence_interval(0.95)
    assert _half_width(one, other) == pytest.approx((interval.high - interval.low) / 2)


def variant(name: str, *tests: float, seconds: float) -> dict[str, object]:
    runs = [{"test": one} for one in tests]
    return {"name": name, "runs": runs, "summary": {"seconds": seconds, "failed": 0}}


def test_a_row_is_the_difference_to_the_base_in_points_with_its_interval_and_time() -> None:
    variants = [variant("base", 0.90, 0.92, seconds=10.0), variant("FGM", 0.93, 0.95, seconds=18.0)]
    lines = table([{"name": "toy", "rows": 2000, "metric": "accuracy", "variants": variants}]).splitlines()
    half = 100 * _half_width([0.93, 0.95], [0.90, 0.92])
    assert lines[-2:] == [
        f"| base | 0.9100 | {_half_width([0.90, 0.92]):.4f} | 1.00 |",
        f"| FGM | +3.00 | {half:.2f} | 1.80 |",
    ]
