"""What the README says is what the code does: generated blocks, commands, targets, variables, the tree."""

import re
import shlex
from pathlib import Path

import pytest

from finetune.recipe import load_recipe
from paritybit.cli import cli
from paritybit.readme import filled
from serve.settings import ServeSettings

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands(program: str) -> list[list[str]]:
    lines = re.findall(rf"^    ({program} .*)$", README, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def test_generated_blocks_are_current() -> None:
    assert filled(README, ROOT) == README, "run: python -m paritybit.readme"


def test_every_paritybit_command_parses() -> None:
    found = commands("paritybit")
    assert {words[1] for words in found} == set(cli.commands)
    for words in found:
        cli.commands[words[1]].make_context(words[1], words[2:])


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {word for words in commands("make") for word in words[1:] if "=" not in word}
    assert {"demo", "test", "container"} <= named <= targets


def test_the_smallest_recipe_is_one_and_what_may_follow_in_it(tmp_path: Path) -> None:
    smallest, searched = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "tickets.toml").write_text(smallest)
    assert load_recipe(tmp_path / "tickets.toml").data.columns["label"] == "queue"
    (tmp_path / "tickets.toml").write_text(f"{smallest}\n{searched}")
    sweep = load_recipe(tmp_path / "tickets.toml").sweep
    assert sweep is not None and sweep.trials == 30


def test_variables_are_the_services_own_with_their_defaults() -> None:
    rows = dict(re.findall(r"^\| `(PARITYBIT_[A-Z_]+)` \| (.*?) \|", README, re.MULTILINE))
    assert set(rows) == {f"PARITYBIT_{name.upper()}" for name in ServeSettings.model_fields}
    for name, field in ServeSettings.model_fields.items():
        if field.default is not None:
            assert rows[f"PARITYBIT_{name.upper()}"] == str(field.default)


def test_the_tree_names_what_is_there() -> None:
    section = README.partition("## The tree")[2].partition("\n## ")[0]
    named = set(re.findall(r"^    ([a-z]+)/ ", section, re.MULTILINE))
    assert named == {path.name for path in ROOT.iterdir() if path.is_dir() and (path / "__init__.py").exists()} | {
        "recipes"
    }


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_every_link_has_its_target(path: str) -> None:
    assert (ROOT / path).exists()
