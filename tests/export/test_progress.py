"""What is shown on a terminal while an export is at work."""

import io
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tqdm import tqdm

import export.progress
from export.pipeline import export_bundle
from finetune.recipe import recipe_of_run
from tests.toy import LENIENT

pytestmark = pytest.mark.usefixtures("quick_export")


class Shown(tqdm):
    """A bar on a terminal, which remembers what it said and how it ended."""

    all: ClassVar[list["Shown"]] = []

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.said: list[int] = []
        super().__init__(*arguments, **options | {"disable": False, "file": io.StringIO(), "mininterval": 0})
        self.all.append(self)

    def refresh(self, *arguments: Any, **options: Any) -> Any:
        self.said.append(self.n)
        return super().refresh(*arguments, **options)


def test_every_long_step_has_a_bar_that_ends_at_its_total(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export.progress, "tqdm", Shown)
    Shown.all.clear()
    recipe = recipe_of_run(tiny_checkpoint, (*LENIENT, 'export.variants=["int8-static"]'))
    export_bundle(tiny_checkpoint, tmp_path / "bundle", recipe=recipe)
    steps = {"PyTorch", "extremes", "histograms", "min-max", "timing", "fp32", "int8-static", "int8-static in company"}
    assert steps <= {one.desc for one in Shown.all}
    for one in Shown.all:
        assert one.n == one.total > 0, one.desc
        assert one.said == sorted(one.said), one.desc
        assert one.disable, "closed"


def test_nothing_is_drawn_where_nobody_watches(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(export.progress.bar("rows")(range(3))) == [0, 1, 2]
    with export.progress.steps("timing") as advance:
        advance(1, 2)
    assert capsys.readouterr() == ("", "")
