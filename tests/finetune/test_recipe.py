import json
from pathlib import Path

import pytest

from finetune.recipe import Recipe, load_recipe
from tasks.errors import RecipeError

MINIMAL = """
name = "toy"
base_model = "some/hub-model"

[data]
train = "train.csv"
test = "test.csv"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "toy.toml"
    path.write_text(MINIMAL)
    return path


def error_of(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return str(caught.value).split("\n")


def test_defaults_and_absolute_paths(recipe: Path, tmp_path: Path) -> None:
    loaded = load_recipe(recipe)
    assert loaded.data.train == str(tmp_path / "train.csv")
    assert loaded.data.validation is None
    assert loaded.base_model == "some/hub-model"
    assert (loaded.task, loaded.max_length, loaded.seed) == ("single_label", 128, 42)
    assert loaded.export.variants == ("fp32", "int8-dynamic", "int8-static")


def test_local_base_model_is_relative_to_the_recipe(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    assert load_recipe(recipe, ["base_model=models/mine"]).base_model == str(tmp_path / "models" / "mine")
    # a path that is written as one is one, also when nothing is there
    assert load_recipe(recipe, ["base_model=./none"]).base_model == str(tmp_path / "none")
    assert load_recipe(recipe, ["base_model=package:a/b"]).base_model == "package:a/b"


def test_hub_data_keeps_its_split_names(recipe: Path, tmp_path: Path) -> None:
    loaded = load_recipe(recipe, ["data.hub=owner/set", "data.train=train", "data.test=test"])
    assert (loaded.data.hub, loaded.data.train, loaded.data.test) == ("owner/set", "train", "test")
    (tmp_path / "set").mkdir()
    assert load_recipe(recipe, ["data.hub=set"]).data.hub == str(tmp_path / "set")


def test_overrides_are_toml_values_and_bare_words_strings(recipe: Path) -> None:
    loaded = load_recipe(
        recipe,
        ["train.learning_rate=3e-5", "train.precision=bf16", 'labels=["b", "a"]', "train.freeze_embeddings=true"],
    )
    assert loaded.train.learning_rate == 3e-5
    assert loaded.train.precision == "bf16"
    assert loaded.labels == ("b", "a")
    assert loaded.train.freeze_embeddings is True


def test_every_problem_is_reported_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(
        """
name = "Not Good"
base_model = "x/y"
task = "telepathy"
labels = ["a", "a"]
colour = 1

[data]
train = "same.csv"
test = "same.csv"
text_column = "label"
hub_config = "en"

[train]
learning_rate = "fast"
epochs = 2.5
momentum = 0.9
precision = "fp16"

[export]
min_agreement = 3
"""
    )
    headline, *problems = error_of(path, "no-equals-sign", "name.x=1")
    assert headline == f"{path}: {len(problems)} problems in the recipe"
    expected = [
        "override 'no-equals-sign': expected dotted.key=value",
        "override 'name.x=1': name is not a section",
        'name: found "Not Good"; expected lower-case letters, digits, - and _, a letter or digit first',
        'task: found "telepathy"; expected one of single_label',
        "colour: unknown key (found 1); expected one of name, base_model, task,",
        'train.learning_rate: found "fast"; expected a number',
        "train.epochs: found 2.5; expected a whole number",
        "train.momentum: unknown key (found 0.9); expected one of learning_rate, epochs,",
        "train.precision: found \"fp16\"; expected 'fp32' or 'bf16'",
        "export.min_agreement: found 3; expected less than or equal to 1",
        "data.hub_config: found without data.hub; expected together with it",
        "data.test: found the same as data.train; expected other rows",
        "data: found the columns label, label; expected a column of its own for each",
        "labels: found a more than once; expected each label once",
    ]
    assert len(problems) == len(expected)
    for start in expected:
        assert any(problem.strip().startswith(start) for problem in problems), start


@pytest.mark.parametrize(
    ("override", "start"),
    [
        ("train.learning_rate=0", "train.learning_rate: found 0"),
        ("train.learning_rate=nan", "train.learning_rate: found "),
        ("train.batch_size=0", "train.batch_size: found 0"),
        ("train.batch_size=true", "train.batch_size: found true; expected a whole number"),
        ("train.warmup_ratio=1.0", "train.warmup_ratio: found 1.0"),
        ("train=3", "train: found 3"),
        ("max_length=1", "max_length: found 1"),
        ("labels=[1, 2]", "labels.0: found 1; expected a string"),
        ("export.variants=[]", "export.variants: found []"),
        ('export.variants=["int4"]', 'export.variants.0: found "int4"'),
        ("data.format=xml", 'data.format: found "xml"'),
        ("data=1", "data: found 1"),
    ],
)
def test_a_value_out_of_range_names_its_key(recipe: Path, override: str, start: str) -> None:
    headline, first, *_ = error_of(recipe, override)
    assert headline.startswith(str(recipe))
    assert first.strip().startswith(start)


def test_contradictions(recipe: Path) -> None:
    both = error_of(recipe, "data.validation=v.csv", "data.validation_fraction=0.2")
    assert "data.validation_fraction" in both[1]
    assert "data.format" in error_of(recipe, "data.hub=a/b", "data.format=csv")[1]


def test_unreadable_files(tmp_path: Path) -> None:
    assert "no such recipe" in error_of(tmp_path / "none.toml")[0]
    broken = tmp_path / "broken.toml"
    broken.write_text("name = ")
    assert "not a readable TOML file" in error_of(broken)[0]


def test_json_round_trip(recipe: Path) -> None:
    loaded = load_recipe(recipe, ['labels=["b", "a"]'])
    assert Recipe.model_validate(json.loads(json.dumps(loaded.to_json()))) == loaded


def test_the_shipped_recipe_loads() -> None:
    loaded = load_recipe(Path(__file__).parents[2] / "recipes" / "banking77.toml")
    assert all(Path(file).is_file() for file in (loaded.data.train, loaded.data.validation or "", loaded.data.test))
