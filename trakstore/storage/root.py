"""The root document of a store, which makes a place a store of some format."""

from __future__ import annotations

from trakstore.documents import anything, fields, whole
from trakstore.errors import DamagedError, LocationError, SpecMismatchError, error_context
from trakstore.spec import FORMAT_VERSION, StoreSpec, check_equal
from trakstore.storage import layout
from trakstore.storage.backends.location import Location
from trakstore.storage.group_documents import attributes, group_document

_KIND = "trakstore"


def make_root(location: Location, spec: StoreSpec) -> tuple[StoreSpec, int]:
    """Make a store, or open an existing one with the same spec; return spec and format.

    Raises
    ------
    SpecMismatchError
        When the existing store has another spec, or a newer trakstore wrote it.
    LocationError
        When the place has something that is no store.
    """
    _refuse_foreign(location)
    proposed = group_document({_KIND: {"format": FORMAT_VERSION, **spec.to_dict()}})
    # Of several processes at once one writes the document, and the stored one decides.
    document = location.put_if_absent(layout.document_key(""), proposed)
    stored, version = read_root(document, location)
    check_equal(stored, spec, str(location))
    return stored, version


def read_root(document: bytes, location: Location) -> tuple[StoreSpec, int]:
    """Return the spec and the format in a store's root document.

    Raises
    ------
    LocationError
        When it is another program's document.
    SpecMismatchError
        When a newer trakstore wrote it.
    """
    where = str(location)
    # A newer trakstore may compute the checksum differently: the version is compared first.
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
        # The spec's own reader checks its fields.
        named = checked if isinstance(checked, dict) else {}
        fields(checked, {**dict.fromkeys(named, anything()), "format": whole(1)})
        spec = StoreSpec.from_dict({key: checked[key] for key in checked if key != "format"})
    return spec, int(checked["format"])


def is_root(document: bytes | None) -> bool:
    """Tell whether a document is that of a store, of any format, sound or not."""
    try:
        return document is not None and _KIND in attributes(document, "", check=False)
    except DamagedError:
        return False


def _refuse_foreign(location: Location) -> None:
    """Raise a :class:`LocationError` if something that is no store lies at a location."""
    # The place is listed first: if others are making a store, its document comes before all else.
    # Dynamics and scales may be stored before there are features.
    known = (layout.DYNAMICS, layout.CLAIMS, layout.SCALES)
    names = [n for n in location.names("") if not layout.is_leftover(n) and n not in known]
    if names and location.get(layout.document_key("")) is None:
        raise LocationError(
            f"{location} is not empty and is not a store (it has {names[0]!r}); "
            f"give an empty or new place"
        )
