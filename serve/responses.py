"""What is answered to a request that cannot be served."""

from collections.abc import Mapping

from starlette.responses import JSONResponse, Response

__all__ = ["error_response"]


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error as `{"error": "one line"}`."""
    # a caller's own key may hold a line break
    return JSONResponse({"error": " ".join(message.splitlines())}, status_code=status, headers=headers)
