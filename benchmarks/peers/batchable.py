"""What BentoML offers of its own for batches, as a peer: `bentoml serve benchmarks.peers.batchable:Batchable`.

The same bundle, tokenizer and answers as the service; batches are BentoML's, counted in rows and padded to the longest.
"""

import os

import bentoml

from bundle import Predictor
from tasks import Answer
from tasks.inputs import input_from_json

__all__ = ["Batchable"]

_BUNDLE = os.environ["PARITYBIT_BUNDLE"]


@bentoml.service(workers=1)
class Batchable:
    """A batchable endpoint with BentoML's defaults."""

    def __init__(self) -> None:
        """Opens the bundle, with as many threads as the service would take."""
        threads = os.environ.get("PARITYBIT_THREADS")
        self._predictor = Predictor.load(_BUNDLE, threads=int(threads) if threads else None)
        self._predictor.warm_up()
        self._parameters = self._predictor.parameters({})

    @bentoml.api(batchable=True)  # type: ignore[untyped-decorator]
    def predict(self, inputs: list[str]) -> list[Answer]:
        """Answers the texts of all requests that BentoML put into the batch."""
        predictor = self._predictor
        read = [input_from_json(text, predictor.task.input_types) for text in inputs]
        encoded = predictor.task.encode(predictor.tokenizer, read)
        return predictor.task.decode(predictor.run_batch(encoded.windows), encoded, self._parameters)
