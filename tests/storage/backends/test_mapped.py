"""Files that are looked at where the system keeps them."""

from __future__ import annotations

import os

import pytest

from trakstore.storage.backends import mapped as module
from trakstore.storage.backends.mapped import mapped

SIZE = 3 * 2**20 + 5


@pytest.fixture
def handle(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(250)) * (SIZE // 250 + 1))
    os.truncate(path, SIZE)
    opened = os.open(path, os.O_RDWR)
    yield opened
    os.close(opened)


@pytest.mark.skipif(module._madvise() is None, reason="this system maps no files so")
def test_the_bytes_are_those_of_the_file_and_read_only(handle):
    content = mapped(handle, SIZE)
    if content is None:
        pytest.skip("this system is older than Linux 5.14")
    assert content.tobytes() == os.pread(handle, SIZE, 0)
    with pytest.raises(ValueError, match="read-only"):
        content[0] = 1


@pytest.mark.parametrize("size", [SIZE - 1, SIZE + 1])
def test_a_file_of_another_size_is_left(handle, size):
    assert mapped(handle, size) is None


def test_pages_that_cannot_be_read_are_told(handle, monkeypatch):
    # The file loses its end once its size was asked: whoever touched these pages would be killed.
    monkeypatch.setattr(os, "posix_fadvise", lambda *_: os.ftruncate(handle, 100), raising=False)
    assert mapped(handle, SIZE) is None


def test_other_systems_read(handle, monkeypatch):
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr(module, "_madvise", module._madvise.__wrapped__)
    assert mapped(handle, SIZE) is None
