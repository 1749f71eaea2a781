"""The deployed artefact: manifest, checksums, the ONNX Runtime session and `Predictor`; free of torch and transformers.

from bundle import Predictor
Predictor.load("build/banking77/bundle")(["Where is my card?"])
"""

from bundle.manifest import Manifest, read_manifest
from bundle.predictor import GoldenReport, Predictor

__all__ = ["GoldenReport", "Manifest", "Predictor", "read_manifest"]
