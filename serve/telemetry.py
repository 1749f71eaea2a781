"""What is told of the service: metrics to whoever asks for them; nothing is sent that the user did not ask for."""

import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it is imported before everything else, to switch off what other imports would begin
    from tasks import Answer, TaskSpec

__all__ = ["METRICS_TYPE", "SWITCHES", "Metrics", "scrape", "switch_off_telemetry"]

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of `scrape` (https://prometheus.io/docs/instrumenting/exposition_formats)."""

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


_MOST_LABELS = 100
"""Labels of a task whose answers are counted by label at most; each is a time series of its own."""


class Metrics:
    """Prometheus metrics of one engine, in no registry's name: `scrape` reads the files that all workers' leave."""

    def __init__(self, task: "TaskSpec") -> None:
        """Metrics that have counted nothing yet."""
        # here, in a worker that has its directory, and not with this module
        from prometheus_client import Counter, Histogram

        self._task = task
        self.batch_tokens = Histogram(
            "paritybit_batch_tokens",
            "Tokens of a micro-batch, without padding.",
            buckets=[2**power for power in range(3, 14)],
            registry=None,
        )
        self.padding = Histogram(
            "paritybit_batch_padding_ratio",
            "Share of a micro-batch's tokens that are padding.",
            buckets=[0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5],
            registry=None,
        )
        self.engine = Histogram(
            "paritybit_engine_seconds", "Seconds of a micro-batch.", buckets=_SECONDS, registry=None
        )
        self.wait = Histogram(
            "paritybit_queue_wait_seconds",
            "Seconds until a request's first window reached the engine.",
            buckets=_SECONDS,
            registry=None,
        )
        self.rejected = Counter(
            "paritybit_rejected_requests", "Requests that were not answered.", ["reason"], registry=None
        )
        self.requests = Counter(
            "paritybit_requests", "Requests by route and status.", ["path", "status"], registry=None
        )
        self.seconds = Histogram(
            "paritybit_request_seconds",
            "Seconds from a request's headers to the end of its answer.",
            ["path"],
            buckets=_SECONDS,
            registry=None,
        )
        self.labels = Counter("paritybit_answers", "Answers that carry a label.", ["label"], registry=None)

    def served(self, path: str, status: int, seconds: float) -> None:
        """A request: the path of its route, the status of its answer, and its time."""
        self.requests.labels(path, status).inc()
        self.seconds.labels(path).observe(seconds)

    def ran(self, lengths: Sequence[int], seconds: float, waits: Sequence[float]) -> None:
        """A micro-batch: tokens of its windows, its time, and the waits of the requests that it began."""
        self.batch_tokens.observe(sum(lengths))
        self.padding.observe(1 - sum(lengths) / (len(lengths) * max(lengths)))
        self.engine.observe(seconds)
        for wait in waits:
            self.wait.observe(wait)

    def answered(self, answers: "Sequence[Answer]") -> None:
        """Counts answers by label, whose shares drift when the texts do."""
        if len(self._task.labels) <= _MOST_LABELS:
            for answer in answers:
                for label in _labels(self._task.task, answer):
                    self.labels.labels(label).inc()


def scrape() -> bytes:
    """What the metrics of all workers of this server count, in Prometheus' text format.

    BentoML names the directory in which they meet (https://prometheus.github.io/client_python/multiprocess).
    """
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


_SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0]


def _labels(task: str, answer: "Answer") -> Iterator[str]:
    """The labels that an answer decides for: none of a number or of an answer in a text."""
    match task:
        case "single_label":
            yield answer["labels"][0]["label"]
        case "multi_label":
            yield from (entry["label"] for entry in answer["labels"])
        case "token_classification":
            yield from (entity["label"] for entity in answer["entities"])
