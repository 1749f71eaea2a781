"""What a bundle's certificate says to callers: its page, and a summary of its gates."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from bundle import Predictor
from bundle.manifest import CERTIFICATE_FILE

__all__ = ["CertificateSummary", "GateSummary", "MetricSummary", "read_certificate", "read_certificate_page"]

_PAGE_FILE = "certificate.html"


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class GateSummary(_Read):
    """One limit and what was measured of the published variant."""

    name: str
    relation: Literal["<=", ">="]
    limit: FiniteFloat
    value: FiniteFloat
    passed: bool


class MetricSummary(_Read):
    """The task's metric on the test rows: of the published variant, and of PyTorch."""

    name: str
    value: FiniteFloat
    pytorch: FiniteFloat


class CertificateSummary(_Read):
    """What was certified."""

    verdict: str
    published: str
    created: str
    test_rows: int
    metric: MetricSummary
    gates: tuple[GateSummary, ...]


def read_certificate(predictor: Predictor) -> CertificateSummary | None:
    """The summary of the bundle's certificate; None where it has none that this version reads.

    Serving takes no setting from it, so a certificate of another version is no reason not to serve.
    """
    if CERTIFICATE_FILE not in predictor.manifest.files:
        return None
    try:
        certificate = _Certificate.model_validate_json((predictor.directory / CERTIFICATE_FILE).read_bytes())
        return certificate.summary()
    except (ValidationError, KeyError):
        return None


def read_certificate_page(predictor: Predictor) -> str | None:
    """The certificate for people, HTML; None where the manifest lists none, whatever lies in the folder."""
    if _PAGE_FILE not in predictor.manifest.files:
        return None
    return (predictor.directory / _PAGE_FILE).read_text(encoding="utf-8")


class _Variant(_Read):
    name: str
    metrics: dict[str, float]
    gates: tuple[Any, ...]  # of a variant that failed they may be no numbers


class _Evidence(_Read):
    test_rows: int


class _Certificate(_Read):
    schema_version: Literal[1]
    verdict: str
    created: str
    primary_metric: str
    pytorch: dict[str, float]
    published: str
    evidence: _Evidence
    variants: Sequence[_Variant]

    def summary(self) -> CertificateSummary:
        """Raises KeyError where what is named is not there."""
        published = {variant.name: variant for variant in self.variants}[self.published]
        name = self.primary_metric
        return CertificateSummary(
            verdict=self.verdict,
            published=self.published,
            created=self.created,
            test_rows=self.evidence.test_rows,
            metric=MetricSummary(name=name, value=published.metrics[name], pytorch=self.pytorch[name]),
            gates=tuple(map(GateSummary.model_validate, published.gates)),
        )
