"""The scale of a store's gradients: where it came from, and the hash of its factors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from trakstore import documents
from trakstore.errors import TrakStoreError
from trakstore.quantities import is_one_of

ScaleSource = Literal["samples", "adam", "given"]

_FIELDS = {
    "source": documents.one_of(*get_args(ScaleSource)),
    "digest": documents.text(re.compile("[0-9a-f]{64}")),
}


@dataclass(frozen=True)
class ScaleSpec:
    """A scale of gradients; its factors are in a table of the store, named by their hash.

    Attributes
    ----------
    source : {"samples", "adam", "given"}
        Origin of the second moments: samples with labels drawn from the model, the optimizer, or the
        caller.
    digest : str
        SHA-256 of the factors; see ``storage/FORMAT.md``.
    """

    source: ScaleSource
    digest: str

    def __post_init__(self) -> None:
        if not is_one_of(self.source, get_args(ScaleSource)):
            known = ", ".join(get_args(ScaleSource))
            raise TrakStoreError(f"the source of a scale is {known}, got {self.source!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> ScaleSpec:
        """Read a result of :meth:`to_dict`."""
        return cls(**documents.fields(document, _FIELDS, what="the scale of gradients"))
