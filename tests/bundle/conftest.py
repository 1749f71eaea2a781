"""A tiny bundle of each task."""

from pathlib import Path

import pytest

from tasks.catalogue import TASKS
from tests.bundles import write_bundle


@pytest.fixture(scope="session", params=sorted(TASKS))
def task_bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certified bundle of each task in turn."""
    directory = tmp_path_factory.mktemp(request.param) / "bundle"
    directory.mkdir()
    write_bundle(directory, task=request.param)
    return directory
