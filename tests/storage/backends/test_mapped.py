"""Files that are looked at where the system keeps them."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from trakstore.storage.backends.mapped import _pages, mapped, maps_files, unmapped

SIZE = 3 * 2**20 + 5
pytestmark = pytest.mark.skipif(not maps_files, reason="needs Linux, as CI has")


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "folder/file"
    path.parent.mkdir()
    path.write_bytes(bytes(range(250)) * (SIZE // 250 + 1))
    os.truncate(path, SIZE)
    return path


def text(value):
    return np.frombuffer(os.fsencode(value) + b"\0", np.uint8)


def place_of(path, size=SIZE):
    return mapped(text(path.parent), text(path.name), size)


def open_files():
    return len([*Path("/proc/self/fd").iterdir()])


def is_mapped(path):
    return str(path) in Path("/proc/self/maps").read_text()


@pytest.fixture
def place(path):
    """Return the address of a mapped file, which others may not change."""
    place, file = place_of(path)
    if place == 0:
        pytest.skip("needs Linux 5.14 or later and leases of files, as CI has")
    yield place
    unmapped(place, SIZE, file)


def test_the_bytes_are_those_of_the_file_and_all_is_given_back(path):
    before, (place, file) = open_files(), place_of(path)
    if place:
        assert is_mapped(path)
        assert ctypes.string_at(place, SIZE) == path.read_bytes()
        unmapped(place, SIZE, file)
    assert not is_mapped(path)
    assert open_files() == before


@pytest.mark.parametrize(
    "change",
    [
        lambda path: os.open(path, os.O_WRONLY | os.O_NONBLOCK),
        lambda path: os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_NONBLOCK),
    ],
    ids=["to write", "to shorten"],
)
def test_whoever_opens_it_meanwhile_waits_and_nobody_is_killed(path, place, change):
    # As `cp` over a file does, which would have the reader killed by a signal.
    with pytest.raises(BlockingIOError):
        change(path)
    assert ctypes.string_at(place, SIZE) == path.read_bytes()


def test_another_file_in_its_place_waits_for_nobody(path, place):
    before = path.read_bytes()
    path.with_name("new").write_bytes(b"new")
    path.with_name("new").replace(path)
    assert path.read_bytes() == b"new"
    assert ctypes.string_at(place, SIZE) == before


def test_a_file_that_is_written_or_of_another_user_is_left(path):
    with path.open("r+b"):
        assert place_of(path)[0] == 0
    code = """if True:
        import os
        import numpy as np
        from trakstore.storage.backends.mapped import mapped
        text = lambda value: np.frombuffer(value + bytes(1), np.uint8)
        mapped(text(b"/none"), text(b"none"), 1)  # its machine code is read
        if os.geteuid() == 0:
            os.seteuid(65534)  # nobody, who cannot take a lease of root's file either
        print(mapped(text(b"/etc"), text(b"passwd"), os.stat("/etc/passwd").st_size)[0])
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"


def shorter(path):
    os.truncate(path, SIZE - 1)


def longer(path):
    os.truncate(path, SIZE + 1)


def a_link(path):
    path.rename(path.with_name("other"))
    path.symlink_to("other")


def a_link_to_its_folder(path):
    path.parent.rename(path.parent.with_name("other"))
    path.parent.symlink_to("other")


def a_pipe(path):
    path.unlink()
    os.mkfifo(path)


def a_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "change",
    [os.unlink, shorter, longer, a_link, a_link_to_its_folder, a_pipe, a_folder],
    ids=lambda one: one.__name__,
)
def test_whatever_else_is_there_is_left_to_a_read(path, change):
    before = open_files()
    change(path)
    assert place_of(path)[0] == 0
    assert open_files() == before
    assert not is_mapped(path.parent)


def test_pages_that_cannot_be_read_are_told(path):
    # As if the file lost its end once its size was asked: whoever touched a page there would be killed.
    with path.open("rb") as file:
        assert _pages(file.fileno(), 2 * SIZE) == 0
    assert not is_mapped(path)
