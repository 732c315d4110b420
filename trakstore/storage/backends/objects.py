"""Stores in object storage: ``s3://``, ``gs://`` and ``az://`` URLs, through obstore.

Credentials come from where each service's own tools look for them (the environment, for S3 also
profiles and shared files if boto3 is installed, the instance's metadata) and are never kept in a
location: it pickles as its URL.

A process that used object storage sleeps for 0.2 seconds when it ends. After a reply was used,
obstore's threads may still release Python objects that came with it, which aborts an interpreter that
is ending. Measured with obstore 0.12.1 on two busy cores: of 120 processes that made a small store and
ended, 3 aborted without the sleep, and none with it. obstore has no way to wait for its threads.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import random
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, TypeVar

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    GenericError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import from_url
from zarr.abc.buffer import Buffer, BufferPrototype
from zarr.abc.store import ByteRequest, Store
from zarr.storage import ObjectStore

from trakstore.errors import LocationError
from trakstore.storage.backends import event_loop
from trakstore.storage.backends.chunks import check_size
from trakstore.storage.layout import DOCUMENT, last_part

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ClientConfig, RetryConfig, S3CredentialProvider

TIMEOUTS: ClientConfig = {
    "connect_timeout": timedelta(seconds=10),
    "timeout": timedelta(seconds=120),  # of a request, with its body
}
RETRIES: RetryConfig = {"max_retries": 10, "retry_timeout": timedelta(seconds=240)}
RETRIES_AT_OPENING: RetryConfig = {"max_retries": 4, "retry_timeout": timedelta(seconds=30)}
ATTEMPTS = 4  # of an operation, with all retries of its requests
REST = 0.1  # seconds between attempts, doubled each time
PAGE = 1000  # keys that one request lists
PATIENCE = 60.0  # seconds after which no further attempt is made

_REST_AT_EXIT = 0.2  # seconds for obstore's threads to finish, see above
atexit.register(time.sleep, _REST_AT_EXIT)

_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT")
_SETTINGS = ("AWS_", "GOOGLE_", "AZURE_")
_URL = re.compile(r"\w+://[^/@?#]+(/[^@?#]*)?")
_T = TypeVar("_T")
_Settings: TypeAlias = tuple[tuple[str, str], ...]
_users: set[int] = set()  # processes that used obstore since the first of them was started


class SinglePutStore(ObjectStore[Any]):
    """zarr's store on obstore, with one PUT per value, patience, and errors that say what is wrong.

    Above 5 MB obstore uploads in parts, which halves the speed of writing chunks and leaves orphan
    parts when a process is killed.
    """

    def __init__(
        self,
        store: Any,
        read_only: bool = False,
        *,
        url: str | None = None,
        build: Callable[[], Any] | None = None,
    ) -> None:
        Store.__init__(self, read_only=read_only)
        self.url, self._store, self._build = url, store, build
        self.address = url or str(store)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle the URL alone: obstore's own stores pickle with the credentials that they were given.

        A process to which it is sent opens the URL at first use, so that an error fails a task.
        """
        if self.url is None:
            return type(self), (self.store, self.read_only)
        return _at_url, (self.url, self.read_only)

    @property
    def store(self) -> Any:
        """obstore's own."""
        if self._store is None and self._build is not None:
            self._store = self._build()
        return self._store

    def with_read_only(self, read_only: bool = False) -> Self:
        """Return the same store, writable or not."""
        return type(self)(self._store, read_only, url=self.url, build=lambda: self.store)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Get the value at ``key``, or a part of it; ``None`` when there is none."""
        return await self._trying(partial(super().get, key, prototype, byte_range))

    async def get_at_most(self, key: str, prototype: BufferPrototype, most: int) -> Buffer | None:
        """Get a value; raise a :class:`DamagedError` for more bytes, without reading them."""

        async def whole() -> Buffer | None:
            try:
                reply = await obstore.get_async(self.store, key)
            except FileNotFoundError:
                return None
            check_size(key, reply.meta["size"], most)
            content: Any = await reply.bytes_async()
            return prototype.buffer.from_bytes(content)

        return await self._trying(whole)

    async def set(self, key: str, value: Buffer) -> None:
        """Write a value in one request."""
        await self._put(key, value, "overwrite")

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write a value unless the key exists; of several at once exactly one wins.

        Nobody learns whether this call won: if the reply to a winning request is lost, the next request
        finds the key.
        """
        # No second read here: callers read the stored value, and compare it with their own.
        with suppress(AlreadyExistsError):
            await self._put(key, value, "create")

    async def delete(self, key: str) -> None:
        """Remove a key, if it is there."""
        await self._trying(partial(super().delete, key))

    async def delete_dir(self, prefix: str) -> None:
        """Remove every key below ``prefix``."""
        await self._trying(partial(super().delete_dir, prefix))

    async def list_dir(self, prefix: str) -> AsyncGenerator[str, None]:
        """List the names just below ``prefix``."""
        listed = await self._trying(
            lambda: obstore.list_with_delimiter_async(self.store, prefix=prefix)
        )
        paths = [*listed["common_prefixes"], *(one["path"] for one in listed["objects"])]
        for path in paths:
            yield last_part(path)

    async def _list(self, prefix: str | None = None) -> AsyncGenerator[ObjectMeta, None]:
        """List all keys below a prefix; if a page breaks off, only that page is requested again."""
        # One request lists a page at most. Each page is requested from the last key of the one before,
        # so that a broken connection loses one page and not the listing.
        after: str | None = None
        while True:
            page = await self._trying(partial(self._page, prefix, after))
            for one in page:
                yield one
            if len(page) < PAGE:
                return
            after = page[-1]["path"]

    async def _page(self, prefix: str | None, after: str | None) -> Sequence[ObjectMeta]:
        listed = obstore.list(self.store, prefix, offset=after, chunk_size=PAGE)
        async for page in listed:
            return page
        return ()

    async def _put(self, key: str, value: Buffer, mode: Literal["create", "overwrite"]) -> None:
        self._check_writable()
        data = value.as_buffer_like()
        await self._trying(
            lambda: obstore.put_async(self.store, key, data, mode=mode, use_multipart=False)
        )

    async def _trying(self, call: Callable[[], Awaitable[_T]]) -> _T:
        """Await ``call()``, and repeat it after failures that may pass.

        obstore itself retries requests, but not replies that break off, nor conditional writes that
        time out. Everything called here may be done twice.
        """
        # Writing a value twice, or deleting a key that is gone, is harmless. A conditional write that
        # is repeated may find the value that it wrote itself.
        _refuse_fork()
        began, attempt = time.monotonic(), 1
        while True:
            try:
                with _explained(self.address):
                    return await call()
            except LocationError as error:
                late = attempt == ATTEMPTS or time.monotonic() - began > PATIENCE
                if late or not _may_pass(error.__cause__):
                    raise
            # The rest is random, since workers that were refused together would come back together.
            await asyncio.sleep(random.uniform(0, REST * 2**attempt))
            attempt += 1


def open_url(url: str) -> SinglePutStore:
    """Open the store at a URL; one for each URL in a process, while the environment is the same.

    Parameters
    ----------
    url : str
        ``s3://bucket/prefix``, ``gs://bucket/prefix`` or ``az://container/prefix``; the scheme is one
        of those that ``open_location`` knows.

    Raises
    ------
    LocationError
        When the URL has no bucket, or more than a bucket and a prefix, the bucket is not there,
        access is denied, or the endpoint cannot be reached.
    """
    if not _URL.fullmatch(url):
        raise LocationError(
            "a URL in object storage is s3://bucket/prefix, gs://bucket/prefix or "
            "az://container/prefix; credentials are taken from the environment, never from it"
        )
    # With few retries: a wrong name or a missing network should show in seconds, not minutes.
    _check_opens(url, _settings())
    return _at_url(url)


def _at_url(url: str, read_only: bool = False) -> SinglePutStore:
    """Return the store at a URL without a request."""
    store = _made(url, _settings())
    return store.with_read_only(True) if read_only else store


def _settings() -> _Settings:
    known = {name: text for name, text in os.environ.items() if name.startswith(_SETTINGS)}
    return tuple(sorted(known.items()))


@lru_cache(maxsize=64)
def _made(url: str, settings: _Settings) -> SinglePutStore:
    return SinglePutStore(None, url=url, build=partial(_built, url, settings, RETRIES))


@lru_cache(maxsize=64)
def _check_opens(url: str, settings: _Settings) -> None:
    _refuse_fork()
    hasty = _built(url, settings, RETRIES_AT_OPENING)
    event_loop.run(_check(SinglePutStore(hasty, url=url)))


def _built(url: str, settings: _Settings, retries: RetryConfig) -> Any:
    environment = dict(settings)
    plain = any(environment.get(name, "").startswith("http://") for name in _ENDPOINTS)
    options: dict[str, Any] = {"client_options": {**TIMEOUTS, "allow_http": plain}}
    if url.startswith("s3:"):
        options["credential_provider"] = _credentials(url, environment)
    with _explained(url):
        return from_url(url, retry_config=retries, **options)


def _refuse_fork() -> None:
    """Raise where obstore would wait for ever: its threads do not outlive a fork."""
    _users.add(os.getpid())
    if len(_users) > 1:
        raise LocationError(
            "object storage cannot be used in a process that was forked from one that used it; "
            'start processes by "spawn" or "forkserver" (multiprocessing.set_start_method)'
        )


async def _check(store: SinglePutStore) -> None:
    """Raise unless the bucket exists and can be listed: reads take a missing one for a missing key."""
    async for _ in store.list_dir(DOCUMENT):  # a document never has keys below it
        return


def _credentials(url: str, environment: Mapping[str, str]) -> S3CredentialProvider | None:
    """Return boto3's credentials, for sources that obstore lacks: profiles, shared files, SSO."""
    if "AWS_ACCESS_KEY_ID" in environment or "AWS_SKIP_SIGNATURE" in environment:
        return None
    try:
        from botocore.exceptions import BotoCoreError
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        return None
    try:
        return Boto3CredentialProvider()
    except (ValueError, BotoCoreError) as error:
        why = "" if isinstance(error, ValueError) else f" ({error})"
        raise LocationError(
            f"no credentials for {url}{why}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            f"AWS_PROFILE; AWS_SKIP_SIGNATURE=true for a public bucket"
        ) from error


@contextmanager
def _explained(address: str) -> Iterator[None]:
    """Turn obstore's errors into a :class:`LocationError` of one line."""
    try:
        yield
    except AlreadyExistsError:
        raise
    except (BaseError, FileNotFoundError) as error:
        raise LocationError(_explanation(address, error)) from error


def _explanation(address: str, error: Exception) -> str:
    reason, message = _reason(str(error)), str(error)
    if re.search("NoSuchBucket|ContainerNotFound", reason):
        return f"there is no bucket for {address} ({reason}); make it first, or check its name"
    if re.search(r"latest/(api|meta-data)|computeMetadata|identity/oauth2|Missing \w*Key", message):
        files = "; profiles and shared files are read if boto3 is installed"
        return (
            f"no credentials for {address} in the environment, nor from the machine ({reason})"
            f"{files if address.startswith('s3:') else ''}"
        )
    if re.search("status code: 501|NotImplemented", message):
        return (
            f"the service of {address} lacks a request that trakstore needs ({reason}): to write only "
            f"where nothing is (If-None-Match), so that several writers do no harm; take a service "
            f"that has it, or a local folder, and copy that"
        )
    denied = isinstance(error, (PermissionDeniedError, UnauthenticatedError))
    if denied or re.search("status code: 40[13]", message):  # listings have no type of their own
        return f"access to {address} was denied ({reason}); check credentials and permissions"
    if "redirect" in reason:
        return f"{address} is in another region ({reason}); set AWS_REGION"
    return f"{address} cannot be used ({reason}); check the network and the endpoint"


def _reason(text: str) -> str:
    """Return the service's own words, or the network's, from obstore's long message.

    Examples
    --------
    >>> _reason("PUT in 3s - status code: 503 Slow: <Code>SlowDown</Code><Message>Later</Message>")
    'SlowDown: Later'
    >>> _reason("GET in 2ms - HTTP error: no reply\\n\\nDebug source: message: 'refused'")
    'HTTP error: no reply: refused'
    """
    code = re.search("<Code>(.*?)</Code>", text)
    if code:
        words = re.search("<Message>(.*?)</Message>", text, re.DOTALL)
        parts = [code[1], words[1] if words else ""]
    else:
        head, _, details = text.partition("\n\nDebug source:")
        inner = re.findall(r"""(?:message|error): ["']([^"']+)""", details)
        kind = ["timed out"] if "TimedOut" in details or "Timeout" in details else []
        parts = [head.rpartition(" - ")[2], *kind, *inner[:1]]
    return " ".join(": ".join(filter(None, parts)).split())[:300]


def _may_pass(error: BaseException | None) -> bool:
    """Tell whether to try again: not after a refusal, nor after a request that cannot be right."""
    # 408, 409 and 429 (timed out, conflicting writers, too many requests) pass; other 4xx do not.
    message = str(error).partition("\n\n")[0]
    refused = re.search("status code: (4(?!08|09|29)|501)|redirect|builder error", message)
    return isinstance(error, GenericError) and not refused
