"""Clients of the service: `Client`, and `AsyncClient` for asyncio. They need httpx and `tasks`, nothing of a server.

What to ask, when to ask again and what an answer means are generators that yield each attempt and are sent its outcome;
the two clients only carry attempts out.

ServiceError           the service failed, or what answered is no paritybit service
├── RefusedError       it will not answer this, however often it is asked: a 4xx
├── UnavailableError   it could not take the request before the time was over: a 429, a 503, or no connection
└── TooLateError       it took the request, but did not answer in time
"""

import asyncio
import json
import math
import random
import re
import time
import uuid
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Self, TypeVar

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

from tasks import Answer, Input
from tasks.errors import InputError, ParitybitError
from tasks.inputs import Asked, input_to_json

__all__ = [
    "AsyncClient",
    "Client",
    "ModelInfo",
    "RefusedError",
    "ServiceError",
    "TooLateError",
    "UnavailableError",
]

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
"""Before the second attempt and before late ones at most, beside what `Retry-After` says."""

_CONNECT_S = 5.0
"""For a connection, so that a lost packet or a server that is gone leaves time for another attempt."""

_LONGEST_CALL_S = 1_000_000.0
"""What the header X-Request-Timeout-Ms and sockets can hold."""

_OVERLOADED = (429, 503)
_TOO_LARGE = 413
_GATEWAY_TIMEOUT = 504

_NO_CONNECTION = (httpx.ConnectTimeout, httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError)

_PLACE = re.compile(r"inputs\[(\d+)\]")
"""With which the server's line begins when one input is wrong."""

_T = TypeVar("_T")
_Form = TypeVar("_Form", bound=BaseModel)


class ServiceError(ParitybitError):
    """The service failed, or what answered is no paritybit service.

    Attributes:
        reason: what is wrong: the server's line, where it sent one.
        status: of its answer; None when there was none.
        request_id: under which the server's log has the request and its repetitions.
        service: the server's address.
    """

    def __init__(self, reason: str, status: int | None, request_id: str, service: str) -> None:
        super().__init__(reason, status, request_id, service)
        self.reason = reason
        self.status = status
        self.request_id = request_id
        self.service = service

    def __str__(self) -> str:
        source = self.service if self.status is None else f"{self.status} from {self.service}"
        return f"{self.reason} ({source}, request {self.request_id})"


class RefusedError(ServiceError):
    """The service will not answer this, however often it is asked."""


class UnavailableError(ServiceError):
    """Until the time was over, or too little was left, the service could not be reached or could take nothing."""


class TooLateError(ServiceError):
    """The service took the request and did not answer in time."""


class ModelInfo(BaseModel):
    """What is served; what a newer server says beside it stands in `model_extra`."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str
    task: str
    labels: tuple[str, ...]
    max_length: int
    default_variant: str
    checkpoint_digest: str
    verdict: str


class Client:
    """Asks a service over HTTP. Several threads may share one; it keeps its connections until it is closed."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        max_texts: int = 128,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Opens no connection yet.

        Args:
            url: of the service, for instance `http://127.0.0.1:3000`; a path before its endpoints is kept.
            api_key: sent as a bearer token.
            timeout_s: seconds that a call may take with all its requests, repetitions and pauses.
            max_texts: texts of one request; the server's PARITYBIT_MAX_TEXTS. What a server finds too large all the
                same is halved.
            transport: how requests travel, where it is not httpx's own way: through a proxy, with other certificates.

        Raises:
            ParitybitError: for an url or a key that can be none.
        """
        self._caller = _Caller(_address(url), timeout_s, max_texts)
        self._http = httpx.Client(base_url=url, headers=_headers(api_key), transport=transport)

    def predict(
        self, inputs: Asked | Sequence[Asked], *, timeout_s: float | None = None, **parameters: Any
    ) -> list[Answer]:
        """Answers one input or many, in order; of more than `max_texts`, several requests are made in turn.

        Args:
            inputs: an input or a sequence of them.
            timeout_s: of this call, in place of the client's.
            parameters: the task's, for instance `top_k=3`.

        Raises:
            InputError: if an input or a parameter cannot be sent as JSON.
            RefusedError: if it cannot be used; inputs are named by their position in `inputs`.
            UnavailableError: if the service could not be reached or was overloaded for all the time.
            TooLateError: if it did not answer in time.
            ServiceError: if it failed otherwise.
        """
        return self._carry_out(_predict(self._caller.call(timeout_s), self._caller.max_texts, inputs, parameters))

    def model(self) -> ModelInfo:
        """What is served.

        Raises:
            ServiceError: one of its kinds, as of `predict`.
        """
        return self._carry_out(_model(self._caller.call()))

    def ready(self) -> bool:
        """Whether the service takes requests now; False, too, when it cannot be reached. Asks once."""
        return self._carry_out(_ready(self._caller.call()))

    def close(self) -> None:
        """Ends the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _carry_out(self, steps: "_Steps[_T]") -> _T:
        try:
            attempt = next(steps)
            while True:
                time.sleep(attempt.pause_s)
                attempt = steps.send(self._outcome(attempt))
        except StopIteration as end:
            result: _T = end.value
            return result

    def _outcome(self, attempt: "_Attempt") -> "_Outcome":
        try:
            response = self._http.send(_request(self._http, attempt), stream=True)
            try:
                return _Reply(response.status_code, response.headers, _read(response, attempt.call))
            finally:
                response.close()
        except httpx.RequestError as error:
            return error


class AsyncClient:
    """`Client` for asyncio. Tasks of one event loop may share one."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        max_texts: int = 128,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """As of `Client`."""
        self._caller = _Caller(_address(url), timeout_s, max_texts)
        self._http = httpx.AsyncClient(base_url=url, headers=_headers(api_key), transport=transport)

    async def predict(
        self, inputs: Asked | Sequence[Asked], *, timeout_s: float | None = None, **parameters: Any
    ) -> list[Answer]:
        """As of `Client`. Cancelling it ends the request, and what of it waits in the server's queue will not run."""
        return await self._carry_out(_predict(self._caller.call(timeout_s), self._caller.max_texts, inputs, parameters))

    async def model(self) -> ModelInfo:
        """As of `Client`."""
        return await self._carry_out(_model(self._caller.call()))

    async def ready(self) -> bool:
        """As of `Client`."""
        return await self._carry_out(_ready(self._caller.call()))

    async def aclose(self) -> None:
        """Ends the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _carry_out(self, steps: "_Steps[_T]") -> _T:
        try:
            attempt = next(steps)
            while True:
                await asyncio.sleep(attempt.pause_s)
                attempt = steps.send(await self._outcome(attempt))
        except StopIteration as end:
            result: _T = end.value
            return result

    async def _outcome(self, attempt: "_Attempt") -> "_Outcome":
        try:
            async with asyncio.timeout(attempt.call.left()):
                response = await self._http.send(_request(self._http, attempt))
        except httpx.RequestError as error:
            return error
        except TimeoutError:
            return httpx.ReadTimeout("")
        return _Reply(response.status_code, response.headers, response.content)


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of a client's method.

    Attributes:
        service: the server's address.
        request_id: of all its requests.
        timeout_s: seconds that it has.
        end: of its time, on the monotonic clock.
    """

    service: str
    request_id: str
    timeout_s: float
    end: float

    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def error(self, kind: type[ServiceError], reason: str, reply: "_Reply | None" = None) -> ServiceError:
        """An error of this call; a server that does not like the id has given it another."""
        if reply is None:
            return kind(reason, None, self.request_id, self.service)
        return kind(reason, reply.status, reply.headers.get("x-request-id", self.request_id), self.service)

    def too_late(self) -> ServiceError:
        """The error of a call whose time is over."""
        return self.error(TooLateError, f"not answered within {self.timeout_s:g} s")


@dataclass(frozen=True, slots=True)
class _Caller:
    """What a client of either kind is told."""

    service: str
    timeout_s: float
    max_texts: int

    def call(self, timeout_s: float | None = None) -> _Call:
        """A call that begins now."""
        seconds = self.timeout_s if timeout_s is None else timeout_s
        return _Call(self.service, uuid.uuid4().hex, seconds, time.monotonic() + min(seconds, _LONGEST_CALL_S))


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A request to be made after a pause."""

    call: _Call
    method: str
    path: str
    body: bytes | None = None
    pause_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Reply:
    """What a server answered, whole."""

    status: int
    headers: httpx.Headers
    body: bytes


_Outcome = _Reply | httpx.RequestError
_Steps = Generator[_Attempt, _Outcome, _T]


class _Answers(BaseModel):
    answers: list[Answer]


class _Complaint(BaseModel):
    error: str


def _predict(
    call: _Call, max_texts: int, inputs: Asked | Sequence[Asked], parameters: dict[str, Any]
) -> _Steps[list[Answer]]:
    asked = [inputs] if isinstance(inputs, (str, dict, Input)) else inputs
    plain = [input_to_json(one) if isinstance(one, Input) else one for one in asked]
    answers: list[Answer] = []
    size = max_texts
    while len(answers) < len(plain):
        begin = len(answers)
        part = plain[begin : begin + size]
        body = _to_json({"inputs": part, "parameters": parameters})
        try:
            reply = yield from _ask(call, "POST", "/predict", body)
        except RefusedError as error:
            if _PLACE.match(error.reason):
                raise _moved(error, begin) from None
            if error.status != _TOO_LARGE or len(part) == 1:
                raise
            size = len(part) // 2
            continue
        found = _parse(call, reply, _Answers).answers
        if len(found) != len(part):
            raise call.error(ServiceError, f"{len(found)} answers to {len(part)} inputs", reply)
        answers += found
    return answers


def _model(call: _Call) -> _Steps[ModelInfo]:
    reply = yield from _ask(call, "GET", "/model")
    return _parse(call, reply, ModelInfo)


def _ready(call: _Call) -> _Steps[bool]:
    outcome = yield _Attempt(call, "GET", "/readyz")
    return isinstance(outcome, _Reply) and outcome.status == httpx.codes.OK


def _ask(call: _Call, method: str, path: str, body: bytes | None = None) -> _Steps[_Reply]:
    """Asks until the service takes the request, or until the next attempt would come after the call's end.

    The pauses are those that M. Brooker's "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015) calls full
    jitter, on top of what `Retry-After` says: those who were refused together shall not come back together.
    """
    pause, ceiling = 0.0, _FIRST_PAUSE_S
    if call.left() <= 0:
        raise call.too_late()
    while True:
        outcome = yield _Attempt(call, method, path, body, pause)
        if isinstance(outcome, _Reply) and outcome.status == httpx.codes.OK:
            return outcome
        error = _error_of(call, outcome)
        pause = _retry_after(outcome) + random.uniform(0, ceiling)
        if not isinstance(error, UnavailableError) or pause >= call.left():
            raise error
        ceiling = min(2 * ceiling, _LONGEST_PAUSE_S)


def _error_of(call: _Call, outcome: _Outcome) -> ServiceError:
    if isinstance(outcome, _Reply):
        return call.error(_kind_of(outcome.status), _complaint(outcome), outcome)
    if isinstance(outcome, _NO_CONNECTION):
        return call.error(UnavailableError, f"the connection failed: {_line(outcome)}")
    if isinstance(outcome, httpx.TimeoutException):
        return call.too_late()
    return call.error(ServiceError, _line(outcome))


def _kind_of(status: int) -> type[ServiceError]:
    if status in _OVERLOADED:
        return UnavailableError
    if status == _GATEWAY_TIMEOUT:
        return TooLateError
    return RefusedError if httpx.codes.is_client_error(status) else ServiceError


def _complaint(reply: _Reply) -> str:
    """The server's one line; where something else has answered, what the status means."""
    try:
        return " ".join(_Complaint.model_validate_json(reply.body).error.split())
    except ValidationError:
        return httpx.codes.get_reason_phrase(reply.status) or "an unknown status"


def _line(error: httpx.RequestError) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _retry_after(outcome: _Outcome) -> float:
    """Seconds that the server wants to be left alone (RFC 9110, 10.2.3: a number of them, or a date)."""
    value = outcome.headers.get("retry-after", "") if isinstance(outcome, _Reply) else ""
    if re.fullmatch(r"[0-9]+", value, re.ASCII):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def _moved(error: RefusedError, begin: int) -> RefusedError:
    """The error with the input's position among all that were asked, not among those of one request."""
    reason = _PLACE.sub(lambda found: f"inputs[{begin + int(found[1])}]", error.reason, count=1)
    return RefusedError(reason, error.status, error.request_id, error.service)


def _parse(call: _Call, reply: _Reply, form: type[_Form]) -> _Form:
    try:
        return form.model_validate_json(reply.body)
    except ValidationError:
        raise call.error(ServiceError, "the answer is not one of a paritybit service", reply) from None


def _to_json(value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise InputError(f"cannot be sent as JSON: {error}") from None


def _request(http: httpx.Client | httpx.AsyncClient, attempt: _Attempt) -> httpx.Request:
    # after a pause that took longer than it should, nothing may be left
    seconds = max(attempt.call.left(), 0.001)
    headers = {
        "X-Request-Id": attempt.call.request_id,
        "X-Request-Timeout-Ms": str(math.ceil(seconds * 1000)),
    }
    if attempt.body is not None:
        headers["Content-Type"] = "application/json"
    timeout = httpx.Timeout(seconds, connect=min(seconds, _CONNECT_S))
    return http.build_request(attempt.method, attempt.path, content=attempt.body, headers=headers, timeout=timeout)


def _read(response: httpx.Response, call: _Call) -> bytes:
    """The body; httpx bounds the wait for each of its parts, not for all of them."""
    parts = []
    for part in response.iter_bytes():
        parts.append(part)
        if call.left() <= 0:
            raise httpx.ReadTimeout("")
    return b"".join(parts)


def _address(url: str) -> str:
    """The url as errors name it, without path, user and password."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ParitybitError(f"url {url!r}: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ParitybitError(f"url {url!r}: expected one like http://127.0.0.1:3000")
    return f"{parsed.scheme}://{parsed.netloc.decode('ascii')}"


def _headers(api_key: str | None) -> dict[str, str]:
    if api_key is None:
        return {}
    if not re.fullmatch(r"[!-~]+", api_key):
        # the key itself is nobody's to read, so not in an error either
        raise ParitybitError("api_key: expected ASCII characters without spaces or line breaks")
    return {"Authorization": f"Bearer {api_key}"}
