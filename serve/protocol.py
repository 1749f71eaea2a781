"""uvicorn's faster HTTP parser, with an end to the headers of a request, and a door that can be shut.

uvicorn takes httptools where it is installed, which reads a request in a fraction of the time that h11 needs, but keeps
reading headers as long as a client sends some. h11 stops, and so does this.

Beyond saturation most requests are refused. A doorman does it as soon as the head is read, so that none of the layers
above costs anything.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import uvicorn.protocols.http.auto
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["MAX_HEAD_BYTES", "BoundedHttpToolsProtocol", "Doorman", "use_bounded_protocol"]

Doorman = Callable[[bytes, bytes], ASGIApp | None]
"""Of a request's method and target: what answers it in the application's place, if anything does."""

MAX_HEAD_BYTES = 16_384
"""Of a request before its body: its line and all headers; as h11 has it."""


class BoundedHttpToolsProtocol(HttpToolsProtocol):
    """Answers 400 and closes when a request's head is too long; asks the doorman about the others."""

    _in_head = False
    _received = 0
    _read = 0

    def __init__(self, *arguments: Any, doorman: Doorman | None = None, **names: Any) -> None:
        """What uvicorn gives, and the doorman."""
        super().__init__(*arguments, **names)
        self._doorman = doorman

    def data_received(self, data: bytes) -> None:
        """Feeds the parser, and gives up on a head that has no end."""
        super().data_received(data)
        if self._in_head:
            self._received += len(data)
            if self._received > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response(f"expected at most {MAX_HEAD_BYTES} bytes of headers")

    def on_message_begin(self) -> None:
        """A new head."""
        super().on_message_begin()
        self._in_head, self._received, self._read = True, 0, 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """A whole header; what is raised here the parser turns into a 400."""
        self._read += len(name) + len(value)
        if self._read > MAX_HEAD_BYTES:
            raise ValueError("too many headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head's end."""
        self._in_head = False
        application = self.app
        instead = self._doorman(self.parser.get_method(), self.url) if self._doorman else None
        self.app = instead or application
        super().on_headers_complete()
        self.app = application


def use_bounded_protocol(doorman: Doorman) -> None:
    """Makes it what uvicorn takes when nobody says which; BentoML does not."""
    made = partial(BoundedHttpToolsProtocol, doorman=doorman)
    uvicorn.protocols.http.auto.AutoHTTPProtocol = made  # type: ignore[assignment]  # it is only ever called
