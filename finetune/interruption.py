"""Ctrl-C and SIGTERM as something that a stage ends of in good order."""

import signal
import threading
from types import FrameType
from typing import Any, Self

from tasks.errors import InterruptionError

__all__ = ["FirstSignal"]


class FirstSignal:
    """Remembers the first SIGINT or SIGTERM while it is entered; the second acts as it always does.

    Attributes:
        received: the signal's number; None as long as none came.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        # elsewhere Python does not allow signal handlers
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def raise_if_received(self, place: str = "") -> None:
        """Raises InterruptionError, which says how to go on, if a signal came.

        Args:
            place: where the work stands, as it follows the signal's name.
        """
        if self.received is not None:
            name = signal.Signals(self.received).name
            again = "run the same command again to go on from there"
            raise InterruptionError(f"stopped by {name}{place}; {again}", self.received)

    def _receive(self, number: int, _: FrameType | None) -> None:
        self.received = number
        self.__exit__()
