"""The graphs that export made of a checkpoint: all candidates where they were kept, else what the bundle holds."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from bundle.manifest import VARIANTS, VARIANTS_FILE, SessionSettings, read_manifest
from tasks import ParitybitError

__all__ = ["OnnxVariant", "read_variants"]


@dataclass(frozen=True, slots=True)
class OnnxVariant:
    """A graph to time; `verdict` is that of its gates, and only a passing one is ever served."""

    path: Path
    verdict: str
    session: SessionSettings


def read_variants(bundle: Path) -> dict[str, OnnxVariant]:
    """All candidates in the folder `variants` beside the bundle, or the bundle's own variants when there is none.

    Raises:
        ParitybitError: if `variants.json` cannot be read or names a file that is not there.
    """
    path = bundle.parent / "variants" / VARIANTS_FILE
    if path.is_file():
        try:
            found, folder = VARIANTS.validate_json(path.read_bytes()), path.parent
        except ValidationError as error:
            first = error.errors()[0]
            raise ParitybitError(f"{path}: {'.'.join(map(str, first['loc'])) or 'content'}: {first['msg']}") from None
    else:
        found, folder = read_manifest(bundle).variants, bundle
    variants = {name: OnnxVariant(folder / one.file, one.verdict, one.session) for name, one in found.items()}
    for name, variant in variants.items():
        if not variant.path.is_file():
            raise ParitybitError(f"{variant.path}: {name} is missing; run export again")
    return variants
