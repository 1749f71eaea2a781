import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.base_model import digest_of_model, open_base_model, resolve_base_model
from tasks.errors import RecipeError
from tests.toy import write_toy_data, write_toy_recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture
def package(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that may be found but not imported."""
    folder = tmp_path / "site" / "toy_weights"
    shutil.copytree(tiny_base, folder / "model")
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(folder.parent)
    return folder


def test_a_package_is_found_without_being_imported(package: Path) -> None:
    assert resolve_base_model("package:toy_weights/model") == str(package / "model")
    assert "toy_weights" not in sys.modules


def test_what_is_missing_is_said(package: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="'toy_weights' holds no model in 'other'"):
        resolve_base_model("package:toy_weights/other")
    with pytest.raises(RecipeError, match="'no_such_weights' is not installed; expected: pip install no-such-weights"):
        resolve_base_model("package:no_such_weights/model")
    with pytest.raises(RecipeError, match="no such directory"):
        resolve_base_model(str(tmp_path / "none"))
    with pytest.raises(RecipeError, match=r"holds no config\.json"):
        resolve_base_model(str(tmp_path))


def test_anything_else_is_a_hub_id() -> None:
    assert resolve_base_model("owner/model") == "owner/model"
    assert digest_of_model("owner/no-such-model-in-any-cache") == "owner/no-such-model-in-any-cache"


def test_the_digest_knows_weights_configuration_and_tokenizer(tiny_base: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_base, copy)
    (copy / "README.md").write_text("not a part of the model")
    seen = {digest_of_model(str(tiny_base))}
    assert seen == {digest_of_model(str(copy))}
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        with (copy / name).open("ab") as file:
            file.write(b" ")
        seen.add(digest_of_model(str(copy)))
    assert len(seen) == 4


def test_a_model_without_a_tokenizer(tiny_base: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_base, copy, ignore=lambda *_: ["tokenizer.json", "tokenizer_config.json"])
    with pytest.raises(RecipeError, match="cannot be opened: its tokenizer has no vocabulary"):
        open_base_model(str(copy), 16)


def test_our_tokenizer_says_what_transformers_says(tiny_base: Path) -> None:
    base = open_base_model(str(tiny_base), 12)
    texts = ["Where is the cat?", "zebra " * 20, "a dog"]
    ours = [window.input_ids.tolist() for window in base.tokenizer.encode([(text, None) for text in texts])]
    assert ours == base.hf_tokenizer(texts, truncation=True, max_length=12)["input_ids"]


HUB = """
import sys
from pathlib import Path
from finetune.base_model import digest_of_model
from finetune.checkpoint import load_checkpoint
from finetune.recipe import load_recipe
from finetune.training import finetune
recipe = load_recipe(Path(sys.argv[1]), ["base_model=toys/tiny", "train.epochs=1"])
result = finetune(recipe, Path(sys.argv[2]))
assert not result.reused and finetune(recipe, Path(sys.argv[2])).reused
assert len(digest_of_model("toys/tiny")) == 64
checkpoint = load_checkpoint("toys/tuned")
assert checkpoint.spec.labels == ("animal", "food", "vehicle"), checkpoint.spec
"""


def test_hub_models_work_offline_from_the_cache(tiny_base: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    for name, source in {"tiny": tiny_base, "tuned": tiny_checkpoint}.items():
        model = tmp_path / "hub" / f"models--toys--{name}"
        ignored = shutil.ignore_patterns("task.json", "run.json", "metrics.json")
        shutil.copytree(source, model / "snapshots" / commit, ignore=ignored)
        (model / "refs").mkdir()
        (model / "refs" / "main").write_text(commit)
    data = write_toy_data(tmp_path / "data")
    recipe = write_toy_recipe(data, tiny_base)
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    command = [sys.executable, "-c", HUB, str(recipe), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
