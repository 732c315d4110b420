"""The feature store: epochs and splits of features under one spec."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from trakstore.errors import (
    DamagedError,
    LocationError,
    NotFoundError,
    SpecMismatchError,
    TrakStoreError,
    did_you_mean,
)
from trakstore.planning import block_shape
from trakstore.spec import (
    FORMAT_VERSION,
    FeatureDtype,
    OutputSpec,
    ParameterSpec,
    ProjectionSpec,
    SplitSpec,
    StoreSpec,
    check_equal,
)
from trakstore.storage import layout
from trakstore.storage.arrays import array_documents
from trakstore.storage.columns import column_dtype, row_column, sample_ids, stored_rows
from trakstore.storage.growth import append_rows, drop_split, mask_rows, sweep_stale_markers
from trakstore.storage.layout import Epoch
from trakstore.storage.locations import Location, Where, open_location
from trakstore.storage.runs import Run, list_runs
from trakstore.storage.splits import Split, SplitStatus, attributes, group_document
from trakstore.storage.writer import BlockWriter

__all__ = ["FeatureStore", "open_store"]

_KIND = "trakstore"


@dataclass(frozen=True)
class FeatureStore:
    """Features of samples, by epoch and split, in one place.

    Open one with :func:`open_store`, or make one with :meth:`create`.

    Attributes
    ----------
    location : Location
        Where it is.
    spec : StoreSpec
        What all its features have in common.
    """

    location: Location
    spec: StoreSpec

    @classmethod
    def create(
        cls,
        where: Where,
        *,
        projection: ProjectionSpec,
        output: OutputSpec | None = None,
        parameters: ParameterSpec | None = None,
        dtype: FeatureDtype = "float32",
        keep_bits: int | None = None,
    ) -> FeatureStore:
        """Make a store, or open the one that is there if its spec is the same.

        Any number of processes may do so at once.

        Parameters
        ----------
        where : str, path or zarr store
            A local folder, a URL such as ``s3://bucket/run.zarr`` or ``memory://name``, or any
            zarr store.
        projection : ProjectionSpec
            How gradients become features.
        output, parameters : optional
            What gradients are taken of; none when features are made elsewhere.
        dtype : {"float32", "float16"}
            Stored dtype of features.
        keep_bits : int, optional
            Round the mantissas of float32 features to so many of their 23 bits, and compress.

        Raises
        ------
        SpecMismatchError
            When there is a store with another spec.

        Examples
        --------
        >>> import trakstore as ts
        >>> spec = ts.ProjectionSpec("rademacher", dim=64)
        >>> ts.FeatureStore.create("memory://doc", projection=spec)
        FeatureStore('memory://doc', rademacher, dim 64, epochs: none)
        """
        return cls.of_spec(where, StoreSpec(projection, output, parameters, dtype, keep_bits))

    @classmethod
    def of_spec(cls, where: Where | FeatureStore, spec: StoreSpec) -> FeatureStore:
        """As :meth:`create`, from a whole spec; an open store is compared with it."""
        place = where.location if isinstance(where, FeatureStore) else where
        location = open_location(place, create=True)
        document = {_KIND: {"format": FORMAT_VERSION, **spec.to_dict()}}
        _refuse_foreign(location)
        settled = location.put_if_absent(layout.document_key(""), group_document(document))
        store = cls(location, _store_spec(settled, location))
        check_equal(store.spec, spec, str(location))
        return store

    @property
    def epochs(self) -> tuple[Epoch, ...]:
        """All epochs: integers in order, then names."""
        found = [layout.as_epoch(name) for name in self.location.names("") if _is_epoch(name)]
        return tuple(sorted(found, key=layout.epoch_sort_key))

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of all splits, whatever their epoch."""
        return tuple(sorted({name for epoch in self.epochs for name in self.splits_of(epoch)}))

    def splits_of(self, epoch: Epoch) -> tuple[str, ...]:
        """Names of the splits at an epoch."""
        path = layout.epoch_path(epoch)
        names = [name for name in self.location.names(path) if name != "zarr.json"]
        return tuple(name for name in names if self._document(f"{path}/{name}") is not None)

    def epochs_of(self, *splits: str) -> tuple[Epoch, ...]:
        """The epochs that have all of these splits."""
        return tuple(epoch for epoch in self.epochs if set(splits) <= set(self.splits_of(epoch)))

    def split(self, epoch: Epoch, split: str) -> Split:
        """A split at an epoch.

        Raises
        ------
        NotFoundError
            With the nearest name, when there is none.
        """
        document = self._document(layout.split_path(epoch, split))
        if document is None:
            if layout.as_epoch(epoch) not in self.epochs:
                near = did_you_mean(epoch, self.epochs)
                raise NotFoundError(f"{self.location} has no epoch {epoch!r}{near}")
            near = did_you_mean(split, self.splits_of(epoch))
            raise NotFoundError(f"{self.location} has no split {split!r} at epoch {epoch}{near}")
        return self._split(epoch, split, document)

    def status(self) -> tuple[SplitStatus, ...]:
        """What is there and what is missing, of each split at each epoch."""
        return tuple(
            self.split(epoch, split).status()
            for epoch in self.epochs
            for split in self.splits_of(epoch)
        )

    def features(self, epoch: Epoch, split: str, *, allow_missing: bool = False) -> xr.DataArray:
        """The features of a split, lazy.

        Parameters
        ----------
        epoch, split
            Which ones.
        allow_missing : bool
            Whether rows that were not written yet may come as NaN.

        Returns
        -------
        xarray.DataArray
            Dask-backed, dims ``("sample", "feature")``, coordinate ``sample_id``.

        Raises
        ------
        IncompleteError
            When rows are missing and ``allow_missing`` is not set.
        """
        return self.split(epoch, split).to_xarray(allow_missing=allow_missing)[layout.FEATURES]

    def create_split(
        self, epoch: Epoch, split: str, spec: SplitSpec, *, batch_rows: int = 1
    ) -> Split:
        """Make a split, or open the one that is there if its spec is the same.

        Parameters
        ----------
        epoch, split
            Its names.
        spec : SplitSpec
            Rows, features, columns and origin; with ``block_rows`` 1 the shape of blocks is chosen.
        batch_rows : int
            Rows that are computed at once: blocks hold whole batches where they can.

        Raises
        ------
        SpecMismatchError
            When the split is there with other rows, columns, checkpoint or data set.
        """
        if self.spec.dim not in (None, spec.dim):
            raise SpecMismatchError(
                f"{self.location} holds features of dimension {self.spec.dim}, got {spec.dim}"
            )
        path = layout.split_path(epoch, split)
        itemsize = np.dtype(self.spec.dtype).itemsize
        shape = block_shape(
            spec.rows,
            spec.dim,
            itemsize,
            at_least=batch_rows,
            block_rows=spec.block_rows if spec.block_rows > 1 else None,
        )
        keep_bits = self.spec.keep_bits
        spec = replace(spec, keep_bits=keep_bits)
        proposed = replace(spec, nonce=secrets.randbits(32), **vars(shape))
        put = self.location.put_if_absent
        put(layout.document_key(layout.epoch_path(epoch)), group_document({}))
        settled = put(layout.document_key(path), group_document(proposed.to_dict()))
        made = self._split(epoch, split, settled)
        check_equal(made.spec, spec, f"{self.location}: {split} at epoch {epoch}")
        if made.spec.nonce == proposed.nonce:
            sweep_stale_markers(made)
        for name, document in array_documents(made.spec).items():
            found = put(layout.document_key(f"{path}/{name}"), document)
            if _without_shape(found) != _without_shape(document):  # an append may have been stopped
                raise SpecMismatchError(
                    f"{self.location}: the array {path}/{name} was made by another version of "
                    f"trakstore or zarr; finish the split with that one, or write to another store"
                )
        return made

    def write_split(
        self,
        epoch: Epoch,
        split: str,
        features: Any,
        *,
        out_to_loss: Any = None,
        ids: Sequence[int] | Sequence[str] | None = None,
        labels: Any = None,
        checkpoint: str | None = None,
        block_rows: int = 1,
    ) -> Split:
        """Store features made elsewhere, block by block; blocks that are there are passed over.

        Parameters
        ----------
        epoch, split
            Where to put them.
        features : array or lazy array, shape (rows, dim)
            NumPy, Dask, xarray: anything that gives rows when sliced.
        out_to_loss : array, shape (rows,), optional
            TRAK's Q.
        ids : sequence of int or str, optional
            Names of the samples; their positions by default.
        labels : array of int, shape (rows,), optional
            Classes.
        checkpoint : str, optional
            What tells these features from others: going on with others is refused.
        block_rows : int
            Rows of a block; chosen by default.

        Raises
        ------
        NumericsError
            For values that are not finite or that the stored dtype cannot hold.
        SpecMismatchError
            When the split is there with another shape or other columns.
        """
        if getattr(features, "ndim", 0) != 2:
            shape = getattr(features, "shape", type(features).__name__)
            raise TrakStoreError(f"features must be an array of shape (rows, dim), got {shape}")
        rows, dim = features.shape
        narrow = _narrow(rows, out_to_loss, ids, labels)
        dtypes = {name: column_dtype(array) for name, array in narrow.items()}
        columns = {layout.FEATURES: self.spec.dtype, "norm": "float32", **dtypes}
        names = tuple(sorted(columns.items()))
        spec = SplitSpec(rows, dim, names, checkpoint, block_rows=block_rows)
        made = self.create_split(epoch, split, spec)
        writer = BlockWriter(made)
        for block in made.missing_blocks():
            start, stop = made.spec.block_range(block)
            writer.write(block, self._rows_given(features, narrow, start, stop))
        return made

    def append(
        self,
        epoch: Epoch,
        split: str,
        features: Any,
        *,
        out_to_loss: Any = None,
        ids: Sequence[int] | Sequence[str] | None = None,
        labels: Any = None,
    ) -> Split:
        """Add rows made elsewhere behind the last of a complete split; for a single writer.

        Parameters are as those of :meth:`write_split`; the columns must be those that the split has.

        Raises
        ------
        IncompleteError
            When rows of the split are missing.
        NumericsError
            For values that are not finite or that the stored dtype cannot hold.
        TrakStoreError
            When columns or dimensions differ, or an id is there already.
        """
        old = self.split(epoch, split)
        rows, first = features.shape[0], old.rows
        narrow = _narrow(rows, out_to_loss, ids, labels, first)
        missing = set(old.columns) ^ {layout.FEATURES, "norm", *narrow}
        if missing or features.shape[1] != old.dim:
            raise TrakStoreError(
                f"{split} at epoch {epoch} has columns {list(old.columns)} and dimension {old.dim}; "
                f"got dimension {features.shape[1]} and differing {sorted(missing) or 'no columns'}"
            )
        old.require_complete()
        old.refuse_known_ids(narrow[layout.SAMPLE_ID])
        return append_rows(
            old,
            rows,
            lambda start, stop: self._rows_given(features, narrow, start - first, stop - first),
        )

    def mask(
        self,
        split: str,
        ids: Sequence[int] | Sequence[str],
        *,
        epochs: Sequence[Epoch] | None = None,
        masked: bool = True,
    ) -> int:
        """Leave samples out of kernels, scores and lists from now on; or take them in again.

        Nothing is rewritten, the other rows keep their positions. Masking is not deletion: the
        features stay on the disk.

        Parameters
        ----------
        split : str
        ids : sequence of int or str
            Sample ids.
        epochs : sequence of epochs, optional
            All that have the split by default.
        masked : bool
            False takes the samples in again.

        Returns
        -------
        int
            Number of rows whose state changed, over all epochs.

        Raises
        ------
        NotFoundError
            When a sample is not there.
        """
        chosen = self.epochs_of(split) if epochs is None else tuple(epochs)
        if not chosen:
            raise NotFoundError(f"no epoch has a split {split!r}{did_you_mean(split, self.splits)}")
        return sum(mask_rows(self.split(e, split), ids, masked=masked) for e in chosen)

    def drop(self, epoch: Epoch, split: str | None = None) -> None:
        """Delete a split at an epoch, or a whole epoch, from the disk; for a single writer.

        Raises
        ------
        NotFoundError
            When it is not there.
        """
        for name in self.splits_of(epoch) if split is None else (split,):
            drop_split(self.split(epoch, name))
        if split is None:
            if layout.as_epoch(epoch) not in self.epochs:
                near = did_you_mean(epoch, self.epochs)
                raise NotFoundError(f"{self.location} has no epoch {epoch!r}{near}")
            self.location.delete_folder(layout.epoch_path(epoch))

    @property
    def runs(self) -> tuple[Run, ...]:
        """Records of the runs that wrote features, oldest first."""
        return list_runs(self.location)

    def _rows_given(
        self, features: Any, narrow: dict[str, NDArray[Any]], start: int, stop: int
    ) -> dict[str, NDArray[Any]]:
        rows = np.asarray(features[start:stop])
        stored = stored_rows(rows, self.spec.dtype, start, self.spec.keep_bits)
        return stored | {name: array[start:stop] for name, array in narrow.items()}

    def __repr__(self) -> str:
        epochs = ", ".join(map(str, self.epochs)) or "none"
        what = f"{self.spec.projection.kind}, dim {self.spec.dim}"
        return f"FeatureStore({str(self.location)!r}, {what}, epochs: {epochs})"

    def _document(self, path: str) -> bytes | None:
        return self.location.get(layout.document_key(path))

    def _split(self, epoch: Epoch, split: str, document: bytes) -> Split:
        where = f"{self.location}: {split} at epoch {epoch}"
        spec = SplitSpec.from_dict(attributes(document, where))
        return Split(self.location, layout.as_epoch(epoch), split, spec)


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
    """
    location = None if isinstance(where, FeatureStore) else open_location(where)
    store = find_store(where if location is None else location)
    if store is None:
        raise LocationError(
            f"there is no store at {location}; make one with `trakstore featurize` or "
            f"FeatureStore.create"
        )
    return store


def find_store(where: Where | FeatureStore) -> FeatureStore | None:
    """The store at a place, or None where there is none yet."""
    if isinstance(where, FeatureStore):
        return where
    location = open_location(where, create=True)
    document = location.get(layout.document_key(""))
    return None if document is None else FeatureStore(location, _store_spec(document, location))


def _narrow(
    rows: int, out_to_loss: Any, ids: Any, labels: Any, first: int = 0
) -> dict[str, NDArray[Any]]:
    """The row columns that were given, checked."""
    given = {
        "out_to_loss": row_column(out_to_loss, rows, "out_to_loss", np.float32),
        "label": row_column(labels, rows, "labels", np.int64),
        layout.SAMPLE_ID: sample_ids(ids, rows, first),
    }
    return {name: array for name, array in given.items() if array is not None}


def _without_shape(document: bytes) -> dict[str, Any]:
    try:
        return {**json.loads(document), "shape": None}
    except (ValueError, TypeError) as error:
        raise DamagedError(f"an array's metadata document is damaged ({error})") from error


def _store_spec(document: bytes, location: Location) -> StoreSpec:
    where = str(location)
    stored = attributes(document, where, check=False).get(_KIND)
    if stored is None:
        raise LocationError(f"{location} holds a zarr group that is not a trakstore store")
    version = stored.get("format") if isinstance(stored, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise SpecMismatchError(
            f"{location} has format {version}, this trakstore reads up to {FORMAT_VERSION}: "
            f"pip install --upgrade trakstore"
        )
    checked = attributes(document, where)[_KIND]
    return StoreSpec.from_dict({key: checked[key] for key in checked if key != "format"})


def _refuse_foreign(location: Location) -> None:
    if location.get(layout.document_key("")) is None:
        names = location.names("")
        if names:
            raise LocationError(
                f"{location} is not empty and is not a store (it has {names[0]!r}); "
                f"give an empty or new place"
            )


def _is_epoch(name: str) -> bool:
    check: Callable[[str], Epoch] = layout.as_epoch
    try:
        check(name)
    except TrakStoreError:
        return False
    return name != "zarr.json"
