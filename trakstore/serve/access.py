"""Rules on who may ask, by token, by the name used for the service, and by the page that sends."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from trakstore.errors import TrakStoreError
from trakstore.serve.bodies import BadRequestError

LEAST_LETTERS = 16
# Addresses that reveal nothing of the store, and are open to everybody.
OPEN = ("/", "/health", "/openapi.json")


def is_loopback(host: str) -> bool:
    """Tell whether an address can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Access:
    """Rules that apply to each request.

    Attributes
    ----------
    host : str
        Address at which the service listens.
    token : str, optional
        Text that requests must bring; required if other machines can reach the service.
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
        """Accept a request, or refuse it.

        Raises
        ------
        BadRequestError
            401 without the token; 403 with a host name other than this machine's, or from a page of
            another site.
        """
        # A page of another site can make its own host name lead here, but its requests name that host.
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
