from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import torch
from s3 import make_bucket, s3_server, use_endpoint

# before anything imports Triton: without a GPU its kernels are interpreted
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# a shell that starts this in the background has Ctrl-C ignored, which processes inherit: tests send it
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """URL of an S3 server."""
    with s3_server() as url:
        yield url


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new bucket's URL, ``s3://name``; the environment leads to its server."""
    use_endpoint(monkeypatch, server)
    return f"s3://{make_bucket(server)}"
