"""Graphs that torch has traced already."""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedModel

from export.graph import GraphInfo


@dataclass(frozen=True, slots=True)
class TracedOnce:
    """`export_graph`, which copies the file it wrote for the same configuration and weights before."""

    export_graph: Callable[[PreTrainedModel, Path, int], GraphInfo]
    folder: Path
    _known: dict[str, GraphInfo] = field(default_factory=dict)

    def __call__(self, model: PreTrainedModel, path: Path, opset: int) -> GraphInfo:
        digest = hashlib.sha256(f"{model.config.to_json_string()} {opset}".encode())
        for name, weights in sorted(model.state_dict().items()):
            digest.update(name.encode() + weights.numpy().tobytes())
        kept = self.folder / f"{digest.hexdigest()}.onnx"
        if kept.name not in self._known:
            self._known[kept.name] = self.export_graph(model, kept, opset)
        shutil.copyfile(kept, path)
        return self._known[kept.name]
