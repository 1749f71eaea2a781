"""OpenVINO behind the engine callable, imported by a worker of the peer's own Python only."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino

__all__ = ["openvino_engine"]


def openvino_engine(*, model: str, threads: int) -> Any:
    """A compiled graph; numpy arrays in and out, as ONNX Runtime is fed.

    Args:
        model: an `.xml` of OpenVINO, or an ONNX file.
        threads: of one run.
    """
    core = openvino.Core()
    compiled = core.compile_model(
        model, "CPU", {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    )
    request = compiled.create_infer_request()
    names = [port.get_any_name() for port in compiled.inputs]

    def run(batch: Mapping[str, npt.NDArray[np.int64]]) -> object:
        return request.infer({name: batch[name] for name in names}, share_inputs=True)

    return run
