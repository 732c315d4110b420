"""A store's root document: what makes a place a store, and of which format."""

from __future__ import annotations

from trakstore.documents import anything, fields, whole
from trakstore.errors import LocationError, SpecMismatchError, error_context
from trakstore.spec import FORMAT_VERSION, StoreSpec
from trakstore.storage import layout
from trakstore.storage.backends.location import Location
from trakstore.storage.group_documents import attributes, group_document

__all__ = ["read_format", "read_root", "refuse_foreign", "root_document"]

_KIND = "trakstore"


def root_document(spec: StoreSpec) -> bytes:
    """The root document of a store of this spec: a function of the spec alone."""
    return group_document({_KIND: {"format": FORMAT_VERSION, **spec.to_dict()}})


def read_root(document: bytes, location: Location) -> StoreSpec:
    """The spec in a store's root document, or an error that says what is there instead."""
    where = str(location)
    stored = attributes(document, where, check=False).get(_KIND)
    if stored is None:
        raise LocationError(
            f"{location} holds a zarr group that is not a trakstore store; "
            f"give the folder that featurize or FeatureStore.create made"
        )
    version = stored.get("format") if isinstance(stored, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise SpecMismatchError(
            f"{location} has format {version}, this trakstore reads up to {FORMAT_VERSION}: "
            f"pip install --upgrade trakstore"
        )
    checked = attributes(document, where)[_KIND]
    with error_context(where):
        fields(checked, {**dict.fromkeys(checked, anything()), "format": whole(1)})
        return StoreSpec.from_dict({key: checked[key] for key in checked if key != "format"})


def read_format(document: bytes) -> int:
    """The format of a store, from the root document that :func:`read_root` took."""
    return int(attributes(document, "")[_KIND]["format"])


def refuse_foreign(location: Location) -> None:
    """Raise a :class:`LocationError` if something that is no store lies at a location."""
    # listed first: where others make a store just now, its document is there before all else
    known = (layout.DYNAMICS, layout.CLAIMS)  # training may be watched before there are features
    names = [n for n in location.names("") if not layout.is_leftover(n) and n not in known]
    if names and location.get(layout.DOCUMENT) is None:
        raise LocationError(
            f"{location} is not empty and is not a store (it has {names[0]!r}); "
            f"give an empty or new place"
        )
