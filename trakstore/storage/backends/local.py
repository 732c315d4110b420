"""Stores in local folders: written durably, and read as if a stranger had packed them.

Nothing below the root is reached through a symbolic link, only regular files are read, and the size of
a file is compared with what is expected before memory is taken for it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import stat
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from zarr.abc.buffer import Buffer, BufferPrototype
from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.buffer import default_buffer_prototype
from zarr.storage import LocalStore

from trakstore.errors import DamagedError
from trakstore.paths import exists, is_file, is_folder, is_link
from trakstore.storage.backends.chunks import check_size
from trakstore.storage.layout import check_key, child

ATTEMPTS = 8  # attempts to remove a folder into which others write
REST = 0.01  # seconds before the next attempt, doubled each time

# a pipe would wait for a writer, a link lead elsewhere; flags that a system lacks change nothing there
_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)


class DurableLocalStore(LocalStore):
    """A local store whose ``set`` returns when the bytes would survive a power loss.

    As in zarr's own store, a value is written to a temporary file and renamed; here the file is
    flushed before and the folders after.
    """

    _supports_sync_io = False  # zarr's synchronous pipeline would bypass the methods below

    # zarr's own ways to open make the folder: a store has none before its first document is written
    async def _open(self) -> None:  # type: ignore[override]
        await Store._open(self)

    async def _ensure_open(self) -> None:
        await Store._ensure_open(self)

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """Get the value at ``key``, or a part of it; ``None`` when there is none."""
        return await asyncio.to_thread(self._read, key, prototype, byte_range)

    async def get_at_most(self, key: str, prototype: BufferPrototype, most: int) -> Buffer | None:
        """Get a value; raise a :class:`DamagedError` for more bytes, without reading them."""
        return await asyncio.to_thread(self._read, key, prototype, None, most)

    def _read(
        self,
        key: str,
        prototype: BufferPrototype | None,
        byte_range: ByteRequest | None,
        most: int | None = None,
    ) -> Buffer | None:
        with self.reading(key, most) as file:
            if file is None:
                return None
            start, stop = _part(os.fstat(file.fileno()).st_size, byte_range)
            file.seek(start)
            content = file.read(stop - start)
        return (prototype or default_buffer_prototype()).buffer.from_bytes(content)

    @contextmanager
    def reading(self, key: str, most: int | None = None) -> Iterator[BufferedReader | None]:
        """Open the regular file at ``key``; ``None`` where there is none.

        Raises
        ------
        DamagedError
            When something else is there, it lies behind a link, or has more than ``most`` bytes.
        """
        file = _opened(self._path(key), key)
        if file is None:
            yield None
            return
        with file:
            # A sparse file of a terabyte costs a stranger nothing: its size is checked before memory is
            # taken.
            check_size(key, os.fstat(file.fileno()).st_size, most)
            yield file

    def place(self, key: str) -> Path:
        """Return the path of a key; raise a :class:`DamagedError` where a link leads elsewhere."""
        return Path(self._path(key))

    def _path(self, key: str) -> str:
        # Every folder on the way is checked each time. A store may come in a stranger's archive, and a
        # link in it would have files outside of the store read, replaced or deleted.
        path = f"{self.root}{os.sep}{check_key(key)}"
        at = key.find("/")
        while at >= 0:
            if is_link(path[: len(path) - len(key) + at]):
                raise DamagedError(_LINK.format(key[:at]))
            at = key.find("/", at + 1)
        return path

    async def exists(self, key: str) -> bool:
        """Tell whether there is a regular file."""
        path = self.place(key)
        return is_file(path) and not is_link(path)

    async def getsize(self, key: str) -> int:
        """Return the bytes of the value at ``key``."""
        return self.place(key).lstat().st_size

    async def set(self, key: str, value: Buffer) -> None:
        """Write a value durably."""
        await asyncio.to_thread(self.write, key, [value.as_buffer_like()])

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write a value durably unless the key exists; of several at once exactly one wins."""
        await asyncio.to_thread(self.write, key, [value.as_buffer_like()], replace=False)

    def write(
        self, key: str, parts: Iterable[Any], *, replace: bool = True, flush: bool = True
    ) -> None:
        """Write the parts of a value, whole or not at all; flush them, or leave that to the system."""
        self._check_writable()
        path = self.place(key)
        made = _make_folders(path.parent)
        # A kill before the rename, or the link, leaves a file named *.partial, which no reader takes
        # for a key. A kill after it leaves the whole value.
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
        try:
            with temporary.open("xb") as file:
                file.writelines(parts)
                if flush:
                    file.flush()
                    os.fsync(file.fileno())
            if replace:
                temporary.replace(path)
            else:
                _link_unless_there(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            # An empty folder would look as if its document had been deleted.
            for folder in made:
                with suppress(OSError):
                    folder.rmdir()
            raise
        finally:
            temporary.unlink(missing_ok=True)
        if flush:
            # A new file's name is in its folder, and a new folder's name in the one above. After a
            # power loss, a flushed file that no flushed folder names would be gone.
            for folder in (path.parent, *(one.parent for one in made)):
                _sync_folder(folder)

    async def delete(self, key: str) -> None:
        """Remove a key, or everything below it; of a symbolic link, the link alone."""
        await asyncio.to_thread(self.delete_sync, key)

    async def delete_dir(self, prefix: str) -> None:
        """Remove everything below a prefix, as :meth:`delete` does."""
        await asyncio.to_thread(self.delete_sync, prefix.rstrip("/"))

    def delete_sync(self, key: str) -> None:
        """Remove a key at once, as :meth:`delete` does."""
        self._check_writable()
        path = self.place(key)
        # Of a link only the link is removed: what it leads to does not belong to the store.
        if is_folder(path) and not is_link(path):
            _remove_folder(path)
        else:
            with suppress(NotADirectoryError):
                path.unlink(missing_ok=True)

    async def list(self) -> AsyncIterator[str]:
        """List all keys."""
        for key in await asyncio.to_thread(_below, self, ""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """List all keys below ``prefix``; links are keys, what they lead to is not looked at."""
        for key in await asyncio.to_thread(_below, self, prefix.rstrip("/")):
            yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """List the names just below ``prefix``."""
        for name in await asyncio.to_thread(_names, self, prefix.rstrip("/")):
            yield name


_LINK = "{} is a symbolic link, which no store has: nothing behind it is read or written"


def _opened(path: str, key: str) -> BufferedReader | None:
    """Open the regular file at a path; ``None`` for nothing and for a folder."""
    try:
        handle = os.open(path, _FLAGS)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if not is_link(path):
            raise
        raise DamagedError(_LINK.format(key)) from error
    # The open file is asked, not its name, which may lead to another file by now.
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    if stat.S_ISDIR(mode):
        return None
    raise DamagedError(f"{key} is a pipe or a device, which no store has: remove it by hand")


def _names(store: DurableLocalStore, folder: str) -> list[str]:
    """List the names just below a folder."""
    path = store.place(folder)
    if folder and is_link(path):
        raise DamagedError(_LINK.format(folder))
    with suppress(FileNotFoundError, NotADirectoryError):
        return [one.name for one in path.iterdir()]
    return []


def _below(store: DurableLocalStore, folder: str) -> list[str]:
    """List the keys of everything below a folder that is no folder."""
    if folder and is_link(store.place(folder)):
        return [folder]
    keys: list[str] = []
    # Not os.walk, which silently passes over a folder that it cannot list.
    waiting = [folder]
    while waiting:
        at = waiting.pop()
        with (
            suppress(FileNotFoundError, NotADirectoryError),
            os.scandir(store.place(at)) as inside,
        ):
            for one in inside:
                key = child(at, one.name)
                (waiting if one.is_dir(follow_symlinks=False) else keys).append(key)
    return keys


def _part(size: int, byte_range: ByteRequest | None) -> tuple[int, int]:
    """Return the first byte of a part of a value, and the one after its last, as numbers."""
    if isinstance(byte_range, RangeByteRequest):
        return min(size, byte_range.start), min(size, byte_range.end)
    if isinstance(byte_range, OffsetByteRequest):
        return min(size, byte_range.offset), size
    if isinstance(byte_range, SuffixByteRequest):
        return max(0, size - byte_range.suffix), size
    return 0, size


def _make_folders(folder: Path) -> list[Path]:
    """Make a folder and those above it; return the ones that were not there before."""
    missing = [one for one in (folder, *folder.parents) if not exists(one)]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_folder(folder: Path) -> None:
    """Remove a folder with everything below it.

    Other processes may add or remove files meanwhile: what they leave is removed by another attempt.
    """
    # ENOENT: another process removed a file first. ENOTEMPTY, EEXIST: a writer added one since the
    # folder was listed. Other errors, such as a lack of permission, would come again.
    for attempt in range(ATTEMPTS):
        try:
            shutil.rmtree(folder)
        except OSError as error:
            others = error.errno in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST)
            if not others or attempt == ATTEMPTS - 1:
                raise
        if not exists(folder):
            return
        time.sleep(REST * 2**attempt)


def _link_unless_there(source: Path, target: Path) -> None:
    # A rename would replace the file of another writer; a link fails where a name is taken.
    try:
        os.link(source, target)
    except FileExistsError:
        return


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
