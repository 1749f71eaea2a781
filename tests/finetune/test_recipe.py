import json
import re
from pathlib import Path

import pytest

from finetune.reading import read_file
from finetune.recipe import Recipe, load_recipe, recipe_of_run
from finetune.rows import Columns
from tasks.catalogue import TASKS
from tasks.errors import RecipeError

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))

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
    # the task's own limit
    assert loaded.export.min_agreement is None


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
labels = ["a", "a"]
colour = 1

[options]
stride = -1
truncation = "middle"
joiner = " "

[data]
train = "same.csv"
test = "same.csv"
text_column = "label"
hub_config = "en"

[data.columns]
text = "label"
labels = "y"

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
        "colour: unknown key (found 1); expected one of name, base_model, task,",
        "options.stride: found -1; expected greater than or equal to 0",
        "options.truncation: found \"middle\"; expected 'head', 'head_tail' or 'windows'",
        'options.joiner: unknown key (found " "); expected one of truncation, stride',
        'data.text_column: unknown key (found "label"); expected one of hub, hub_config, train, validation, test,',
        "data.columns.labels: unknown field (found 'y'); expected one of text, label, text_pair",
        'train.learning_rate: found "fast"; expected a number',
        "train.epochs: found 2.5; expected a whole number",
        "train.momentum: unknown key (found 0.9); expected one of learning_rate, epochs,",
        "train.precision: found \"fp16\"; expected 'fp32' or 'bf16'",
        "export.min_agreement: found 3; expected less than or equal to 1",
        "data.hub_config: found without data.hub; expected together with it",
        "data.test: found the same as data.train; expected other rows",
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
        ("labels=[]", "labels: found []; expected at least one"),
        ("export.variants=[]", "export.variants: found []; expected at least one"),
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


def test_an_unknown_task_is_told_and_its_options_are_not_judged(recipe: Path) -> None:
    assert error_of(recipe, "task=telepathy", "options.power=9")[1:] == [
        f'  task: found "telepathy"; expected one of {", ".join(TASKS)}'
    ]


def test_options_are_those_of_the_task(recipe: Path) -> None:
    loaded = load_recipe(recipe, ["task=token_classification", "options.scheme=BIOES", 'options.joiner=""'])
    assert loaded.options == {"scheme": "BIOES", "joiner": ""}
    options = loaded.task_options.model_dump()
    assert (options["scheme"], options["joiner"], options["pieces"]) == ("BIOES", "", "first")
    assert "options.scheme: unknown key" in error_of(recipe, "options.scheme=BIOES")[1]
    # a number is no text for a task's options either
    assert error_of(recipe, "task=token_classification", "options.joiner=1")[1] == (
        "  options.joiner: found 1; expected a string"
    )
    assert error_of(recipe, "options=1")[1] == "  options: found 1; expected a section"


@pytest.mark.parametrize("task", ["regression", "question_answering"])
def test_labels_are_refused_where_there_are_none_to_name(recipe: Path, task: str) -> None:
    problems = error_of(recipe, f"task={task}", 'labels=["a", "b"]')
    assert problems[1:] == [f'  labels: found ["a", "b"]; expected none, {task} has no labels to name']


@pytest.mark.parametrize(
    ("columns", "task", "problem"),
    [
        ('{label = "text"}', "single_label", "data.columns: found the column 'text' for two fields"),
        ('{text = "a", label = "a"}', "single_label", "data.columns: found the column 'a' for two fields"),
        (
            '{answer = "a"}',
            "question_answering",
            "data.columns.answer: unknown field (found 'a'); expected one of question,",
        ),
        (
            '{words = "a", spans = "b"}',
            "token_classification",
            "data.columns: found words, spans; expected fields of one kind of row: words, tags; or text, spans",
        ),
        ("{text = 1}", "single_label", "data.columns.text: found 1; expected a string"),
        ('{text = ""}', "single_label", 'data.columns.text: found ""; expected a string that is not empty'),
        ("3", "single_label", "data.columns: found 3; expected a section"),
    ],
)
def test_columns_that_make_no_sense(recipe: Path, columns: str, task: str, problem: str) -> None:
    problems = error_of(recipe, f"task={task}", f"data.columns={columns}")
    assert len(problems) == 2
    assert problems[1].strip().startswith(problem)


def test_a_field_of_a_form_takes_its_column(recipe: Path) -> None:
    loaded = load_recipe(recipe, ["task=token_classification", "data.columns.spans=entities"])
    assert loaded.data.columns == {"spans": "entities"}


def test_a_stored_recipe_is_checked_when_it_is_overridden(recipe: Path, tmp_path: Path) -> None:
    stored = {"recipe": load_recipe(recipe, ["data.columns.text=sentence"]).to_json()}
    (tmp_path / "run.json").write_text(json.dumps(stored))
    assert recipe_of_run(tmp_path).data.columns == {"text": "sentence"}
    with pytest.raises(RecipeError) as caught:
        recipe_of_run(tmp_path, ["data.columns.words=a", "options.joiner=x", "data.test=b.csv"])
    assert "data.columns.words: unknown field" in str(caught.value)
    assert "options.joiner: unknown key" in str(caught.value)
    assert "2 problems" in str(caught.value)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_loads(path: Path) -> None:
    loaded = load_recipe(path)
    assert loaded.name == path.stem
    assert loaded.to_json()["options"] == loaded.task_options.model_dump(exclude_unset=True)
    assert Path(loaded.data.train).parent == path.parent / "data" / path.stem
    command = f"# paritybit finetune recipes/{path.name} && paritybit export build/{path.stem}/checkpoint\n"
    assert path.read_text(encoding="utf-8").startswith(command)


def test_every_task_has_a_shipped_recipe() -> None:
    assert {load_recipe(path).task for path in RECIPES} == set(TASKS)


def test_the_data_of_the_demo_stands_beside_its_recipe() -> None:
    data = load_recipe(ROOT / "recipes" / "banking77.toml").data
    assert all(Path(file).is_file() for file in (data.train, data.validation or "", data.test))


@pytest.mark.parametrize(
    # data that is shipped needs no example
    "path",
    [path for path in RECIPES if path.stem not in ("banking77", "feelings")],
    ids=lambda path: path.stem,
)
def test_the_example_row_of_a_shipped_recipe_is_one(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    (row,) = re.findall(r"^# (\{.*\})$", path.read_text(encoding="utf-8"), re.MULTILINE)
    (tmp_path / "a.jsonl").write_text(row, encoding="utf-8")
    task = TASKS[recipe.task]
    table = read_file(tmp_path / "a.jsonl", "jsonl", Columns(task.fields, recipe.data.columns))
    example = task.read_row(table.rows[0].values, recipe.task_options)
    assert isinstance(example.input, task.input_types)


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (
            ["train.micro_batch_size=5"],
            "train.micro_batch_size: found 5; expected a divisor of train.batch_size, which",
        ),
        (
            ["train.gradual_unfreezing=true", "train.freeze_encoder=true"],
            "train.gradual_unfreezing: found together with",
        ),
        (["loss.label_smoothing=0.1", "loss.class_weights=inverse"], "loss.label_smoothing: found together with loss."),
        (["loss.negative_gamma=4.0"], "expected label_smoothing, class_weights, focal_gamma"),
        (["task=multi_label", "loss.label_smoothing=0.1"], "loss.label_smoothing: found with the task multi_label"),
        (["task=question_answering", "loss.focal_gamma=2.0"], "which has no use for it; expected none"),
        (["regularize.adversarial_steps=3"], "found without regularize.adversarial_epsilon"),
        (["regularize.average=swa", "regularize.ema_decay=0.9"], 'found without regularize.average = "ema"'),
        (["regularize.mixout=0.1", "train.reinitialize_layers=1"], "found with train.reinitialize_layers"),
        (["regularize.r_drop=1.0", "train.dropout=0.0"], "regularize.r_drop: found with train.dropout = 0"),
    ],
)
def test_techniques_that_exclude_or_need_each_other(recipe: Path, overrides: list[str], problem: str) -> None:
    _, found = error_of(recipe, *overrides)
    assert problem in found
