"""Fixtures that several rooms share. Heavy imports stay inside them: the serving tests run without torch."""

import os
from collections.abc import Iterator
from pathlib import Path

# the tiny models are slower with more threads, many times so when tests run side by side
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

from tests.toy import LENIENT, build_tiny_base, write_toy_data, write_toy_recipe

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with long tests go first, so that at the end no worker waits for the other."""
    long = {item.path for item in items if item.get_closest_marker("real") or item.get_closest_marker("thorough")}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model: config.json, model.safetensors, tokenizer.json, tokenizer_config.json."""
    return build_tiny_base(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A finished checkpoint of three labels; its data files and recipe lie in `../data`."""
    from finetune.recipe import load_recipe
    from finetune.training import finetune

    folder = tmp_path_factory.mktemp("toy")
    data = write_toy_data(folder / "data")
    return finetune(load_recipe(write_toy_recipe(data, tiny_base)), folder / "checkpoint").checkpoint


@pytest.fixture(scope="session")
def quick_export(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Exports of tiny models in a third of the time.

    Candidates are timed in one short round, since which of two tiny graphs is faster is nobody's concern; and torch,
    which takes seconds to trace a model, traces the same weights once.
    """
    import export.pipeline
    from bundle.manifest import SessionSettings
    from tests.traces import TracedOnce

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.selection._settings_worth_trying", lambda model: [SessionSettings()])
        for name, value in {"_ROUNDS": 1, "_LEAST_ROUNDS": 1, "_WARM_UP_S": 0.01}.items():
            patch.setattr(f"export.selection.{name}", value)
        once = TracedOnce(export.pipeline.export_graph, tmp_path_factory.mktemp("traced"))
        patch.setattr(export.pipeline, "export_graph", once)
        yield


@pytest.fixture(scope="session")
def tiny_export(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, quick_export: None) -> Path:
    """A bundle that the export stage made of the tiny checkpoint, with all candidates beside it."""
    from export.pipeline import export_bundle
    from finetune.recipe import recipe_of_run

    recipe = recipe_of_run(tiny_checkpoint, LENIENT)
    return export_bundle(tiny_checkpoint, tmp_path_factory.mktemp("export") / "bundle", recipe=recipe).bundle


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certified bundle of a random classifier with real arithmetic: embeddings, masked mean, linear layer."""
    from tests.bundles import write_bundle

    directory = tmp_path_factory.mktemp("tiny") / "build" / "tiny" / "bundle"
    directory.mkdir(parents=True)
    write_bundle(directory)
    return directory
