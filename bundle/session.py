"""The one place that opens ONNX Runtime sessions, so that its telemetry is off wherever paritybit runs it."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

# read when the library is loaded: a call after the import comes too late
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import numpy.typing as npt
import onnxruntime

from bundle.cpu import available_cpus
from bundle.huge_pages import HugePages
from bundle.manifest import SessionSettings, TensorInfo
from tasks.errors import BundleError

__all__ = ["Session"]

_MUCH_LARGER = 1.25
"""Times the largest batch so far: ONNX Runtime allocates more for such a one, which is then moved as well."""


class Session:
    """An ONNX Runtime CPU session that is fed by name and takes only what its graph asks for."""

    def __init__(
        self,
        model: Path,
        settings: SessionSettings = SessionSettings(),
        threads: int | None = None,
        spinning: bool = True,
    ) -> None:
        """Opens the model.

        Args:
            model: the ONNX file.
            settings: as certified.
            threads: of one run; all that affinity and cgroup quota give when None.
            spinning: whether idle threads spin for work; faster alone, slower where processes share processors.

        Raises:
            BundleError: if ONNX Runtime cannot load the model.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or available_cpus()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if not spinning:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._pages, self._largest = HugePages(), 0
        try:
            self._session = onnxruntime.InferenceSession(
                str(model),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=list(settings.disabled_optimizers),
            )
        except Exception as error:  # the binding raises several unrelated types
            raise BundleError(f"{model}: ONNX Runtime cannot load it: {error}") from None
        self._pages.claim()
        self.threads = options.intra_op_num_threads
        self.inputs = tuple(_tensor_info(node) for node in self._session.get_inputs())
        self.outputs = tuple(_tensor_info(node) for node in self._session.get_outputs())
        self._names = [info.name for info in self.inputs]

    def run(self, batch: Mapping[str, npt.NDArray[np.int64]]) -> npt.NDArray[np.float32]:
        """The graph's first output, shape `[batch, …]`."""
        return np.asarray(self.run_all(batch, [self.outputs[0].name])[0])

    def run_all(
        self, batch: Mapping[str, npt.NDArray[np.int64]], outputs: Sequence[str] | None = None
    ) -> list[npt.NDArray[np.float32]]:
        """The named outputs, or all of them; inputs that the graph does not have are left out."""
        found = list(self._session.run(outputs, {name: batch[name] for name in self._names}))
        size = batch[self._names[0]].size
        if size > _MUCH_LARGER * self._largest:
            self._largest = size
            self._pages.claim()
        return found


def _tensor_info(node: onnxruntime.NodeArg) -> TensorInfo:
    return TensorInfo(name=node.name, dtype=node.type.removeprefix("tensor(").removesuffix(")"), axes=tuple(node.shape))
