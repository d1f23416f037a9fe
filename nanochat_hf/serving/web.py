"""HTTP around the routes: bodies, errors, streams, keys, origins, and clients that go away."""

import asyncio
import hmac
import json
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from nanochat_hf.serving.engine import Busy, EngineError
from nanochat_hf.serving.fields import BadRequest
from nanochat_hf.serving.metrics import Metrics

MAX_BODY = 4 * 2**20  # bytes of a request
MAX_DRAINED = 64 * 2**20  # bytes of a refused body that are read and dropped, so that the client gets the answer
REQUEST_ID = "x-request-id"
CLIENT_GONE = 499  # the status in the metrics of requests whose client went away; nobody receives it
OPEN_ROUTES = ("/health", "/ping")  # no key is needed for them
log = logging.getLogger("uvicorn.error")


def error_body(message: str, status: int, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The error form of OpenAI's API."""
    kind = {401: "authentication_error", 404: "not_found_error", 503: "overloaded_error"}.get(status)
    kind = kind or ("server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(error: Exception, text_generation: bool = False) -> Response:
    """Turns an error into an answer: in OpenAI's form, or in that of text-generation-inference."""
    message, status, param, code = "the server has failed: see its log", 500, None, None
    headers: dict[str, str] = {}
    if isinstance(error, BadRequest):
        message, status, param, code = error.message, error.status, error.param, error.code
    elif isinstance(error, EngineError):
        message, status = str(error), 503
        if isinstance(error, Busy):
            code, headers = "queue_full", {"retry-after": str(error.retry_after)}
    elif isinstance(error, HTTPException):
        message, status, headers = str(error.detail), error.status_code, dict(error.headers or {})
    else:
        log.error("a request failed", exc_info=error)
    if text_generation:
        kind = "validation" if status < 500 else "overloaded" if status == 503 else "generation"
        body: dict[str, Any] = {"error": message, "error_type": kind}
    else:
        body = error_body(message, status, param, code)
    # In ASCII: a field that is named may be half of a surrogate pair, which UTF-8 cannot hold.
    return Response(json.dumps(body), status, headers, "application/json")


async def read_json(request: Request) -> dict[str, Any]:
    """Returns the request's body.

    Raises:
        BadRequest: it is no JSON object.
        ClientGone: the client went away while it sent it.
    """
    try:
        body = await request.body()
    except ClientDisconnect:
        raise ClientGone from None
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadRequest("the body must be a JSON object")
    return value


async def unless_gone(request: Request, work: Awaitable[Any]) -> Any:
    """Waits for an answer, and gives it up if the client goes away; the work is then cancelled."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        for each in (task, gone):
            each.cancel()


class ClientGone(Exception):
    """Nobody waits for the answer."""


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """Server-sent events. When the client goes away, the source of the events is closed."""

    def __init__(self, request: Request, events: AsyncIterator[str]):
        super().__init__(self._until_gone(request, events), media_type="text/event-stream")
        self.headers["cache-control"] = "no-cache"

    @staticmethod
    async def _until_gone(request: Request, events: AsyncIterator[str]) -> AsyncIterator[str]:
        gone = asyncio.ensure_future(_gone(request))
        waiting: asyncio.Future[str] | None = None
        try:
            while True:
                waiting = asyncio.ensure_future(anext(events))
                await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not waiting.done():
                    return
                try:
                    yield waiting.result()
                except StopAsyncIteration:
                    return
        finally:
            gone.cancel()
            if waiting is not None and not waiting.done():
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
            await events.aclose()  # type: ignore[attr-defined]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Sends the events; `_until_gone` watches the client, so nothing else has to."""
        try:
            await self.stream_response(send)
        except OSError:
            pass
        finally:
            await self.body_iterator.aclose()  # type: ignore[union-attr]


def event(data: Any, name: str | None = None) -> str:
    """One server-sent event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {data if isinstance(data, str) else json.dumps(data)}\n\n"


class Gate:
    """The outermost layer: request ids, keys, origins, the size of bodies, and counting."""

    def __init__(self, app: Any, *, metrics: Metrics, api_key: str | None = None, origins: Sequence[str] = ()):
        """Wraps an application.

        Args:
            api_key: what clients must send as `Authorization: Bearer KEY`; None lets everybody in.
            origins: web pages whose scripts may read the answers, such as "https://example.org"; "*" for all.
        """
        self.app, self.metrics, self.api_key, self.origins = app, metrics, api_key, tuple(origins)

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        request_id = headers.get(REQUEST_ID) or uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        extra = [(REQUEST_ID.encode(), request_id.encode("latin-1")), *self._origin_headers(headers)]
        status = 0

        async def send_with_headers(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *extra]
            await send(message)

        answer = await self._refusal(scope, headers, receive)
        try:
            if answer is not None:
                await answer(scope, receive, send_with_headers)
            else:
                await self.app(scope, Limited(receive), send_with_headers)
        finally:
            # Only paths of routes, else anybody could fill the metrics with names.
            paths = (route.path for route in self.app.routes if route.path_regex.match(scope["path"]))
            route = next(paths, "other")
            self.metrics.count("nanochat_requests_total", route=route, status=str(status or CLIENT_GONE))

    def _origin_headers(self, headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
        origin = headers.get("origin")
        if origin is None or not ("*" in self.origins or origin in self.origins):
            return []
        return [
            (b"access-control-allow-origin", b"*" if "*" in self.origins else origin.encode("latin-1")),
            (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
            (b"access-control-allow-headers", b"authorization, content-type, " + REQUEST_ID.encode()),
            (b"access-control-expose-headers", REQUEST_ID.encode()),
            (b"vary", b"origin"),
        ]

    async def _refusal(self, scope: dict[str, Any], headers: dict[str, str], receive: Callable) -> Response | None:
        """What is answered without asking the application."""
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            return Response(status_code=204 if self._origin_headers(headers) else 403)
        if self.api_key and scope["path"] not in OPEN_ROUTES:
            scheme, _, key = headers.get("authorization", "").partition(" ")
            right = hmac.compare_digest(key.strip().encode(), self.api_key.encode())
            if scheme.lower() != "bearer" or not right:
                message = "send this server's key as the header 'Authorization: Bearer KEY'"
                answer = JSONResponse(error_body(message, 401, code="invalid_api_key"), 401)
                answer.headers["www-authenticate"] = "Bearer"
                return answer
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > MAX_BODY:
            if int(length) <= MAX_DRAINED and headers.get("expect", "").lower() != "100-continue":
                more = True
                while more:
                    more = (await receive()).get("more_body", False)
            return too_large()
        return None


class TooLarge(Exception):
    """A body without a length has grown too large."""


class Limited:
    """Receives a body whose length was not announced, up to the limit."""

    def __init__(self, receive: Callable):
        self.receive, self.size = receive, 0

    async def __call__(self) -> dict[str, Any]:
        message = await self.receive()
        self.size += len(message.get("body", b""))
        if self.size > MAX_BODY:
            raise TooLarge
        return message


def too_large() -> JSONResponse:
    """The answer to a body that is too large."""
    message = f"the body is larger than {MAX_BODY:,} bytes, which is more than any context holds: send less"
    return JSONResponse(error_body(message, 413, code="body_too_large"), 413)
