"""Connections whose requests do not begin in time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

uvicorn = pytest.importorskip("uvicorn")

from trakstore.serve import header_deadline  # noqa: E402
from trakstore.serve.header_deadline import DeadlineProtocol  # noqa: E402

SECONDS = 0.5
WHOLE = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n"


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer after the body, and longer than a head may take; one path before the body."""
    while scope["path"] != "/early" and (await receive()).get("more_body"):
        pass
    await asyncio.sleep(0 if scope["path"] == "/early" else 2 * SECONDS)
    headers = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Make a connection to a server of its own."""
    options: dict[str, Any] = {"log_level": "critical", "lifespan": "off"}
    config = uvicorn.Config(app, http=DeadlineProtocol, timeout_keep_alive=60, **options)
    config.load()
    state = uvicorn.server.ServerState()
    loop = asyncio.get_running_loop()
    made = await loop.create_server(
        lambda: DeadlineProtocol(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    async with made:
        reader, writer = await asyncio.open_connection(*made.sockets[0].getsockname())
        try:
            yield reader, writer
        finally:
            writer.close()


async def drip(writer: asyncio.StreamWriter, reader: asyncio.StreamReader, head: bytes) -> float:
    """Send a byte now and then until the server has closed; return after how many seconds it had."""

    async def ended() -> bytes:
        try:
            return await reader.read()
        except ConnectionResetError:  # bytes were on their way when it closed
            return b""

    began, closed = time.monotonic(), asyncio.create_task(ended())
    for byte in head:
        if closed.done():
            break
        writer.write(bytes([byte]))
        await asyncio.sleep(0.05)
    assert await asyncio.wait_for(closed, 20) == b""
    return time.monotonic() - began


@pytest.mark.parametrize("case", ["silent", "dripping", "second", "slow"])
def test_only_heads_have_a_deadline(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header_deadline, "HEAD_SECONDS", SECONDS)

    async def main() -> None:
        async with connected() as (reader, writer):
            if case == "silent":
                assert await asyncio.wait_for(reader.read(), 20) == b""
                return
            if case == "dripping":
                # It is closed although bytes keep coming: these would come for five seconds.
                assert await drip(writer, reader, b"GET / HTTP/1.1\r\nA: " + b"b" * 81) < 4
                return
            # A body and an answer may take longer than the head.
            writer.write(WHOLE)
            await asyncio.sleep(2 * SECONDS)
            writer.write(b"{}")
            reply = await asyncio.wait_for(reader.readuntil(b"\r\n\r\nok"), 20)
            assert reply.startswith(b"HTTP/1.1 200")
            if case == "second":
                assert await drip(writer, reader, b"GET / HTTP/1.1\r\nA: " + b"b" * 81) < 4
                return
            # Between requests it is uvicorn that ends a connection that is kept alive.
            await asyncio.sleep(2 * SECONDS)
            writer.write(WHOLE + b"{}")
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\nok"), 20)

    asyncio.run(main())


@pytest.mark.parametrize("length", [1_000_000, 4])
def test_a_body_after_its_answer_has_a_deadline(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(header_deadline, "HEAD_SECONDS", SECONDS)
    head = f"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n".encode()

    async def main() -> None:
        async with connected() as (reader, writer):
            writer.write(head)
            reply = await asyncio.wait_for(reader.readuntil(b"\r\n\r\nok"), 20)
            assert reply.startswith(b"HTTP/1.1 200")
            if length == 4:  # that comes in time, and the connection can be used again
                writer.write(b"body" + WHOLE + b"{}")
                await asyncio.wait_for(reader.readuntil(b"\r\n\r\nok"), 20)
                return
            # These bytes would come for five seconds.
            assert await drip(writer, reader, b"b" * 100) < 4

    asyncio.run(main())
