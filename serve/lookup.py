"""Which bundle is served: the one that was named, else the newest that an export left nearby."""

import json
from collections.abc import Sequence
from pathlib import Path

from bundle.manifest import MANIFEST_FILE
from tasks.errors import BundleError

__all__ = ["SOURCE_ROOT", "find_bundle"]

SOURCE_ROOT = Path(__file__).resolve().parent.parent
"""The folder of this source tree: a checkout, or `src` of a Bento."""

_PATTERN = f"build/*/bundle/{MANIFEST_FILE}"


def find_bundle(configured: Path | None, folders: Sequence[Path] = ()) -> Path:
    """The bundle directory to serve.

    Args:
        configured: the bundle that an operator named; it is taken as it is.
        folders: where to look for `build/*/bundle`; the source tree and the current folder when empty.

    Raises:
        BundleError: if none was named and none is found.
    """
    if configured is not None:
        return configured
    roots = dict.fromkeys(folder.resolve() for folder in folders or (SOURCE_ROOT, Path.cwd()))
    manifests = [manifest for root in roots for manifest in root.glob(_PATTERN)]
    if not manifests:
        looked = " or ".join(str(root / "build/*/bundle") for root in roots)
        raise BundleError(
            f"no bundle at {looked}; make one with `paritybit export CHECKPOINT` or name one in PARITYBIT_BUNDLE"
        )
    return max(manifests, key=_created).parent


def _created(manifest: Path) -> str:
    """`created` of a manifest; an unreadable one counts as the oldest and is complained of when it is opened."""
    try:
        return str(json.loads(manifest.read_bytes())["created"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
