from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data import load_data, stratified_split
from tasks.base import TaskSpec
from tasks.errors import DataError
from tasks.inputs import TextInput, WordsInput
from tests.finetune.data_files import error_of, recipe_of, write
from tests.toy import toy_rows, write_jsonl

TAGGED = {"words": ["Ann", "saw", "Old", "Paris"], "tags": ["B-person", "O", "B-place", "I-place"]}


def test_unknown_labels_say_where_and_how_to_mend(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "a.jsonl", toy_rows(6, 0))
    test = write_jsonl(tmp_path / "b.jsonl", [*toy_rows(2, 1), {"text": "a", "label": "aminal"}])
    training = "expected one of the training labels, or list it in the recipe's labels"
    assert f"{test}:3: unknown label 'aminal'; {training}" in error_of(recipe_of(train, test))
    message = error_of(recipe_of(train, labels=["food", "vehicle"]))
    assert f"{train}:1: unknown label 'animal'; expected one of the recipe's labels" in message
    fixed = load_data(recipe_of(train, labels=["vehicle", "food", "animal"]))
    assert fixed.spec.labels == ("vehicle", "food", "animal")


def test_rows_are_checked_against_the_task_of_a_checkpoint(tmp_path: Path) -> None:
    recipe = recipe_of(write_jsonl(tmp_path / "a.jsonl", toy_rows(6, 0)))
    spec = TaskSpec(task="single_label", labels=("vehicle", "food", "animal", "plant"), max_length=99)
    assert load_data(recipe, spec=spec).spec is spec
    with pytest.raises(DataError, match="unknown label 'animal'; expected one that the checkpoint knows"):
        load_data(recipe, spec=spec.model_copy(update={"labels": ("vehicle", "food")}))


def test_one_label_is_too_few(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": "x"}])
    assert error_of(recipe_of(path)).startswith(f"{path}: one label only, 'x'")


def test_stratified_split_is_seeded_and_in_proportion(tmp_path: Path) -> None:
    def split(labels: list[str], seed: int) -> list[int]:
        return stratified_split(labels, [None] * len(labels), 0.1, seed)

    labels = ["a"] * 100 + ["b"] * 50 + ["c"] * 7 + ["d"]
    chosen = split(labels, 3)
    assert chosen == split(labels, 3) != split(labels, 4)
    counts = Counter(labels[row] for row in chosen)
    assert sum(counts.values()) == round(len(labels) * 0.1)
    assert (counts["a"], counts["b"], counts["d"]) == (10, 5, 0)
    # many small labels: not one of them is owed a whole row, and yet a tenth is chosen
    assert len(split([str(label) for label in range(40) for _ in range(3)], 0)) == 12

    path = write_jsonl(tmp_path / "a.jsonl", toy_rows(60, 0))
    loaded = load_data(recipe_of(path, data={"validation": None, "validation_fraction": 0.2}))
    assert Counter(loaded.validation.golds) == {"animal": 4, "food": 4, "vehicle": 4}
    rows = Counter([*loaded.train.inputs, *loaded.validation.inputs])
    assert rows == Counter(TextInput(row["text"]) for row in toy_rows(60, 0))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 30)), min_size=1, max_size=120), st.integers(0, 9))
def test_groups_are_never_cut_and_the_fraction_is_about_kept(rows: list[tuple[str, int]], seed: int) -> None:
    strata, groups = [stratum for stratum, _ in rows], [group or None for _, group in rows]
    chosen = set(stratified_split(strata, groups, 0.2, seed))
    for group in {group for group in groups if group}:
        assert len({row in chosen for row in range(len(rows)) if groups[row] == group}) == 1
    # each of the two strata may pass its quota by less than half a group
    largest = max(Counter(group for group in groups if group).values(), default=1)
    assert len(chosen) <= 0.2 * len(rows) + 1 + largest
    assert set(range(len(rows))) - chosen


def test_small_groups_are_chosen_in_about_the_wanted_share() -> None:
    groups = [row // 5 for row in range(1000)]
    for seed in range(5):
        assert 95 <= len(stratified_split(["answerable"] * 1000, groups, 0.1, seed)) <= 105


def test_questions_on_one_paragraph_stay_together(tmp_path: Path) -> None:
    answers = {"text": ["Ann"], "answer_start": [5]}
    rows = [{"question": f"Who {n}?", "context": f"Then Ann came {n // 4}.", "answers": answers} for n in range(80)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    data = load_data(recipe_of(path, task="question_answering", data={"validation": None}))
    train, validation = ({one.context for one in split.inputs} for split in (data.train, data.validation))
    assert len(data.validation) == 8
    assert not train & validation


def test_rows_of_several_labels_are_split_by_their_rarest_one(tmp_path: Path) -> None:
    rows = [{"text": f"t{n}", "labels": ["often", "seldom"] if n % 10 == 0 else ["often"]} for n in range(100)]
    path = write_jsonl(tmp_path / "a.jsonl", [*rows, {"text": "none", "labels": []}])
    for seed in range(5):
        recipe = recipe_of(path, task="multi_label", seed=seed, data={"validation": None})
        golds = load_data(recipe).validation.golds
        assert golds.count(("often", "seldom")) == 1
        assert len(golds) == 10


def test_every_label_once_leaves_nothing_for_validation(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}])
    assert "no row to spare for validation" in error_of(recipe_of(path, data={"validation": None}))


def test_the_fingerprint_knows_content_columns_split_and_labels(tmp_path: Path) -> None:
    rows = [{"text": row["text"], "other": row["text"] + "!", "label": row["label"]} for row in toy_rows(30, 0)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)

    def fingerprint(data: dict[str, Any] | None = None, **more: Any) -> str:
        return load_data(recipe_of(path, data={"validation": None} | (data or {}), **more)).fingerprint

    plain = fingerprint()
    assert fingerprint() == plain
    others = [
        fingerprint(seed=2),
        fingerprint(labels=["vehicle", "food", "animal"]),
        fingerprint({"columns": {"text": "other"}}),
        fingerprint({"columns": {"text_pair": "other"}}),
        fingerprint({"validation_fraction": 0.5}),
    ]
    write_jsonl(path, [*rows[:-1], rows[-1] | {"text": "changed"}])
    others.append(fingerprint())
    assert len({plain, *others}) == len(others) + 1


def test_the_fingerprint_knows_every_entity(tmp_path: Path) -> None:
    def fingerprint(tags: list[str]) -> str:
        path = write_jsonl(tmp_path / "a.jsonl", [TAGGED, TAGGED | {"tags": tags}])
        return load_data(recipe_of(path, task="token_classification")).fingerprint

    tags = [["O"] * 4, ["B-person", "O", "O", "O"], ["B-place", "O", "O", "O"], ["O", "B-person", "O", "O"]]
    assert len({fingerprint(one) for one in tags}) == len(tags)


def test_words_and_tags_under_the_names_that_data_sets_use(tmp_path: Path) -> None:
    renamed = [{"tokens": TAGGED["words"], name: TAGGED["tags"]} for name in ("tags", "ner_tags")]
    for number, row in enumerate([TAGGED, *renamed]):
        path = write_jsonl(tmp_path / f"{number}.jsonl", [row])
        data = load_data(recipe_of(path, task="token_classification"))
        assert data.train.inputs == [WordsInput(("Ann", "saw", "Old", "Paris"))]
        entities = [(entity.start, entity.end, entity.label) for entity in data.train.golds[0]]
        assert entities == [(0, 3, "person"), (8, 17, "place")]
        assert set(data.spec.labels) == {"O", "B-person", "I-person", "B-place", "I-place"}


def test_each_file_may_have_a_form_of_its_own(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "a.jsonl", [TAGGED])
    spans = [{"start": 0, "end": 3, "label": "person"}]
    test = write_jsonl(tmp_path / "b.jsonl", [{"text": "Ann came", "spans": spans}])
    data = load_data(recipe_of(train, test, task="token_classification"))
    assert data.test.inputs == [TextInput("Ann came")]
    neither = write_jsonl(tmp_path / "c.jsonl", [{"text": "Ann came", "tokens": []}])
    message = error_of(recipe_of(neither, task="token_classification"))
    assert message == f"{neither}: no column 'tags' (or else 'text', 'spans'); found 'text', 'tokens'"
    named = recipe_of(neither, task="token_classification", data={"columns": {"spans": "entities"}})
    assert error_of(named) == f"{neither}: no column 'entities'; found 'text', 'tokens'"


def test_entity_types_are_the_labels_that_a_recipe_names(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "a.jsonl", [TAGGED])
    data = load_data(recipe_of(train, task="token_classification", labels=["place", "thing", "person"]))
    assert [label for label in data.spec.labels if label.startswith("B-")] == ["B-place", "B-thing", "B-person"]
    message = error_of(recipe_of(train, task="token_classification", labels=["place"]))
    assert f"{train}:1: unknown label 'person'; expected one of the recipe's labels" in message


def test_options_of_the_task_decide_how_rows_are_read_and_stand_in_the_specification(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [TAGGED])
    options = {"joiner": "", "scheme": "BIOES"}
    data = load_data(recipe_of(path, task="token_classification", max_length=77, options=options))
    assert (data.train.golds[0][1].start, data.train.golds[0][1].end) == (6, 14)
    assert "S-place" in data.spec.labels
    assert (data.spec.max_length, data.spec.options) == (77, options)


def test_numbers_of_a_csv_file_are_targets(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\na,1.5\nb,2.5\n")
    data = load_data(recipe_of(path, task="regression"))
    assert data.train.golds == [1.5, 2.5]
    assert data.spec.options == {"mean": 2.0, "std": 0.5}
    path = write(tmp_path / "b.csv", "text,label\na,much\nb,2.5\n")
    assert f"{path}:2: " in error_of(recipe_of(path, task="regression"))
    alike = write(tmp_path / "c.csv", "text,label\na,1\nb,1\n")
    assert error_of(recipe_of(alike, task="regression")).startswith(f"{alike}: ")


def test_label_sets_of_lists_and_of_separated_text(tmp_path: Path) -> None:
    rows = [{"text": "a", "labels": ["joy", "awe"]}, {"text": "b", "labels": []}, {"text": "c", "labels": ["joy"]}]
    lists = write_jsonl(tmp_path / "a.jsonl", rows)
    text = write(tmp_path / "b.csv", 'text,labels\na,"joy,awe"\nb,\nc,joy\n')
    for path in (lists, text):
        data = load_data(recipe_of(path, task="multi_label"))
        assert data.train.golds == [("awe", "joy"), (), ("joy",)]
        assert data.spec.labels == ("awe", "joy")


def test_words_in_a_csv_file_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "words,tags\na b,O O\n")
    assert f"{path}:2: " in error_of(recipe_of(path, task="token_classification"))
