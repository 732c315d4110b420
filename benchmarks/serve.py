"""What the service takes to start, and when many ask at once: latencies, errors and memory.

    python benchmarks/serve.py [--clients 200] [--seconds 60] [--store run.zarr --job jobs.py:name]
    python benchmarks/serve.py --starts 5

With --starts it is started some times, and asked once each time: the processor time until then is told,
as other processes do not change that much, and the time on the clock.

Else a service in a process of its own, by default on the demo's digits, is asked by many clients at
once, each of which asks again when it has its answer: three times of four about a sample of the store,
else about a new image. Every answer is compared with the first one to the same question.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np

K, KINDS = 20, 16  # entries of a list, and questions that differ


def start(store: Path, job: str) -> tuple[subprocess.Popen[str], str]:
    """Start a service; return its process and its address."""
    command = [sys.executable, "-m", "trakstore", "serve", str(store), "--json", "--port", "0"]
    process = subprocess.Popen([*command, "--job", job], stdout=subprocess.PIPE, text=True)
    line = process.stdout.readline() if process.stdout else ""
    if not line:
        raise SystemExit(f"the service ended with {process.wait()}")
    return process, json.loads(line)["address"]


def processor_seconds(process: int) -> float:
    """Processor time that a process has taken so far."""
    # Behind the name, which may hold blanks, fields 14 and 15 are ticks of user and system time.
    ticks = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def first_answers(count: int, store: Path, job: str) -> str:
    """Start a service some times; return a line on the time until each has answered once."""
    took = []
    for _ in range(count):
        began = time.monotonic()
        process, address = start(store, job)
        try:
            httpx.post(f"{address}/query", json={"target": "@0"}, timeout=120).raise_for_status()
            took.append((processor_seconds(process.pid), time.monotonic() - began))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
    processor, clock = np.median(took, axis=0)
    return (
        f"first answer after {processor:.1f} s of processor time, {clock:.1f} s on the clock "
        f"(medians of {count})"
    )


def made_store(folder: Path) -> Path:
    """Features of the demo's digits."""
    from trakstore.cli.demo import digits
    from trakstore.features import featurize_job

    featurize_job(digits(), folder / "digits.zarr", rank=0, world_size=1, progress=False)
    return folder / "digits.zarr"


def questions(new: bool) -> list[dict[str, Any]]:
    """Different questions, of which every fourth is about a new image."""
    import base64
    from io import BytesIO

    from PIL import Image

    asked: list[dict[str, Any]] = [{"target": f"@{row}", "k": K} for row in range(KINDS)]
    rng = np.random.default_rng(0)
    for at in range(3, KINDS if new else 0, 4):
        file = BytesIO()
        Image.fromarray(rng.integers(255, size=(8, 8)).astype(np.uint8)).save(file, "PNG")
        asked[at] = {"image": base64.b64encode(file.getvalue()).decode(), "k": K}
    return asked


class Asking:
    """Clients that ask until the time is over, and what they saw."""

    def __init__(self, address: str, asked: list[dict[str, Any]]) -> None:
        self.address, self.asked = address, asked
        self.latencies: list[float] = []
        self.wrong: Counter[str] = Counter()
        self._first: dict[int, str] = {}

    async def run(self, clients: int, seconds: float) -> None:
        limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
        how: dict[str, Any] = {"base_url": self.address, "timeout": 120, "limits": limits}
        async with httpx.AsyncClient(**how) as client:
            until = time.monotonic() + seconds
            await asyncio.gather(*(self._keep(client, at, until) for at in range(clients)))

    async def _keep(self, client: httpx.AsyncClient, at: int, until: float) -> None:
        while time.monotonic() < until:
            at += 1
            began = time.monotonic()
            try:
                reply = await client.post("/query", json=self.asked[at % KINDS])
            except httpx.HTTPError as error:
                self.wrong[type(error).__name__] += 1
                continue
            self.latencies.append(time.monotonic() - began)
            if reply.status_code != 200:
                self.wrong[str(reply.status_code)] += 1
            elif self._first.setdefault(at % KINDS, reply.text) != reply.text:
                self.wrong["another answer"] += 1


def resident(process: int) -> float:
    """Megabytes that a process has in memory."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--job", default="trakstore.cli.demo:digits")
    parser.add_argument("--starts", type=int, help="only start it, so many times")
    parser.add_argument("--only-stored", action="store_true", help="no new images")
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = o.store or made_store(Path(folder))
        if o.starts:
            print(first_answers(o.starts, store, o.job))
            return
        process, address = start(store, o.job)
        try:
            asking = Asking(address, questions(not o.only_stored))
            # Each thread has its buffers once it has answered.
            asyncio.run(asking.run(o.clients, min(3.0, o.seconds)))
            asking.latencies.clear()
            before = resident(process.pid)
            asyncio.run(asking.run(o.clients, o.seconds))
            after = resident(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(60)
    p50, p95, p99 = np.quantile(asking.latencies, [0.5, 0.95, 0.99])
    answers = len(asking.latencies)
    print(f"{o.clients} clients, {o.seconds:.0f} s, {os.cpu_count()} CPUs")
    print(f"answers {answers}, {answers / o.seconds:.0f} a second, errors {dict(asking.wrong)}")
    print(f"latency p50 {p50:.2f} s, p95 {p95:.2f} s, p99 {p99:.2f} s")
    print(f"memory {before:.0f} MB before, {after:.0f} MB after; exit code {code}")


if __name__ == "__main__":
    main()
