"""Makes a Bento that holds exactly one bundle: `python -m serve.bento build/banking77/bundle`."""

import re
import shutil
import sys
import tempfile
from pathlib import Path

import bentoml

from bundle.manifest import Manifest, read_manifest, verify_files
from serve.lookup import SOURCE_ROOT
from serve.requirements import LOCK_FILE
from tasks.errors import ParitybitError

__all__ = ["build_bento"]

_ROOMS = ("serve", "bundle", "tasks")


def build_bento(bundle: Path) -> str:
    """Builds a Bento of the service and this bundle, which its lookup finds without configuration.

    Args:
        bundle: the bundle directory; its files are verified first.

    Returns:
        The Bento's tag, `paritybit-NAME:VERSION`.

    Raises:
        BundleError: if the bundle is missing, damaged or not certified.
    """
    manifest = read_manifest(bundle)
    verify_files(bundle, manifest)
    name = _tag_name(manifest.name)
    with tempfile.TemporaryDirectory(prefix="paritybit-bento-") as folder:
        context = Path(folder)
        for room in _ROOMS:
            ignore = shutil.ignore_patterns("__pycache__", LOCK_FILE)
            shutil.copytree(SOURCE_ROOT / room, context / room, ignore=ignore)
        shutil.copytree(bundle, context / "build" / name / "bundle")
        bento = bentoml.build(
            "serve.service:ParitybitService",
            name=f"paritybit-{name}",
            build_ctx=str(context),
            include=["*"],
            description=_description(manifest),
            labels={"task": manifest.task.task, "checkpoint": manifest.checkpoint_digest[:12]},
        )
    return str(bento.tag)


def main(arguments: list[str]) -> int:
    """Entry point: prints the tag alone on standard output, so that a script can take it."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m serve.bento BUNDLE\n")
        return 2
    try:
        tag = build_bento(Path(arguments[0]))
    except ParitybitError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.write(f"{tag}\n")
    return 0


def _tag_name(name: str) -> str:
    """A bundle's name as BentoML takes it in a tag: lower case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "model"


def _description(manifest: Manifest) -> str:
    return (
        f"# {manifest.name}\n\n{manifest.task.task} with {len(manifest.task.labels)} labels, variant "
        f"{manifest.default_variant}, checkpoint {manifest.checkpoint_digest}.\nServed without PyTorch by paritybit.\n"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
