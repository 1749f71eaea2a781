"""Contract 2: `manifest.json`, from which alone serving takes its settings."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from tasks.base import TaskSpec
from tasks.directory import sha256_of
from tasks.errors import BundleError

__all__ = [
    "CERTIFICATE_FILE",
    "GOLDEN_FILE",
    "MANIFEST_FILE",
    "MODEL_FILE",
    "SCHEMA_VERSION",
    "VARIANTS",
    "VARIANTS_FILE",
    "FileInfo",
    "Manifest",
    "SessionSettings",
    "TensorInfo",
    "Variant",
    "read_manifest",
    "verify_files",
]

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"
MODEL_FILE = "model.onnx"
GOLDEN_FILE = "golden.jsonl"
CERTIFICATE_FILE = "certificate.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorInfo(_Frozen):
    """A graph input or output; an axis is a fixed size or the name of a dynamic one."""

    name: str
    dtype: str
    axes: tuple[int | str, ...]


class FileInfo(_Frozen):
    """What a file of the bundle must be, byte for byte."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class SessionSettings(_Frozen):
    """How the ONNX Runtime session of a variant was opened when it was certified."""

    disabled_optimizers: tuple[str, ...] = ()


class Variant(_Frozen):
    """One certified graph of the same checkpoint.

    Attributes:
        needs_exact_int8: whether its int8 weights use the full range, so that its sums are the certified ones only on a
            processor of `bundle.cpu.sums_int8_exactly`.
    """

    file: str
    verdict: Literal["pass", "fail"]
    session: SessionSettings = SessionSettings()
    needs_exact_int8: bool = False


VARIANTS_FILE = "variants.json"
VARIANTS = TypeAdapter(dict[str, Variant])
"""`variants.json` of the folder `variants` beside a bundle: every candidate, also those that did not win or pass."""


class Manifest(_Frozen):
    """`manifest.json`: written last, so its existence means that the bundle is whole."""

    schema_version: int
    name: str
    task: TaskSpec
    pad_token_id: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    files: dict[str, FileInfo]
    default_variant: str
    variants: dict[str, Variant]
    golden_tolerance: float = Field(gt=0)
    checkpoint_digest: str
    inputs_digest: str
    opset: int
    versions: dict[str, str]
    instruction_set: tuple[str, ...]
    created: str
    verdict: Literal["pass", "fail"]

    @property
    def variant(self) -> Variant:
        """The variant that is served."""
        return self.variants[self.default_variant]


def read_manifest(bundle: Path) -> Manifest:
    """Reads and judges a bundle's manifest; the files themselves are `verify_files`' matter.

    Raises:
        BundleError: if it is missing, malformed, of an unknown schema, or its verdict is not `pass`.
    """
    path = bundle / MANIFEST_FILE
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(f"{bundle}: not a bundle ({MANIFEST_FILE} is missing)") from None
    try:
        version = _SchemaOnly.model_validate_json(content).schema_version
        if version != SCHEMA_VERSION:
            raise BundleError(f"{path}: schema_version {version}; this version reads {SCHEMA_VERSION}")
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise BundleError(f"{path}: {'.'.join(map(str, first['loc'])) or 'content'}: {first['msg']}") from None
    _judge(path, manifest)
    return manifest


def verify_files(bundle: Path, manifest: Manifest) -> None:
    """Compares every file with its size and SHA-256.

    Raises:
        BundleError: naming the first file that is missing or was changed.
    """
    for name, expected in manifest.files.items():
        path = bundle / name
        if not path.is_file():
            raise BundleError(f"{path}: missing; the manifest lists it")
        size = path.stat().st_size
        if size != expected.size:
            raise BundleError(f"{path}: changed: {size} bytes, expected {expected.size}")
        if sha256_of(path) != expected.sha256:
            raise BundleError(f"{path}: changed: its SHA-256 is not the manifest's")


class _SchemaOnly(BaseModel):
    schema_version: int


def _judge(path: Path, manifest: Manifest) -> None:
    if manifest.default_variant not in manifest.variants:
        raise BundleError(f"{path}: default_variant {manifest.default_variant!r} is not among the variants")
    if manifest.verdict != "pass" or manifest.variant.verdict != "pass":
        raise BundleError(f"{path}: the certificate's verdict is {manifest.verdict!r}, not 'pass'; it is not served")
    for name in [manifest.variant.file, "tokenizer.json", GOLDEN_FILE]:
        if name not in manifest.files:
            raise BundleError(f"{path}: files does not list {name}")
    for name in manifest.files:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise BundleError(f"{path}: files: {name!r} points out of the bundle")
