"""Machine code that is kept, and what is done where it cannot be."""

from __future__ import annotations

import errno
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from numba.core.caching import IndexDataCacheFile

from trakstore import machine_code

ASK = "from loops import add; print(add(2, 3), *map(len, add.stats[1:]))"


@pytest.fixture
def loops(tmp_path: Path) -> Path:
    """A module with one loop, whose machine code is kept beside it."""
    (tmp_path / "loops.py").write_text(
        "from trakstore.machine_code import compiled\n\n\n"
        "@compiled\ndef add(one, other):\n    return one + other\n"
    )
    return tmp_path


def asked(folder: Path) -> tuple[str, str]:
    """Ask for a sum in a process of its own: what it prints, and its log."""
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); {ASK}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip(), done.stderr


def kept(folder: Path, ending: str) -> list[Path]:
    return sorted(folder.rglob(f"*.{ending}"))


def test_a_later_process_takes_what_was_kept(loops: Path) -> None:
    assert asked(loops) == ("5 0 1", "")
    assert len(kept(loops, "nbi")) == len(kept(loops, "nbc")) == 1
    assert asked(loops) == ("5 1 0", "")


@pytest.mark.parametrize("ending", ["nbi", "nbc"])
@pytest.mark.parametrize("content", [b"", b"\0" * 500, b"half"], ids=["empty", "zeros", "other"])
def test_what_cannot_be_read_is_compiled_and_kept_again(
    loops: Path, ending: str, content: bytes
) -> None:
    asked(loops)
    (damaged,) = kept(loops, ending)
    damaged.write_bytes(content)
    answer, log = asked(loops)
    assert answer == "5 0 1" and "cannot be read" in log
    assert asked(loops) == ("5 1 0", "")


def test_a_full_disk_stands_in_nobodys_way(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def add(one: int, other: int) -> int:
        return one + other

    monkeypatch.setattr(IndexDataCacheFile, "_save_index", full)
    with caplog.at_level(logging.WARNING, "trakstore"):
        assert machine_code.compiled(add)(2, 3) == 5
    assert "cannot be kept" in caplog.text and "No space left" in caplog.text
