"""The service as a process: how it begins, ends, is killed and begins again, and many at once."""

from __future__ import annotations

import asyncio
import base64
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
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


def test_requests_that_are_no_http_are_refused(folder: Path) -> None:
    with serving(folder / "run.zarr") as served:
        raw = [
            b"\x00\x01\x02\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"POST /query HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -5\r\n\r\n",
            b"POST /query HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nA: " + b"b" * 200_000 + b"\r\n\r\n",
        ]
        for one in raw:
            with socket.create_connection(("127.0.0.1", int(served.port)), 10) as connection:
                connection.sendall(one)
                reply = connection.recv(4096)
            assert reply.startswith(b"HTTP/1.1 4"), (one[:60], reply)
            assert b"Traceback" not in reply
        # A connection that says nothing keeps nobody else waiting.
        with socket.create_connection(("127.0.0.1", int(served.port)), 10):
            assert httpx.get(f"{served.address}/health").json() == {"status": "ok"}


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
