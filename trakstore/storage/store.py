"""The feature store: epochs and splits of features under one spec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from trakstore.errors import (
    NotFoundError,
    SpecMismatchError,
    TrakStoreError,
    did_you_mean,
    error_context,
)
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
from trakstore.storage.backends.location import Location, Where, open_location
from trakstore.storage.backends.together import together
from trakstore.storage.catalogue import Catalogue, Seen, catalogue_of, list_epochs
from trakstore.storage.completion import note_complete
from trakstore.storage.creation import settle_split, spec_shape
from trakstore.storage.given import GivenRows
from trakstore.storage.growth import append_rows, drop_split, give_again, mask_samples
from trakstore.storage.layout import Epoch
from trakstore.storage.notebook import store_markup
from trakstore.storage.root import read_format, read_root, refuse_foreign, root_document
from trakstore.storage.skipped import SkippedRow, skipped_rows
from trakstore.storage.snapshots import open_splits
from trakstore.storage.split import Split, SplitStatus
from trakstore.storage.tables.runs import Run, forget_plan, list_runs
from trakstore.storage.writer import BlockWriter

__all__ = ["FeatureStore"]


@dataclass(frozen=True)
class FeatureStore:
    """Features of samples, by epoch and split, in one place.

    Open one with :func:`~trakstore.storage.opening.open_store`, or make one with :meth:`create`.

    Attributes
    ----------
    location : Location
        Where it is.
    spec : StoreSpec
        What all its features have in common.
    format : int
        Version of the format that it was made in: see ``storage/FORMAT.md``.
    """

    location: Location
    spec: StoreSpec
    format: int = FORMAT_VERSION
    _catalogue: Catalogue = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_catalogue", catalogue_of(self.location))

    def __reduce__(self) -> Any:
        return type(self), (self.location, self.spec, self.format)

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
        refuse_foreign(location)
        settled = location.put_if_absent(layout.DOCUMENT, root_document(spec))
        store = cls(location, read_root(settled, location), read_format(settled))
        check_equal(store.spec, spec, str(location))
        return store.refresh()

    @property
    def epochs(self) -> tuple[Epoch, ...]:
        """All epochs that are known here: integers in order, then names; see :meth:`refresh`."""
        return self._catalogue.epochs

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of all splits that are known here, whatever their epoch; see :meth:`refresh`."""
        return self._catalogue.splits

    def refresh(self) -> FeatureStore:
        """Look again at which epochs and splits are there: other processes may have made some."""
        self._catalogue.read(self.location)
        return self

    def splits_of(self, epoch: Epoch) -> tuple[str, ...]:
        """Names of the splits that are at an epoch now."""
        path = layout.epoch_path(epoch)
        names = [name for name in self.location.names(path) if name != layout.DOCUMENT]
        keys = [layout.document_key(path, name) for name in names]
        found = together(self.location, [partial(self.location.get, key) for key in keys])
        here = [name for name, document in zip(names, found, strict=True) if document is not None]
        if here:
            self._catalogue.add(epoch, *here)
        return tuple(here)

    def epochs_of(self, *splits: str) -> tuple[Epoch, ...]:
        """The epochs that have all of these splits now."""
        self.refresh()
        pairs = [(epoch, name) for epoch in self.epochs for name in splits]
        keys = [layout.document_key(layout.split_path(*pair)) for pair in pairs]
        found = together(self.location, [partial(self.location.get, key) for key in keys])
        missing = {pair[0] for pair, document in zip(pairs, found, strict=True) if document is None}
        return tuple(epoch for epoch in self.epochs if epoch not in missing)

    def split(self, epoch: Epoch, split: str) -> Split:
        """A split at an epoch, as it is now.

        Raises
        ------
        NotFoundError
            With the nearest name, when there is none.
        """
        return self.open_splits((epoch,), (split,))[layout.as_epoch(epoch)][0]

    def open_splits(
        self, epochs: Sequence[Epoch] | None, names: Sequence[str]
    ) -> dict[Epoch, tuple[Split, ...]]:
        """Splits as they are now, of many epochs at once.

        Parameters
        ----------
        epochs : sequence of epochs, or None
            None for all that have all of these splits.
        names : sequence of str

        Raises
        ------
        NotFoundError
            When one of these epochs has not all of them.
        """
        opened = self._open_all(names) if epochs is None else self._open(epochs, names)
        for (epoch, name), split in opened.items():
            if split is not None:
                with error_context(f"{self.location}: {name} at epoch {epoch}"):
                    split.spec.check_of(self.spec)
                self._catalogue.see(epoch, name, Seen(split.rows, split.complete))
            elif epochs is not None:
                raise self._not_found(epoch, name)
        found = {epoch: [opened[epoch, name] for name in names] for epoch, _ in opened}
        return {epoch: tuple(filter(None, them)) for epoch, them in found.items() if all(them)}

    def _open(
        self, epochs: Sequence[Epoch], names: Sequence[str]
    ) -> dict[tuple[Epoch, str], Split | None]:
        pairs = [(layout.as_epoch(epoch), name) for epoch in epochs for name in names]
        return dict(zip(pairs, open_splits(self.location, pairs), strict=True))

    def _open_all(self, names: Sequence[str]) -> dict[tuple[Epoch, str], Split | None]:
        """Of all epochs that are there: those that are known are opened while others are looked for."""
        known = self.epochs
        listing, opening = partial(list_epochs, self.location), partial(self._open, known, names)
        epochs, opened = together(self.location, [listing, opening])
        opened |= self._open([epoch for epoch in epochs if epoch not in known], names)
        return {(epoch, name): opened[epoch, name] for epoch in epochs for name in names}

    def _not_found(self, epoch: Epoch, split: str) -> NotFoundError:
        known = self.refresh().epochs
        if layout.as_epoch(epoch) not in known:
            near = did_you_mean(epoch, known)
            return NotFoundError(f"{self.location} has no epoch {epoch!r}{near}")
        near = did_you_mean(split, self.splits_of(epoch))
        return NotFoundError(f"{self.location} has no split {split!r} at epoch {epoch}{near}")

    def status(self) -> tuple[SplitStatus, ...]:
        """What is there and what is missing, of each split at each epoch."""
        self.refresh()
        pairs = [
            (epoch, name) for epoch in self.epochs for name in self._catalogue.splits_of(epoch)
        ]
        found = [split for split in open_splits(self.location, pairs) if split is not None]
        told = together(self.location, [split.status for split in found])
        for one in told:
            self._catalogue.see(one.epoch, one.split, Seen(one.rows, one.complete))
        return tuple(told)

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
        shape = spec_shape(spec, self.spec.dtype, batch_rows)
        proposed = replace(spec, keep_bits=self.spec.keep_bits, **vars(shape))
        settle_split(self.location, epoch, split, proposed)
        return self.split(epoch, split)

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
        learning_rate: float | None = None,
        block_rows: int = 1,
    ) -> Split:
        """Store features made elsewhere, block by block; blocks that are there are passed over.

        What is given is hashed, so that going on with other values is refused; of features that are
        not a NumPy array in memory, 32 rows.

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
            What tells these features from others.
        learning_rate : float, optional
            At this epoch, for TracIn.
        block_rows : int
            Rows of a block; chosen by default: a 64th of the split, 64 rows or more, 64 MB or less.

        Raises
        ------
        NumericsError
            For values that are not finite or that the stored dtype cannot hold.
        SpecMismatchError
            When the split is there with another shape, other columns or other values.
        """
        layout.split_path(epoch, split)  # refuses bad names
        given = GivenRows.of(
            self.spec, features, out_to_loss, ids, labels, f"{split} at epoch {epoch}"
        )
        spec = given.split_spec(checkpoint, learning_rate, block_rows)
        spec = self._same_as_stored(epoch, split, given, spec)
        made = self.create_split(epoch, split, spec, batch_rows=given.batch_rows)
        writer = BlockWriter(made)
        for block in made.missing_blocks():
            writer.write(block, given.read(*made.spec.block_range(block)))
        note_complete(made)
        return self.split(epoch, split)

    def _same_as_stored(
        self, epoch: Epoch, split: str, given: GivenRows, spec: SplitSpec
    ) -> SplitSpec:
        """The spec to go on with; raises where what was stored is not what is given now."""
        (stored,) = open_splits(self.location, [(epoch, split)])
        alike = stored is not None and replace(stored.spec, given=spec.given) == replace(
            spec, keep_bits=self.spec.keep_bits
        )
        if stored is None or not alike or stored.spec.given == spec.given:
            return spec  # whose other differences are told when it is created
        differing = given.differing(stored)
        if stored.spec.given is None and not differing:  # of format 1, or rows were appended
            return replace(spec, given=None)
        if given.in_memory and not differing and not stored.complete:
            give_again(stored, spec.given)  # what was bad in the rest has been put right
            differing = given.differing(stored)
            if not differing:
                return spec
        what = ", ".join(differing) or "what was given"
        raise SpecMismatchError(
            f"{self.location}: {split} at epoch {epoch} is there with other values of {what}: drop it "
            f"first, or choose another name or store"
        )

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
        """Add rows made elsewhere behind the last of a complete split; of two at once one is refused.

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
        where = f"{split} at epoch {epoch}"
        given = GivenRows.of(self.spec, features, out_to_loss, ids, labels, where, old.rows)
        if (given.columns, given.dim) != (old.spec.columns, old.dim):
            raise TrakStoreError(
                f"{where} has dimension {old.dim} and columns "
                f"{dict(old.spec.columns)}, got {given.dim} and {dict(given.columns)}"
            )
        old.require_complete()
        old.refuse_known_ids(given.narrow[layout.SAMPLE_ID])
        append_rows(old, given.rows, given.read)
        return self.split(epoch, split)

    def mask(
        self,
        split: str,
        ids: Sequence[int] | Sequence[str],
        *,
        epochs: Epoch | Sequence[Epoch] | None = None,
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
        epochs : epoch or sequence of epochs, optional
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
        if not isinstance(masked, bool | np.bool_):
            raise TrakStoreError(f"masked must be True or False, got {masked!r}")
        found = self.open_splits(None if epochs is None else layout.as_epochs(epochs), (split,))
        if not found:
            near = did_you_mean(split, self.refresh().splits)
            raise NotFoundError(f"no epoch has a split {split!r}{near}")
        return mask_samples([one for (one,) in found.values()], ids, masked=masked)

    def skipped(self, epoch: Epoch, split: str) -> tuple[SkippedRow, ...]:
        """The rows that were bad when they were written, and why; left out as masked ones are."""
        return skipped_rows(self.split(epoch, split))

    def drop(self, epoch: Epoch, split: str | None = None) -> None:
        """Delete a split at an epoch, or a whole epoch, from the disk; of two at once one is refused.

        What a job was to write there and has not begun is not missed any longer.

        Raises
        ------
        NotFoundError
            When it is not there.
        """
        forgotten = forget_plan(self.location, epoch, split)
        if forgotten and split is not None:
            return
        for name in self.splits_of(epoch) if split is None else (split,):
            drop_split(self.split(epoch, name))
            self._catalogue.remove(epoch, name)
        if split is None:
            known = list_epochs(self.location)
            if layout.as_epoch(epoch) not in known:
                if forgotten:
                    return
                near = did_you_mean(epoch, known)
                raise NotFoundError(f"{self.location} has no epoch {epoch!r}{near}")
            self.location.delete_folder(layout.epoch_path(epoch))
            self._catalogue.remove(epoch)

    def runs(self) -> tuple[Run, ...]:
        """Records of the runs that wrote features, oldest first."""
        return list_runs(self.location)

    def __repr__(self) -> str:
        epochs = ", ".join(map(str, self.epochs)) or "none"
        what = f"{self.spec.projection.kind}, dim {self.spec.dim}"
        return f"FeatureStore({str(self.location)!r}, {what}, epochs: {epochs})"

    def _repr_html_(self) -> str:
        """For notebooks: rows of each split at the last epochs, as this process saw them; no reads."""
        return store_markup(self.location, self.spec, self._catalogue)
