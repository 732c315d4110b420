"""Places that hold a store: local folders, object storage, memory, any zarr store.

A :class:`Location` is a synchronous face of a zarr store for whole keys. It pickles as its address,
so that a worker process opens the place itself.
"""

from __future__ import annotations

import asyncio
import os
import platform
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar, cast, runtime_checkable
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray
from zarr.abc.buffer import Buffer, BufferPrototype
from zarr.abc.store import Store, SuffixByteRequest
from zarr.buffer import default_buffer_prototype
from zarr.storage import LocalStore, MemoryStore, ObjectStore

from trakstore.errors import DamagedError, LocationError, TrakStoreError
from trakstore.paths import exists, is_folder
from trakstore.storage.backends import event_loop
from trakstore.storage.backends.buffers import chunk_buffer
from trakstore.storage.backends.chunks import check_size
from trakstore.storage.backends.local import DurableLocalStore
from trakstore.storage.layout import check_key, is_document

_LOOKED_AT = 1000  # names that are read beside a folder that does not exist

T = TypeVar("T")

DOCUMENT_BYTES = 8 * 2**20  # most bytes of a document
VALUE_BYTES = 2**30  # most bytes of another value, unless its reader sets a limit
OBJECT_SCHEMES = ("s3", "gs", "az")  # of URLs that obstore opens
RESTS = (0.0, 0.2, 1.0)  # seconds before each attempt to write a key that is absent


@runtime_checkable
class _Bounded(Protocol):
    """A zarr store that can check the size of a value before reading it."""

    async def get_at_most(self, key: str, prototype: BufferPrototype, most: int) -> Buffer | None:
        """Get the value at ``key``; raise a :class:`DamagedError` for more than ``most`` bytes."""


async def fetch(store: Store, key: str, prototype: BufferPrototype, most: int) -> Buffer | None:
    """Get the value at ``key``, or ``None``; if possible, more than ``most`` bytes are not read.

    Raises
    ------
    DamagedError
        When there are more.
    """
    if isinstance(store, _Bounded):
        return await store.get_at_most(key, prototype, most)
    value = await store.get(key, prototype)
    if value is not None:
        check_size(key, len(value), most)
    return value


@dataclass(frozen=True, eq=False)
class Location:
    """A place for a store, read and written by whole keys.

    Attributes
    ----------
    address : str
        A path or URL that opens the place again, or a description where there is none.
    opened : zarr.abc.store.Store or None
        The zarr store behind it. None in a process to which the location was sent: it opens the store
        at first use, so that an error fails a task, not the process.
    reopens : bool
        Whether the address opens the same place.
    """

    address: str
    opened: Store | None
    reopens: bool = True

    # A worker opens the place itself: a store has connections, threads and credentials.
    def __reduce__(self) -> tuple[Any, ...]:
        return (Location, (self.address, None if self.reopens else self.opened, self.reopens))

    @cached_property
    def store(self) -> Store:
        """The zarr store behind it."""
        if self.opened is not None:
            return self.opened
        try:
            return open_location(self.address).store
        except LocationError as error:
            raise LocationError(
                f"{error} (in process {os.getpid()} of {platform.node()}); every worker has to see "
                f"the store at this place"
            ) from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Location) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    # Stores in memory, and those that somebody opened, are equal only if they are the same object.
    @property
    def _identity(self) -> object:
        return self.address if self.reopens else id(self.store)

    def __str__(self) -> str:
        return self.address

    @property
    def near(self) -> bool:
        """True on a local disk, where a read does not go to another machine."""
        return isinstance(self.store, LocalStore)

    def get(self, key: str, most: int | None = None) -> bytes | None:
        """Get the bytes at ``key``, or ``None``.

        Raises
        ------
        DamagedError
            When it is no regular file, or has more than ``most`` bytes; nothing is read then.
        """
        bound = (DOCUMENT_BYTES if is_document(key) else VALUE_BYTES) if most is None else most
        work = fetch(self.store, check_key(key), default_buffer_prototype(), bound)
        value = self._run(work)
        return None if value is None else value.to_bytes()

    def get_chunk(self, key: str, most: int | None = None) -> bytes | NDArray[np.uint8] | None:
        """Get a chunk as :meth:`get` does, without a copy if keys are files, since chunks are large.

        Files are read into reused arrays: see :mod:`trakstore.storage.backends.buffers`.
        """
        if not isinstance(self.store, DurableLocalStore):
            return self.get(key, most)
        with self.store.reading(key, VALUE_BYTES if most is None else most) as file:
            if file is None:
                return None
            content = chunk_buffer(os.fstat(file.fileno()).st_size)
            return content[: file.readinto(content.data)]

    def begin(
        self, wanted: Mapping[str, int], gate: asyncio.Semaphore
    ) -> dict[str, Future[Buffer | None]]:
        """Begin to read values; the futures raise the store's own errors.

        Parameters
        ----------
        wanted : mapping of str to int
            Keys, and the bytes that each value can have: more raise a :class:`DamagedError`.
        gate : asyncio.Semaphore
            Gate that limits how many reads run at once.
        """
        store, prototype = self.store, default_buffer_prototype()
        reads = {
            check_key(key): partial(fetch, store, key, prototype, most)
            for key, most in wanted.items()
        }
        return event_loop.begin(reads, gate)

    def put_chunk(self, key: str, *parts: bytes) -> None:
        """Write parts as one value, whole or not at all; flushing files is left to the system."""
        if not isinstance(self.store, DurableLocalStore):
            self.put({check_key(key): b"".join(parts)})
            return
        try:
            self.store.write(key, parts, flush=False)
        except DamagedError:
            raise
        except OSError as error:
            raise LocationError(f"{self}: {error}") from error

    def get_tails(self, keys: list[str], size: int) -> list[bytes | None]:
        """Get the last ``size`` bytes at each key, or ``None``."""
        store, prototype, suffix = self.store, default_buffer_prototype(), SuffixByteRequest(size)
        checked = [check_key(key) for key in keys]
        tails = self._run(_all(store.get(key, prototype, suffix) for key in checked))
        return [None if one is None else one.to_bytes() for one in tails]

    def put(self, values: Mapping[str, bytes]) -> None:
        """Write values, several at a time; each is there whole or not at all."""
        store, buffer = self.store, default_buffer_prototype().buffer
        checked = {check_key(key): buffer.from_bytes(one) for key, one in values.items()}
        self._run(_all(store.set(key, one) for key, one in checked.items()))

    def put_if_absent(self, key: str, value: bytes) -> bytes:
        """Write ``value`` unless the key exists; return what the key holds in the end.

        Of several processes at once exactly one writes, and all return its value. In this way processes
        agree on nonces, specs, numbers and claims.
        """
        for rest in RESTS:  # S3 may refuse all of several writers that come at once
            if (existing := self.get(key)) is not None:
                return existing
            time.sleep(rest)
            # If another writer was first, there is no error, nor a word on who won: the stored value
            # decides.
            self._put_absent(key, value)
        value_there = self.get(key)
        if value_there is None:
            raise LocationError(f"wrote {key} to {self} but cannot read it back")
        return value_there

    def put_all_if_absent(self, values: Mapping[str, bytes]) -> None:
        """Write values, one after the other, at keys that do not exist yet."""
        keys = list(values)
        for rest in (*RESTS, None):
            ends = self.get_tails(keys, 1)
            absent = [key for key, end in zip(keys, ends, strict=True) if not end]
            if not absent:
                return
            if rest is None:
                raise LocationError(f"wrote {absent[0]} to {self} but cannot read it back")
            time.sleep(rest)
            for key in absent:
                self._put_absent(key, values[key])

    def _put_absent(self, key: str, value: bytes) -> None:
        buffer = default_buffer_prototype().buffer.from_bytes(value)
        self._run(self.store.set_if_not_exists(check_key(key), buffer), making=True)

    def delete(self, keys: list[str]) -> None:
        """Delete keys; those that are not there are passed over."""
        store, checked = self.store, [check_key(key) for key in keys]
        self._run(_all(store.delete(key) for key in checked))

    def delete_folder(self, prefix: str) -> None:
        """Delete everything below ``prefix``."""
        self._run(self.store.delete_dir(check_key(prefix)))

    def names(self, prefix: str) -> list[str]:
        """List the names just below ``prefix``, sorted; temporary files may be among them."""
        return self._run(_listed(self.store.list_dir(check_key(prefix))))

    def find(self, folder: str, wanted: Callable[[str], bool]) -> list[str]:
        """List the wanted keys anywhere below ``folder``, sorted."""
        return self._run(_listed(self.store.list_prefix(f"{check_key(folder)}/"), wanted))

    def _run(self, work: Coroutine[Any, Any, T], *, making: bool = False) -> T:
        try:
            return event_loop.run(work)
        except TrakStoreError:
            raise
        except OSError as error:
            if not making:
                raise LocationError(f"{self}: {error}") from error
            raise LocationError(
                f"{self} cannot be written to ({error.strerror or error}): choose another place"
            ) from error


async def _all(work: Iterable[Awaitable[T]]) -> list[T]:
    """Await several coroutines; all have ended when the first error is raised."""
    # Otherwise a write could still run after the caller has given up.
    results = await asyncio.gather(*work, return_exceptions=True)
    for one in results:
        if isinstance(one, BaseException):
            raise one
    return cast("list[T]", results)


async def _listed(
    names: AsyncIterator[str], wanted: Callable[[str], bool] = lambda _: True
) -> list[str]:
    """Return the wanted names, sorted."""
    return sorted([name async for name in names if wanted(name)])


Where: TypeAlias = str | os.PathLike[str] | Store | Location
_MEMORY: dict[str, MemoryStore] = {}


def open_location(where: Where, *, create: bool = False) -> Location:
    """Open a :class:`Location` from a path, a URL, a zarr store or a location.

    Parameters
    ----------
    where : str, path, zarr.abc.store.Store or Location
        URLs are ``s3://bucket/prefix``, ``gs://bucket/prefix`` and ``az://container/prefix``, with
        credentials and endpoint from the environment, and ``memory://name``, which lives as long as the
        process and is not seen by others.
    create : bool
        Whether the place may be empty.

    Raises
    ------
    LocationError
        When there is nothing, the URL's scheme is unknown, or object storage cannot be used.
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
    if separator and scheme in OBJECT_SCHEMES:
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
        os.fsencode(path)
        return _open_folder(path.absolute(), create)
    except TrakStoreError:
        raise
    except RuntimeError as error:  # there is no such user
        raise LocationError(f"{address} leads to no home folder: give the whole path") from error
    except OSError as error:
        raise LocationError(f"{address} cannot be a place: {_reason(error, address)}") from error
    except ValueError as error:  # a character that no path has
        raise LocationError(f"{address} names no place ({error}); give another path") from error


def _patient(store: Store) -> Store:
    """Wrap zarr's own stores so that they read, write, retry and fail in trakstore's way."""
    if type(store) is LocalStore:
        return DurableLocalStore(store.root, read_only=store.read_only)
    if type(store) is not ObjectStore:
        return store
    from trakstore.storage.backends.objects import SinglePutStore

    return SinglePutStore(store.store, read_only=store.read_only)


def _open_objects(url: str) -> Location:
    try:
        from trakstore.storage.backends import objects
    except ImportError as error:  # obstore is an extra
        raise LocationError(
            f'object storage needs obstore ({error}): pip install "trakstore[cloud]"'
        ) from error
    return Location(url, objects.open_url(url))


def _reason(error: OSError, address: str) -> str:
    """Return the system's message about a path, and a remedy."""
    if isinstance(error, FileNotFoundError) and not Path(address).is_absolute():
        return "the working directory is gone; change to another one, or give the whole path"
    return f"{error.strerror or error}; choose another place"


def _open_folder(folder: Path, create: bool) -> Location:
    if not create and not exists(folder):
        raise LocationError(f"there is no store at {folder}: no such folder{_beside(folder)}")
    if exists(folder) and not is_folder(folder):
        raise LocationError(f"{folder} is a file; a store is a folder")
    return Location(str(folder), DurableLocalStore(folder))


def _beside(folder: Path) -> str:
    """Name zarr groups that lie beside a folder which does not exist."""
    with suppress(OSError):
        some = islice(folder.parent.iterdir(), _LOOKED_AT)
        names = sorted(one.name for one in some if exists(one / "zarr.json"))
        return f"; beside it there is {', '.join(names[:5])}" if names else ""
    return ""
