import json
from pathlib import Path
from typing import Any

import pytest

from tasks.checkpoint import read_task_spec
from tasks.errors import CheckpointError


def write(directory: Path, task: dict[str, Any] | None = None, id2label: dict[str, str] | None = None) -> Path:
    (directory / "config.json").write_text(json.dumps({"id2label": id2label or {"1": "b", "0": "a"}}))
    (directory / "task.json").write_text(
        json.dumps(task or {"schema_version": 1, "task": "single_label", "max_length": 8})
    )
    return directory


def test_labels_come_from_the_config_in_order_of_their_ids(tmp_path: Path) -> None:
    spec = read_task_spec(write(tmp_path))
    assert (spec.task, spec.labels, spec.max_length) == ("single_label", ("a", "b"), 8)


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint directory"):
        read_task_spec(tmp_path / "absent")


def test_unfinished_checkpoint(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "task.json").unlink()
    with pytest.raises(CheckpointError, match=r"unfinished checkpoint \(task.json is missing\)"):
        read_task_spec(tmp_path)


def test_unknown_schema(tmp_path: Path) -> None:
    write(tmp_path, {"schema_version": 2, "task": "single_label", "max_length": 8})
    with pytest.raises(CheckpointError, match="schema_version 2; this version reads 1"):
        read_task_spec(tmp_path)


def test_malformed_task_file_names_the_key(tmp_path: Path) -> None:
    write(tmp_path, {"schema_version": 1, "task": "single_label", "max_length": 0})
    with pytest.raises(CheckpointError, match=r"task\.json: max_length"):
        read_task_spec(tmp_path)


@pytest.mark.parametrize("id2label", [{"0": "a", "2": "b"}, {"1": "a", "2": "b"}])
def test_gaps_in_the_label_ids(tmp_path: Path, id2label: dict[str, str]) -> None:
    with pytest.raises(CheckpointError, match="expected 0 to 1"):
        read_task_spec(write(tmp_path, id2label=id2label))
