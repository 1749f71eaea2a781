"""uvicorn's faster HTTP parser, with an end to the headers of a request.

uvicorn takes httptools where it is installed, which reads a request in a fraction of the time that h11 needs, but keeps
reading headers as long as a client sends some. h11 stops, and so does this.
"""

import uvicorn.protocols.http.auto
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["MAX_HEAD_BYTES", "BoundedHttpToolsProtocol", "use_bounded_protocol"]

MAX_HEAD_BYTES = 16_384
"""Of a request before its body: its line and all headers; as h11 has it."""


class BoundedHttpToolsProtocol(HttpToolsProtocol):
    """Answers 400 and closes when a request's head is too long."""

    _in_head = False
    _received = 0
    _read = 0

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
        super().on_headers_complete()


def use_bounded_protocol() -> None:
    """Makes it what uvicorn takes when nobody says which; BentoML does not."""
    uvicorn.protocols.http.auto.AutoHTTPProtocol = BoundedHttpToolsProtocol
