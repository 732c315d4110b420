"""The service as a process: how it begins, ends, is killed and begins again, and many at once."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from serve import KINDS, Asking, resident
from served import serving

import trakstore as ts
from trakstore.cli import main

httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn")
Image = pytest.importorskip("PIL.Image")
K = 4


@pytest.fixture(scope="module")
def right(folder: Path) -> dict[int, list[Any]]:
    """Lists of each target by ``top_k``."""
    scores = ts.trak_scores(ts.open_store(folder / "run.zarr"))
    tops = [ts.top_k(scores.isel(target=[row]), K) for row in range(12)]
    return {
        100 + row: [top["train"].values[0].tolist(), top["score"].values[0].tolist()]
        for row, top in enumerate(tops)
    }


def ask(client: Any, target: int) -> list[Any]:
    document = client.post("/query", json={"target": target, "k": K, "samples": False}).json()
    return [[one[name] for one in document["proponents"]] for name in ("id", "score")]


def test_it_ends_cleanly_and_what_is_under_way_is_answered(
    folder: Path, right: dict[int, list[Any]]
) -> None:
    with serving(folder / "run.zarr") as served:
        with httpx.Client(base_url=served.address, timeout=30) as client:
            assert ask(client, 103) == right[103]
            with ThreadPoolExecutor(8) as pool:
                asked = [pool.submit(ask, client, 100 + at) for at in range(8)]
                time.sleep(0.02)
                code = served.end()
            kept = [one for one in asked if one.exception() is None]
            # A connection that came too late is refused; none is answered wrongly.
            assert all(one.result() in right.values() for one in kept)
            assert all(isinstance(one.exception(), httpx.TransportError | None) for one in asked)
        assert code == 0


@pytest.mark.slow
def test_it_ends_while_a_step_takes_minutes(folder: Path, job_name: str) -> None:
    file = BytesIO()
    Image.new("L", (8, 8)).save(file, "PNG")
    asked = {"image": base64.b64encode(file.getvalue()).decode()}
    sleeping = job_name.replace("images", "sleeping")
    options = ("--job", job_name, "--prepare", sleeping)
    with serving(folder / "run.zarr", *options) as served, ThreadPoolExecutor(1) as pool:
        reply = pool.submit(httpx.post, f"{served.address}/query", json=asked, timeout=60)
        metrics = f"{served.address}/metrics"
        wait_until(lambda: "trakstore_questions 1" in httpx.get(metrics).text)
        assert served.end() == 0  # within thirty seconds
        assert reply.result().status_code == 503
        assert "the service ends" in reply.result().json()["error"]


@pytest.mark.slow
def test_a_killed_service_begins_again_in_the_middle_of_questions(
    folder: Path, right: dict[int, list[Any]]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    stop, wrong, answered = threading.Event(), [], [0, 0]
    phase = [0]

    def keep_asking() -> None:
        at = 0
        while not stop.is_set():
            at += 1
            try:
                with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
                    got = ask(client, 100 + at % 12)
            except httpx.TransportError:
                time.sleep(0.05)
                continue
            answered[phase[0]] += 1
            if got != right[100 + at % 12]:
                wrong.append(got)

    threads = [threading.Thread(target=keep_asking) for _ in range(4)]
    with serving(folder / "run.zarr", "--port", port) as served:
        for one in threads:
            one.start()
        wait_until(lambda: answered[0] > 10)
        assert served.end(signal.SIGKILL) == -signal.SIGKILL
    phase[0] = 1
    with serving(folder / "run.zarr", "--port", port) as served:
        wait_until(lambda: answered[1] > 10)
        stop.set()
        for one in threads:
            one.join()
        assert served.end(signal.SIGINT) == 0
    assert not wrong


def wait_until(true: Any, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)


HEAD = b"POST /query HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
RAW = {
    "no HTTP": b"\x00\x01\x02\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 200 + b"\r\n\r\n",
    "HTTP 9.9": b"GET / HTTP/9.9\r\n\r\n",
    "HTTP 2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no address": b"GET  HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "a byte in the address": b"GET /\xff HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "a null in the method": b"G\0T / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil\r\n\r\n",
    "a null in a header": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nA: b\0c\r\n\r\n",
    "a long header": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nA: " + b"b" * 200_000 + b"\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"A: b\r\n" * 2000 + b"\r\n",
    "a negative length": HEAD + b"Content-Length: -5\r\n\r\n",
    "a length in words": HEAD + b"Content-Length: five\r\n\r\n{}",
    "a length of 30 digits": HEAD + b"Content-Length: 1" + b"0" * 30 + b"\r\n\r\n{}",
    "two lengths": HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "a length and chunks": HEAD
    + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "gzip": HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "a chunk of no size": CHUNKED + b"zz\r\n",
    "a chunk of negative size": CHUNKED + b"-1\r\n",
    "a chunk that lies": CHUNKED + b"2\r\n{}\r\nxyz\r\n",
    "a trailer of no name": CHUNKED + b"2\r\n{}\r\n0\r\n\0: a\r\n\r\n",
    "chunks without end": CHUNKED + (b"100000\r\n" + b" " * 2**20 + b"\r\n") * 10,
    "CONNECT": b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "TRACE": b"TRACE / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "a proxy's address": b"GET http://evil.example/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "another folder": b"GET /query/../../etc/passwd HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
}


def refusal(port: int, request: bytes) -> tuple[bytes, Any]:
    """First line and JSON of a refusal, after which the service may close the connection or not."""
    with socket.create_connection(("127.0.0.1", port), 20) as connection:
        # What is refused before it has come whole may be cut off.
        with suppress(OSError):
            connection.sendall(request)
        with connection.makefile("rb") as reply:
            status, length = reply.readline(), 0
            while (line := reply.readline().lower()) not in (b"\r\n", b""):
                if line.startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            return status, json.loads(reply.read(length))


def test_requests_that_are_no_http_are_refused(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with serving(folder / "run.zarr") as served:
        for name, request in RAW.items():
            status, document = refusal(int(served.port), request)
            assert status.startswith(b"HTTP/1.1 4"), (name, status)
            assert set(document) == {"error"} and len(document["error"]) > 5, name
        # A body that goes wrong after its answer has no second one.
        early = CHUNKED.replace(b"application/json", b"text/plain")
        with socket.create_connection(("127.0.0.1", int(served.port)), 20) as connection:
            connection.sendall(early)
            assert connection.recv(12) == b"HTTP/1.1 415"
            connection.sendall(b"zz\r\n")
            rest = b""
            while more := connection.recv(4096):
                rest += more
            assert rest.count(b'"error"') == 1
        # A connection that says nothing keeps nobody else waiting.
        with socket.create_connection(("127.0.0.1", int(served.port)), 10):
            assert httpx.get(f"{served.address}/health").json() == {"status": "ok"}
        asked = {"target": 100, "k": 1}
        assert httpx.post(f"{served.address}/query", json=asked, timeout=30).status_code == 200
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
def test_many_at_once_are_all_answered_in_bounded_memory(folder: Path, job_name: str) -> None:
    with serving(folder / "run.zarr", "--job", job_name) as served:
        asking = Asking(served.address, [{"target": f"@{at % 12}", "k": K} for at in range(KINDS)])
        asyncio.run(asking.run(200, 2))  # each thread has its buffers then
        before = resident(served.process.pid)
        asyncio.run(asking.run(200, 6))
        assert len(asking.latencies) >= 400
        assert not asking.wrong
        assert resident(served.process.pid) - before < 64


def test_bad_use(folder: Path, capsys: pytest.CaptureFixture[str], job_name: str) -> None:
    store = str(folder / "run.zarr")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        cases = [
            (["--host", "0.0.0.0"], "give a token"),
            (["--token", "short"], "16 or more plain characters"),
            (["--port", port], "cannot listen at 127.0.0.1"),
            (["--port", "0", "--targets", "test", "--epoch", "9"], "no epoch 9"),
            (["--port", "0", "--job", job_name.replace("images", "others")], "weights of epoch 2"),
        ]
        for options, message in cases:
            assert main(["serve", store, *options]) == 2
            error = capsys.readouterr().err
            assert message in error and error.count("\n") == 1, error
