"""A place that is read and never written, whoever asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from trakstore.errors import LocationError
from trakstore.storage.backends.location import Location


@dataclass(frozen=True, eq=False)
class ReadOnlyLocation(Location):
    """A :class:`Location` that refuses every write and deletion with a :class:`LocationError`.

    What is kept only where it can be, such as a gram, is then not kept.
    """

    @classmethod
    def of(cls, location: Location) -> ReadOnlyLocation:
        """Return the same place, to be read alone."""
        return cls(location.address, location.opened, location.reopens)

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), super().__reduce__()[1])

    # Another place than the same one that can be written: what is kept by place must not be shared.
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
