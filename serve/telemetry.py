"""Nothing is sent that the user did not ask for: the switches of the libraries that would."""

import os
import sys

__all__ = ["SWITCHES", "switch_off_telemetry"]

SWITCHES = {
    "BENTOML_DO_NOT_TRACK": "True",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",
}
"""Environment variables that the libraries read; ONNX Runtime reads its own when it is imported, never again."""

_USAGE_STATS = "bentoml._internal.utils.analytics.usage_stats"


def switch_off_telemetry() -> None:
    """Sets every switch that the user has not set. Call it before BentoML and ONNX Runtime are imported.

    `bentoml serve` and `bentoml build` are BentoML's own processes: they have asked, and remembered the answer, before
    they import our service. They are made to ask again.
    """
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
    usage_stats = sys.modules.get(_USAGE_STATS)
    if usage_stats is not None:
        usage_stats.do_not_track.cache_clear()
