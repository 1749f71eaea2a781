"""The graphs that export made of a checkpoint: all candidates where they were kept, else what the bundle holds."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from bundle.manifest import SessionSettings, read_manifest
from tasks import ParitybitError

__all__ = ["VARIANTS_FILE", "OnnxVariant", "read_variants"]

VARIANTS_FILE = "variants.json"


@dataclass(frozen=True, slots=True)
class OnnxVariant:
    """A graph to time; `verdict` is that of its gates, and only a passing one is ever served."""

    path: Path
    verdict: str
    session: SessionSettings


class _Entry(BaseModel):
    # what else export tells of a variant is no matter here
    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    file: str
    verdict: str
    session: SessionSettings = SessionSettings()


def read_variants(bundle: Path) -> dict[str, OnnxVariant]:
    """All candidates in the folder `variants` beside the bundle, or the bundle's own variants when there is none.

    Raises:
        ParitybitError: if `variants.json` cannot be read or names a file that is not there.
    """
    path = bundle.parent / "variants" / VARIANTS_FILE
    if not path.is_file():
        own = read_manifest(bundle).variants
        return {name: OnnxVariant(bundle / one.file, one.verdict, one.session) for name, one in own.items()}
    try:
        entries = TypeAdapter(list[_Entry]).validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        raise ParitybitError(f"{path}: {'.'.join(map(str, first['loc'])) or 'content'}: {first['msg']}") from None
    variants = {one.name: OnnxVariant(path.parent / one.file, one.verdict, one.session) for one in entries}
    for name, variant in variants.items():
        if not variant.path.is_file():
            raise ParitybitError(f"{path}: {name}: {variant.path.name} is missing; run export again")
    return variants
