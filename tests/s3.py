"""A real S3 server for tests: moto's, in a process of its own on loopback."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

_SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print("http://{}:{}".format(*server.get_host_and_port()), flush=True)
sys.stdin.read()  # until the tests end, however they end
"""
_DUMMY = {
    "AWS_ACCESS_KEY_ID": "dummy-key",
    "AWS_SECRET_ACCESS_KEY": "dummy-secret",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_METADATA_ENDPOINT": "http://127.0.0.1:9",  # nobody is there
    "GCE_METADATA_HOST": "127.0.0.1:9",
    "GCE_METADATA_IP": "127.0.0.1:9",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}
_numbers = itertools.count()


@contextmanager
def s3_server() -> Iterator[str]:
    """Run a server; its URL."""
    command = [sys.executable, "-c", _SERVER]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    environment = {**clean(os.environ), **_DUMMY}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def clean(environment: os._Environ[str]) -> dict[str, str]:
    """The environment without anything about clouds."""
    clouds = ("AWS_", "GOOGLE_", "AZURE_")
    return {name: text for name, text in environment.items() if not name.startswith(clouds)}


def use_endpoint(patch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Let this process and its children use ``endpoint`` with dummy keys, and no real ones."""
    for name in os.environ.keys() - clean(os.environ).keys():
        patch.delenv(name)
    for name, text in {**_DUMMY, "AWS_ENDPOINT_URL": endpoint}.items():
        patch.setenv(name, text)


def make_bucket(server: str) -> str:
    """A new bucket's name."""
    name = f"bucket{next(_numbers)}"
    urllib.request.urlopen(urllib.request.Request(f"{server}/{name}", method="PUT")).close()
    return name
