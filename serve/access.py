"""The doors of the service: who may come in, and the one line of the log about each visit."""

import json
import logging
import re
import sys
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.keys import is_known
from serve.queue import Usage
from serve.responses import error_response

__all__ = ["GONE", "AccessLog", "KeyCheck", "open_access_log"]

GONE = 499
"""Status of a request whose client did not wait; nobody reads it but the log, in which proxies write it too."""

_LOG = logging.getLogger("bentoml.paritybit")
_ACCESS_LOG = logging.getLogger("paritybit.access")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)
_OPEN = re.compile(r"/ui|/metrics|/v2/(health/(live|ready)|models/[^/]+/ready)", re.ASCII)
"""Paths that ask for no key, as BentoML's own probes do not: whoever probes has none."""


class AccessLog:
    """Gives each request an id, counts it, and writes a line of JSON, in which neither its text nor its key stands."""

    def __init__(self, app: ASGIApp) -> None:
        """Wraps an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request (https://asgi.readthedocs.io/en/latest/specs/www.html)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin = time.perf_counter()
        asked = Headers(scope=scope).get("x-request-id", "")
        request_id = asked if _REQUEST_ID.fullmatch(asked) else uuid.uuid4().hex
        usage = scope.setdefault("state", {})["usage"] = Usage()
        status = None

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception:
            _LOG.exception("request %s failed", request_id)
            if status is None:
                response = error_response(500, "an unexpected error; the server's log has it")
                await response(scope, receive, send_with_headers)
        finally:
            seconds = time.perf_counter() - begin
            status = status or GONE
            scope["app"].state.engine.metrics.served(_route(scope), status, seconds)
            _ACCESS_LOG.info(json.dumps(_line(request_id, scope, status, seconds, usage)))


class KeyCheck:
    """Answers 401 to who has none of the keys, before a body is read. Without keys everybody may ask."""

    def __init__(self, app: ASGIApp) -> None:
        """Wraps an application, whose `state` holds the digests of the keys and the engine."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http" or _may_enter(scope):
            await self._app(scope, receive, send)
            return
        scope["app"].state.engine.metrics.rejected.labels("unauthorized").inc()
        headers = {"WWW-Authenticate": "Bearer"}
        response = error_response(401, "expected a key of this service: Authorization: Bearer KEY", headers)
        await response(scope, receive, send)


def _may_enter(scope: Scope) -> bool:
    if _OPEN.fullmatch(scope["path"]):
        return True
    keys = scope["app"].state.keys
    return not keys or is_known(Headers(scope=scope).get("authorization"), keys)


def open_access_log() -> None:
    """Our lines go to standard output as they are."""
    if not _ACCESS_LOG.handlers:
        _ACCESS_LOG.addHandler(logging.StreamHandler(sys.stdout))
        _ACCESS_LOG.setLevel(logging.INFO)
        _ACCESS_LOG.propagate = False


def _route(scope: Scope) -> str:
    """The path as the application knows it: what callers make up must not become time series."""
    endpoint = scope.get("endpoint")
    return next((route.path for route in scope["app"].routes if route.endpoint is endpoint), "other")


def _line(request_id: str, scope: Scope, status: int, seconds: float, usage: Usage) -> dict[str, Any]:
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "request_id": request_id,
        "method": scope["method"],
        "path": scope["path"],
        "status": status,
        "ms": round(seconds * 1000, 3),
        "tokens": usage.tokens,
        "wait_ms": round(usage.wait_s * 1000, 3),
        "engine_ms": round(usage.engine_s * 1000, 3),
    }
