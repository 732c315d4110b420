"""A place that is only read, whoever uses it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from trakstore.errors import LocationError
from trakstore.storage.backends.location import Location


@dataclass(frozen=True, eq=False)
class ReadOnlyLocation(Location):
    """A :class:`Location` that refuses every write and deletion with a :class:`LocationError`.

    Derived data that are stored only where possible, such as a gram, are then not stored.
    """

    @classmethod
    def of(cls, location: Location) -> ReadOnlyLocation:
        """Return the same place, read-only."""
        return cls(location.address, location.opened, location.reopens)

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), super().__reduce__()[1])

    # It must not equal the same place with write access: caches by place are not to be shared.
    @property
    def _identity(self) -> object:
        return "read only", super()._identity

    def put_chunk(self, key: str, *parts: bytes) -> None:  # noqa: ARG002
        """Refuse to write."""
        self._refuse()

    def put(self, values: Mapping[str, bytes]) -> None:  # noqa: ARG002
        """Refuse to write."""
        self._refuse()

    def delete(self, keys: list[str]) -> None:  # noqa: ARG002
        """Refuse to delete."""
        self._refuse()

    def delete_folder(self, prefix: str) -> None:  # noqa: ARG002
        """Refuse to delete."""
        self._refuse()

    def _put_absent(self, key: str, value: bytes) -> None:  # noqa: ARG002
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise LocationError(f"{self} was opened for reading alone")
