"""Opening a store that is there."""

from __future__ import annotations

from trakstore.errors import LocationError
from trakstore.storage import layout
from trakstore.storage.backends.location import Location, Where, open_location
from trakstore.storage.root import is_root, read_root
from trakstore.storage.store import FeatureStore

_LOOKED_AT = 20  # names in a place that is no store itself


def open_store(where: Where | FeatureStore) -> FeatureStore:
    """Open a store that exists.

    Parameters
    ----------
    where : str, path or zarr store
        Its place: a local folder, or a URL such as ``s3://bucket/run.zarr``.

    Raises
    ------
    LocationError
        When nothing is there, or something that is not a feature store.
    SpecMismatchError
        When a newer trakstore wrote it.

    Examples
    --------
    >>> ts.open_store("memory://examples").epochs
    (2, 5, 15)
    >>> ts.open_store("memory://nowhere")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    trakstore.errors.LocationError: there is no store at memory://nowhere; ...
    """
    if isinstance(where, FeatureStore):
        return where
    location = open_location(where)
    store = find_store(location)
    if store is None:
        raise no_store_error(location)
    return store


def no_store_error(location: Location) -> LocationError:
    """Make the error that a place is no store, which names stores that lie in it."""
    inside = stores_inside(location)
    if inside:
        return LocationError(f"there is no store at {location}; in it there is {', '.join(inside)}")
    return LocationError(
        f"there is no store at {location}; make one with `trakstore featurize` or FeatureStore.create"
    )


def stores_inside(location: Location) -> list[str]:
    """Return names of stores in a place, among the first that lie there."""
    documents = {name: layout.document_key(name) for name in location.names("")[:_LOOKED_AT]}
    return [name for name, key in documents.items() if is_root(location.get(key))]


def find_store(where: Where | FeatureStore) -> FeatureStore | None:
    """Open the store at a place, or return None where there is none yet."""
    if isinstance(where, FeatureStore):
        return where
    location = open_location(where, create=True)
    document = location.get(layout.DOCUMENT)
    if document is None:
        return None
    return FeatureStore(location, *read_root(document, location)).refresh()


def location_of(where: Where | FeatureStore, *, create: bool = False) -> Location:
    """Return the place of a store that is there or, with ``create``, will be."""
    if isinstance(where, FeatureStore):
        return where.location
    return open_location(where, create=create)
