"""Files that people name, such as pages and exports: checked before the work, with clear errors."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trakstore.errors import LocationError, TrakStoreError
from trakstore.paths import exists, is_folder


def check_file_place(path: Path) -> None:
    """Raise a :class:`LocationError` if no file could be written, before its content is computed.

    Permissions do not tell everything (root, read-only or full disks, ``/proc``), so a nameless file is
    made in the folder; it leaves nothing behind.
    """
    folder = path.absolute().parent
    with writing(path):
        if is_folder(path):
            raise LocationError(f"{path} is a folder; name a file in it")
        if not is_folder(folder):
            raise LocationError(f"there is no folder {path.parent}; make it, or name another file")
        if not exists(path):
            with tempfile.TemporaryFile(dir=folder):
                return
        if not os.access(path, os.W_OK):
            raise LocationError(f"{path} is there and may not be written; name another file")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's errors in the ``with`` block into a :class:`LocationError` naming the file."""
    try:
        yield
    except TrakStoreError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise LocationError(
            f"cannot write {path}: {reason}; choose another place, or make room in this one"
        ) from error
