"""Rules on who may ask: a token, the name that the service is called by, the page that sends."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from trakstore.errors import TrakStoreError
from trakstore.serve.bodies import BadRequestError

LEAST_LETTERS = 16
# Addresses that hold nothing of the store, and are given to anybody.
OPEN = ("/", "/health", "/openapi.json")


def is_loopback(host: str) -> bool:
    """Tell whether an address is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Access:
    """Rules that each request is held to.

    Attributes
    ----------
    host : str
        Address that the service listens at.
    token : str, optional
        Text that requests must bring; needed where others than this machine reach the service.
    """

    host: str
    token: str | None = None

    def __post_init__(self) -> None:
        if self.token is None and not is_loopback(self.host):
            raise TrakStoreError(
                f"at {self.host} others can ask: give a token (--token or TRAKSTORE_TOKEN), or serve "
                f"at 127.0.0.1"
            )
        token = self.token
        if token is not None and not (
            len(token) >= LEAST_LETTERS and token.isascii() and token.isprintable()
        ):
            raise TrakStoreError(
                f"a token has {LEAST_LETTERS} or more plain characters; this makes one: "
                f"python -c 'import secrets; print(secrets.token_urlsafe())'"
            )

    def check(self, method: str, path: str, headers: Mapping[str, str]) -> None:
        """Let a request pass, or refuse it.

        Raises
        ------
        BadRequestError
            401 without the token; 403 by another name than that of this machine, or from a page of
            another site.
        """
        # A page of another site can make its own name lead here: what it sends names that.
        if self.token is None and not is_loopback(_name_of(headers.get("host", ""))):
            raise BadRequestError(403, "ask by the address of this machine, such as 127.0.0.1")
        origin = headers.get("origin")
        if origin is not None and method != "GET" and _place_of(origin) != headers.get("host"):
            raise BadRequestError(403, "pages of other sites may not ask")
        if self.token is None or path in OPEN:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode(), self.token.encode())
        if scheme.lower() != "bearer" or not right:
            raise BadRequestError(401, "a token is needed: Authorization: Bearer TOKEN")


def _name_of(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _place_of(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""
