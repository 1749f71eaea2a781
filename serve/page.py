"""The page at `/ui`, on which a person tries the model: one file, whose policy lets nothing else in or out."""

import re
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

__all__ = ["html_page", "page_headers", "page_route"]

_FILE = Path(__file__).with_name("page.html")


def page_route() -> Route:
    """The route of the page; the file is read once, here."""
    content = _FILE.read_text(encoding="utf-8")

    async def page(_: Request) -> Response:
        return html_page(content)

    return Route("/ui", page, methods=["GET"])


def html_page(content: str) -> Response:
    """The answer that is a self-contained page."""
    return HTMLResponse(content, headers=page_headers(content))


def page_headers(content: str) -> Mapping[str, str]:
    """Headers with which a page's own script and style work, and nothing else does.

    They are allowed by their hashes (Content Security Policy Level 3, https://www.w3.org/TR/CSP3/#match-element-to-source-list);
    trusted types forbid that a text becomes markup; requests go to the service alone.

    Args:
        content: HTML with inline `<script>` and `<style>` elements, both without attributes.
    """
    policy = {
        "default-src": "'none'",
        "script-src": _hashes("script", content),
        "style-src": _hashes("style", content),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{directive} {sources}" for directive, sources in policy.items()),
        "Cache-Control": "no-cache",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }


def _hashes(tag: str, content: str) -> str:
    """Source expressions of the inline elements of a tag; `'none'` where there are none."""
    texts = re.findall(rf"<{tag}>(.*?)</{tag}>", content, re.DOTALL)
    digests = [sha256(text.encode()).digest() for text in texts]
    return " ".join(f"'sha256-{b64encode(digest).decode()}'" for digest in digests) or "'none'"
