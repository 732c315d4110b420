"""Places that hold a store: local folders, object storage, memory, any zarr store.

A :class:`Location` is a synchronous face of a zarr store for whole keys. It pickles as its address,
so that a worker process opens the place itself.
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray
from zarr.abc.store import Store, SuffixByteRequest
from zarr.core import sync as zarr_sync
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore, MemoryStore, ObjectStore

from trakstore.errors import NO_THREADS, LocationError, TrakStoreError, lacks_threads
from trakstore.storage.buffers import chunk_buffer

__all__ = ["Location", "Where", "open_location"]

_T = TypeVar("_T")

RESTS = (0.0, 0.2, 1.0)  # seconds before each attempt to write a key that is absent


class DurableLocalStore(LocalStore):
    """A local store whose ``set`` returns when the bytes would survive a power loss.

    As in zarr's own store, a value is written to a temporary file and renamed; here the file is
    flushed before and the folders after.
    """

    _supports_sync_io = False  # zarr's synchronous pipeline would pass by what is below

    # zarr's own ways to open make the folder: a store has none before its first document is written
    async def _open(self) -> None:  # type: ignore[override]
        await Store._open(self)

    async def _ensure_open(self) -> None:
        await Store._ensure_open(self)

    async def set(self, key: str, value: Buffer) -> None:
        """Write a value durably."""
        self._check_writable()
        await asyncio.to_thread(self.write, key, [value.as_buffer_like()])

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write a value durably unless the key exists; of several at once exactly one wins."""
        self._check_writable()
        await asyncio.to_thread(self.write, key, [value.as_buffer_like()], replace=False)

    def write(
        self, key: str, parts: Iterable[Any], *, replace: bool = True, flush: bool = True
    ) -> None:
        """Write the parts of a value, whole or not at all; or leave it to the system to flush."""
        path = self.root / key
        made = _make_folders(path.parent)
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
        finally:
            temporary.unlink(missing_ok=True)
        if flush:
            for folder in (path.parent, *(one.parent for one in made)):
                _sync_folder(folder)


def _make_folders(folder: Path) -> list[Path]:
    """Make a folder and those above it; the ones that were not there before."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _link_unless_there(source: Path, target: Path) -> None:
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


@dataclass(frozen=True, eq=False)
class Location:
    """A place for a store, read and written by whole keys.

    Attributes
    ----------
    address : str
        A path or URL that opens the place again, or a description where there is none.
    store : zarr.abc.store.Store
        The zarr store behind it.
    """

    address: str
    store: Store
    reopens: bool = True

    def __reduce__(self) -> tuple[Any, ...]:
        return (open_location, (self.address if self.reopens else self.store,))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Location) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def _identity(self) -> object:
        return self.address if self.reopens else id(self.store)

    def __str__(self) -> str:
        return self.address

    def get(self, key: str) -> bytes | None:
        """The bytes at ``key``, or ``None``."""
        found = self._run(self.store.get(key, default_buffer_prototype()))
        return None if found is None else found.to_bytes()

    def get_chunk(self, key: str) -> bytes | NDArray[np.uint8] | None:
        """As :meth:`get`, and without a copy where keys are files: for chunks, which are large.

        Files become arrays: see :mod:`trakstore.storage.buffers`.
        """
        if not isinstance(self.store, LocalStore):
            return self.get(key)
        try:
            with (self.store.root / key).open("rb") as file:
                content = chunk_buffer(os.fstat(file.fileno()).st_size)
                return content[: file.readinto(content.data)]
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def put_chunk(self, key: str, *parts: bytes) -> None:
        """Write parts as one value, whole or not at all; files are left to the system to flush."""
        if not isinstance(self.store, DurableLocalStore):
            self.put({key: b"".join(parts)})
            return
        try:
            self.store.write(key, parts, flush=False)
        except OSError as error:
            raise LocationError(f"{self}: {error}") from error

    def get_tails(self, keys: list[str], size: int) -> list[bytes | None]:
        """The last ``size`` bytes at each key, or ``None``."""

        async def tails() -> list[Buffer | None]:
            suffix = SuffixByteRequest(size)
            prototype = default_buffer_prototype()
            return await asyncio.gather(*(self.store.get(k, prototype, suffix) for k in keys))

        return [None if one is None else one.to_bytes() for one in self._run(tails())]

    def put(self, values: Mapping[str, bytes]) -> None:
        """Write values, several at a time; each is there whole or not at all."""
        buffer = default_buffer_prototype().buffer

        async def write() -> None:
            writes = (self.store.set(key, buffer.from_bytes(one)) for key, one in values.items())
            # all end before the first error is raised: nothing is written behind the caller's back
            for result in await asyncio.gather(*writes, return_exceptions=True):
                if isinstance(result, BaseException):
                    raise result

        self._run(write())

    def put_if_absent(self, key: str, value: bytes) -> bytes:
        """Write ``value`` unless the key exists; what the key holds in the end."""
        buffer = default_buffer_prototype().buffer.from_bytes(value)
        for rest in RESTS:  # S3 may turn down all of several writers that come at once
            if (existing := self.get(key)) is not None:
                return existing
            time.sleep(rest)
            self._run(self.store.set_if_not_exists(key, buffer), making=True)
        settled = self.get(key)
        if settled is None:
            raise LocationError(f"wrote {key} to {self} but cannot read it back")
        return settled

    def delete(self, keys: list[str]) -> None:
        """Delete keys; those that are not there are passed over."""

        async def remove() -> None:
            await asyncio.gather(*(self.store.delete(key) for key in keys))

        self._run(remove())

    def delete_folder(self, prefix: str) -> None:
        """Delete everything below ``prefix``."""
        self._run(self.store.delete_dir(prefix))

    def names(self, prefix: str) -> list[str]:
        """Names just below ``prefix``, sorted; temporary files of writers may be among them."""

        async def listing() -> list[str]:
            return [name async for name in self.store.list_dir(prefix)]

        return sorted(self._run(listing()))

    def find(self, folder: str, wanted: Callable[[str], bool]) -> list[str]:
        """Keys anywhere below ``folder`` that are wanted, sorted."""

        async def listing() -> list[str]:
            return [key async for key in self.store.list_prefix(f"{folder}/") if wanted(key)]

        return sorted(self._run(listing()))

    def _run(self, work: Coroutine[Any, Any, _T], *, making: bool = False) -> _T:
        try:
            return sync(work)
        except TrakStoreError:
            raise
        except OSError as error:
            if not making:
                raise LocationError(f"{self}: {error}") from error
            raise LocationError(
                f"{self} cannot be written to ({error.strerror or error}): choose another place"
            ) from error
        except RuntimeError as error:
            if not lacks_threads(error):
                raise
            work.close()
            _forget_loop()
            raise LocationError(NO_THREADS) from error


def _forget_loop() -> None:
    """Have zarr make another event loop: it would wait for ever for one whose thread never started."""
    (loop,), (thread,) = zarr_sync.loop, zarr_sync.iothread
    if loop is not None and thread is not None and not thread.is_alive():
        zarr_sync.loop[0] = zarr_sync.iothread[0] = None
        loop.close()


Where: TypeAlias = str | os.PathLike[str] | Store | Location
_MEMORY: dict[str, MemoryStore] = {}


def open_location(where: Where, *, create: bool = False) -> Location:
    """A :class:`Location` from a path, a URL, a zarr store or a location.

    Parameters
    ----------
    where : str, path, zarr.abc.store.Store or Location
        URLs are ``s3://bucket/prefix``, ``gs://bucket/prefix``, ``az://container/prefix``, with
        credentials and endpoint from the environment, and ``memory://name``: that lives as long as
        the process and is not seen by others.
    create : bool
        Whether the place may be new.

    Raises
    ------
    LocationError
        When there is nothing, the URL's scheme is not known, or object storage cannot be used.
    """
    if isinstance(where, Location):
        return where
    if isinstance(where, Store):
        return Location(str(where), _patient(where), reopens=False)
    if not isinstance(where, str | os.PathLike):
        raise LocationError(
            f"a place is a path, a URL such as s3://bucket/run.zarr, or a zarr store; got {where!r}"
        )
    address = os.fspath(where)
    if "\0" in address:
        raise LocationError(f"{address!r} names no place: it has a null character")
    scheme, separator, name = address.partition("://")
    if separator and scheme == "memory":
        return Location(address, _MEMORY.setdefault(name, MemoryStore()), reopens=False)
    if separator and scheme in ("s3", "gs", "az"):
        return _open_objects(address.rstrip("/"))
    if separator and scheme != "file":
        raise LocationError(
            f"{scheme}:// is not known; a location is a path, s3://, gs://, az:// or memory://name"
        )
    if separator and not name.startswith("/"):
        raise LocationError(
            f"{address} is no file URL: those are absolute, like file:///data/a.zarr"
        )
    try:
        path = Path(unquote(name)) if separator else Path(address).expanduser()
        return _open_folder(path.absolute(), create)
    except LocationError:
        raise
    except RuntimeError as error:  # there is no such user
        raise LocationError(f"{address} leads to no home folder: give the whole path") from error
    except OSError as error:
        raise LocationError(f"{address} cannot be a place: {_reason(error, address)}") from error


def _patient(store: Store) -> Store:
    """zarr's own store on obstore with trakstore's way of writing, trying again and failing."""
    if type(store) is not ObjectStore:
        return store
    from trakstore.storage.objects import SinglePutStore

    return SinglePutStore(store.store, read_only=store.read_only)


def _open_objects(url: str) -> Location:
    try:
        from trakstore.storage import objects
    except ImportError as error:  # obstore is an extra
        raise LocationError(
            f'object storage needs obstore ({error}): pip install "trakstore[cloud]"'
        ) from error
    return Location(url, objects.open_url(url))


def _reason(error: OSError, address: str) -> str:
    """What the system says of a path, in words, and what to do."""
    if isinstance(error, FileNotFoundError) and not Path(address).is_absolute():
        return "the working directory is gone; change to another one, or give the whole path"
    return f"{error.strerror or error}; choose another place"


def _open_folder(folder: Path, create: bool) -> Location:
    if not create and not folder.exists():
        raise LocationError(f"there is no store at {folder}: no such folder")
    if folder.exists() and not folder.is_dir():
        raise LocationError(f"{folder} is a file; a store is a folder")
    return Location(str(folder), DurableLocalStore(folder))
