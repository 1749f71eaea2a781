"""What is answered beside plain JSON: errors of one line, and pages that a browser may not be led astray by."""

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.responses import JSONResponse, Response

__all__ = ["Page", "error_response"]

_SCRIPT = re.compile(r"<script[^>]*>(.*?)</script>", re.DOTALL | re.IGNORECASE)


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error as `{"error": "one line"}`."""
    # a caller's own key may hold a line break
    return JSONResponse({"error": " ".join(message.splitlines())}, status_code=status, headers=headers)


@dataclass(frozen=True, slots=True)
class Page:
    """A self-contained HTML page with the policy that its browser keeps.

    Attributes:
        content: UTF-8.
        policy: its `Content-Security-Policy` (https://www.w3.org/TR/CSP3/).
    """

    content: bytes
    policy: str

    @classmethod
    def of(cls, html: str) -> "Page":
        """A page that loads nothing, runs its own inline scripts alone, and asks this service alone.

        Attributes like `onclick` do not run: scripts are told by their hash.
        """
        hashes = " ".join(_hash(script) for script in _SCRIPT.findall(html))
        scripts = f"script-src {hashes}; connect-src 'self'; " if hashes else ""
        policy = (
            f"default-src 'none'; {scripts}style-src 'unsafe-inline'; img-src data:; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return cls(html.encode(), policy)

    def response(self) -> Response:
        """The page with its headers."""
        headers = {"Content-Security-Policy": self.policy, "Referrer-Policy": "no-referrer"}
        return Response(self.content, media_type="text/html", headers=headers)


def _hash(script: str) -> str:
    # a browser hashes what its parser made of the page, in which every line break is one character
    text = script.replace("\r\n", "\n").replace("\r", "\n")
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
