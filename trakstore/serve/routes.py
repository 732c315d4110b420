"""The service over HTTP: its addresses, its errors, and the headers of what it sends."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trakstore.errors import TrakStoreError
from trakstore.serve.access import Access
from trakstore.serve.answer import Answer
from trakstore.serve.bodies import BadRequestError, question_of, read_json
from trakstore.serve.current_query import CurrentQuery
from trakstore.serve.description import openapi
from trakstore.serve.known_names import MOST_LISTED
from trakstore.serve.limits import Limits
from trakstore.serve.live_page import live_page, page_policy
from trakstore.serve.metrics import Metrics
from trakstore.serve.query import Query
from trakstore.serve.question import BadQuestionError, Question, UnknownSampleError
from trakstore.serve.rendering import answer_part
from trakstore.serve.reply_headers import HEADERS
from trakstore.serve.work import Work

log = logging.getLogger("trakstore")
_LINES = "application/x-ndjson"
_STALE = (
    "the store has changed, and cannot be opened as it is now: answers are of it as it was before; the "
    "service's log says why"
)
_SMALL = 2**16  # largest body, in bytes, that is decoded in the event loop
_MOST_HEADERS, _HEADER_BYTES = 200, 2**15
_PATHS = ("/", "/query", "/panel", "/store", "/health", "/metrics", "/openapi.json")
Handler = Callable[[Request], Awaitable[Response]]


def service(current: CurrentQuery, access: Access, limits: Limits, version: str) -> ASGIApp:
    """Make the application that answers requests.

    Parameters
    ----------
    current : CurrentQuery
    access : Access
    limits : Limits
    version : str
        Version of the package, for its description.

    Returns
    -------
    ASGI application
    """
    metrics, reading = Metrics(), asyncio.Semaphore(limits.large_bodies)
    work = Work(current, limits, metrics)
    description = openapi(version, limits)

    @asynccontextmanager
    async def life(_: Starlette) -> AsyncIterator[None]:
        yield
        work.close()

    async def page(_: Request) -> Response:
        return Response(
            live_page(), media_type="text/html", headers={"content-security-policy": page_policy()}
        )

    async def described(_: Request) -> Response:
        return _json(description)

    async def health(_: Request) -> Response:
        return _json({"status": "stale", "error": _STALE} if current.is_stale else {"status": "ok"})

    async def counted(_: Request) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    async def about(_: Request) -> Response:
        return _json(_about(current.query))

    async def answered(request: Request) -> Response:
        document, question = await _asked(request, limits, reading)
        if document.get("stream") or _LINES in request.headers.get("accept", ""):
            return await _streamed(work, question, _line)
        last = None
        async for one in work.stages(question, 1):
            last = one
        return _json({} if last is None else last.to_dict())

    async def panel(request: Request) -> Response:
        _, question = await _asked(request, limits, reading)
        return await _streamed(work, question, _panel_line)

    routes = [
        Route("/", page),
        Route("/query", answered, methods=["POST"]),
        Route("/panel", panel, methods=["POST"]),
        Route("/store", about),
        Route("/health", health),
        Route("/metrics", counted),
        Route("/openapi.json", described),
    ]
    errors: dict[Any, Any] = {
        BadRequestError: _refused,
        UnknownSampleError: _unknown,
        BadQuestionError: _bad_question,
        TrakStoreError: _bad_sample,
        HTTPException: _no_such_address,
        Exception: _fault,
    }
    app = Starlette(routes=routes, exception_handlers=errors, lifespan=life)
    app.router.redirect_slashes = False
    return _Guard(app, access, metrics)


class _Guard:
    """Application around another: it checks access first, and adds headers and counts last."""

    def __init__(self, app: ASGIApp, access: Access, metrics: Metrics) -> None:
        self._app, self._access, self._metrics = app, access, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in _PATHS else "other"

        began = False

        async def sending(message: Message) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began = True
                self._metrics.request(path, message["status"])
                more = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *more]
            await send(message)

        request = Request(scope)
        try:
            _need_small(scope["headers"])
            self._access.check(request.method, scope["path"], request.headers)
        except BadRequestError as error:
            await (_error(error.status, error.message))(scope, receive, sending)
            return
        try:
            await self._app(scope, receive, sending)
        except asyncio.CancelledError:
            # The service is ending: whatever has begun is cut off.
            if began:
                raise
            await (_error(503, "the service ends: ask again in a while"))(scope, receive, sending)


def _need_small(headers: list[tuple[bytes, bytes]]) -> None:
    """Refuse a large head that came at once, to which the connection's own limit did not apply."""
    if len(headers) > _MOST_HEADERS or sum(len(a) + len(b) for a, b in headers) > _HEADER_BYTES:
        raise BadRequestError(431, "the request has too many headers, or too long ones")


async def _asked(
    request: Request, limits: Limits, reading: asyncio.Semaphore
) -> tuple[dict[str, Any], Question]:
    """Read a body and make a question from it; only some large bodies are in memory at once."""

    def made(body: bytes) -> tuple[dict[str, Any], Question]:
        document = read_json(body)
        return document, question_of(document, limits)

    said = request.headers.get("content-length", "")
    if said.isdigit() and int(said[:20]) <= _SMALL:
        return made(await _body(request, limits))
    try:
        async with asyncio.timeout(limits.body_seconds):
            await reading.acquire()
    except TimeoutError:
        raise BadRequestError(503, "too many large bodies are read: ask again in a while") from None
    try:
        # In a thread, so that others are answered while a large body is decoded.
        return await asyncio.to_thread(made, await _body(request, limits))
    finally:
        reading.release()


async def _body(request: Request, limits: Limits) -> bytes:
    """Read a body of JSON within the limits of size and time."""
    kind, _, more = request.headers.get("content-type", "").lower().partition(";")
    charset = more.partition("charset=")[2].strip(' "') or "utf-8"
    # Pages of other sites must ask before they send this content type, and get no permission.
    if kind.strip() != "application/json" or charset != "utf-8":
        raise BadRequestError(415, "send JSON with Content-Type: application/json")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise BadRequestError(415, "send the body without Content-Encoding")
    large = BadRequestError(413, f"the body has more than {limits.body_bytes:,} bytes")
    said = request.headers.get("content-length", "0")
    if said.isdigit() and int(said[:20]) > limits.body_bytes:
        raise large
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for part in request.stream():
                size += len(part)
                if size > limits.body_bytes:
                    raise large
                parts.append(part)
    except TimeoutError:
        raise BadRequestError(408, "the body did not come in time") from None
    except ClientDisconnect:
        raise BadRequestError(400, "the body did not come whole") from None
    return b"".join(parts)


async def _streamed(
    work: Work, question: Question, line: Callable[[Answer], dict[str, Any]]
) -> Response:
    """Send stages as lines of JSON; an error before the first one sets the response's status."""
    stages = work.stages(question, None)
    first = await anext(stages)

    async def lines() -> AsyncIterator[bytes]:
        try:
            yield _encoded(line(first)) + b"\n"
            async for one in stages:
                yield _encoded(line(one)) + b"\n"
        except BadRequestError as error:
            yield _encoded({"error": error.message}) + b"\n"
        except asyncio.CancelledError:
            # The service is ending, or nobody reads any more.
            yield (
                _encoded({"error": "the service ends, and the answer was cut off: ask again"})
                + b"\n"
            )
            raise
        except Exception as error:
            log.exception("a stream ended early", exc_info=error)
            yield _encoded({"error": "the answer could not be finished"}) + b"\n"
        finally:
            await stages.aclose()  # type: ignore[attr-defined]

    return StreamingResponse(lines(), media_type=_LINES)


def _line(answer: Answer) -> dict[str, Any]:
    return answer.to_dict()


def _panel_line(answer: Answer) -> dict[str, Any]:
    """Return a stage for the page: its HTML, and the ids behind its buttons."""
    # Ids are sent as texts, since a browser's numbers have 53 bits.
    lists = {"Proponents": answer.proponents, "Opponents": answer.opponents}
    return {
        "share": answer.share,
        "html": answer_part(answer, asking=True),
        "ids": {name: [str(one.id) for one in listed] for name, listed in lists.items()},
    }


def _about(query: Query) -> dict[str, Any]:
    """Return what a page needs to offer questions."""
    provenance = query.provenance(query.epochs, query.method)
    return {
        "store": provenance["store"],
        "epochs": list(query.epochs),
        "methods": query.methods,
        "method": query.method,
        "targets": query.targets,
        "train": query.train,
        "takes": query.takes,
        "tokens": query.scores_tokens,
        "some": query.some_targets(12),
        "most": min(query.rows, MOST_LISTED),
    }


async def _refused(_: Request, error: Exception) -> Response:
    status, message = getattr(error, "status", 400), getattr(error, "message", "")
    return _error(status, message)


async def _unknown(_: Request, error: Exception) -> Response:
    return _error(404, str(error))


async def _bad_question(_: Request, error: Exception) -> Response:
    return _error(422, str(error))


async def _bad_sample(_: Request, error: Exception) -> Response:
    # The error's message may name files and code of this machine.
    log.warning("a question was refused: %s", error)
    return _error(
        422, "the model or the store does not take this sample; the service's log says why"
    )


async def _no_such_address(_: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    messages = {404: "there is nothing at this address", 405: "this address takes another method"}
    headers = getattr(error, "headers", None)
    return _error(status, messages.get(status, "the request is refused"), headers)


async def _fault(_: Request, __: Exception) -> Response:
    return _error(500, "a fault of the service; its log says more")


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    more = {401: {"www-authenticate": "Bearer"}, 503: {"retry-after": "5"}}.get(status, {})
    return _json({"error": message}, status, {**(headers or {}), **more})


def _json(
    document: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    return Response(_encoded(document), status, headers, media_type="application/json")


def _encoded(document: dict[str, Any]) -> bytes:
    # In ASCII, so that half of a surrogate pair in an id causes no error.
    return json.dumps(document, allow_nan=False, separators=(",", ":")).encode("ascii")
