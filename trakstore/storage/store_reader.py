"""A reader of a store: its epochs and splits, and what they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import xarray as xr

from trakstore.spec import FORMAT_VERSION, StoreSpec
from trakstore.storage import layout
from trakstore.storage.backends.location import Location
from trakstore.storage.catalogue import Catalogue, catalogue_of
from trakstore.storage.layout import Epoch
from trakstore.storage.notebook import store_markup
from trakstore.storage.skipped import SkippedRow, skipped_rows
from trakstore.storage.split import Split, SplitStatus
from trakstore.storage.tables.runs import Run, list_runs


@dataclass(frozen=True)
class StoreReader:
    """Epochs and splits of a store under one spec, opened and listed as they are now.

    Attributes
    ----------
    location : Location
        Place of the store.
    spec : StoreSpec
        Properties that all of its features share.
    format : int
        Version of the format in which it was made: see ``storage/FORMAT.md``.
    """

    location: Location
    spec: StoreSpec
    format: int = FORMAT_VERSION

    # Kept as long as the store: other stores of the same place in this process share it.
    @cached_property
    def _catalogue(self) -> Catalogue:
        return catalogue_of(self.location)

    def __reduce__(self) -> Any:
        return type(self), (self.location, self.spec, self.format)

    @property
    def epochs(self) -> tuple[Epoch, ...]:
        """Epochs that are known here: integers in order, then names; see :meth:`refresh`."""
        return self._catalogue.epochs

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that are known here, at any epoch; see :meth:`refresh`."""
        return self._catalogue.splits

    def refresh(self) -> Self:
        """List the epochs and splits again: other processes may have made some."""
        self._catalogue.read()
        return self

    def splits_of(self, epoch: Epoch) -> tuple[str, ...]:
        """Return the names of the splits that are at an epoch now."""
        return self._catalogue.list_splits(epoch)

    def epochs_of(self, *splits: str) -> tuple[Epoch, ...]:
        """Return the epochs that have all of these splits now.

        Examples
        --------
        >>> store.epochs_of("train", "test")
        (2, 5, 15)
        """
        return self._catalogue.epochs_of([layout.check_name(name, "split") for name in splits])

    def split(self, epoch: Epoch, split: str) -> Split:
        """Open a split at an epoch, as it is now.

        Raises
        ------
        NotFoundError
            When there is none; the nearest name is suggested.

        Examples
        --------
        >>> split = store.split(15, "train")
        >>> split.rows, split.columns
        (24, ('features', 'label', 'norm', 'out_to_loss', 'sample_id'))
        >>> split.column("label").read(0, 4)
        array([0, 1, 2, 0])
        """
        return self.open_splits((epoch,), (split,))[layout.as_epoch(epoch)][0]

    def open_splits(
        self, epochs: Sequence[Epoch] | None, names: Sequence[str]
    ) -> dict[Epoch, tuple[Split, ...]]:
        """Open splits as they are now, of many epochs at once.

        Parameters
        ----------
        epochs : sequence of epochs, or None
            None for all epochs that have all of these splits.
        names : sequence of str
            Names of the splits; those of each epoch are returned in this order.

        Raises
        ------
        NotFoundError
            When one of these epochs lacks one of them.
        """
        return self._catalogue.open(self.spec, epochs, names)

    def status(self) -> tuple[SplitStatus, ...]:
        """Return what exists and what is missing, for each split at each epoch.

        Examples
        --------
        >>> [(one.split, one.rows, one.complete) for one in store.status() if one.epoch == 15]
        [('test', 6, True), ('train', 24, True)]
        """
        return self._catalogue.status()

    def features(self, epoch: Epoch, split: str, *, allow_missing: bool = False) -> xr.DataArray:
        """Return the features of a split: lazy, dims ``("sample", "feature")``, with ``sample_id``.

        Other columns of its samples are in ``store.split(epoch, split).to_xarray()``.

        Parameters
        ----------
        epoch, split
            Names of the epoch and of the split at it.
        allow_missing : bool
            Whether rows that were not written yet are returned as NaN.

        Raises
        ------
        IncompleteError
            When rows are missing and ``allow_missing`` is not set.

        Examples
        --------
        >>> features = store.features(epoch=15, split="train")
        >>> features.shape, features.dtype
        ((24, 8), dtype('float32'))
        >>> features.isel(sample=slice(2)).compute().coords["sample_id"].values
        array(['train-0', 'train-1'], dtype=StringDType())
        >>> store.split(15, "train").to_xarray()["label"].values[:4]  # another column of them
        array([0, 1, 2, 0])
        """
        return self.split(epoch, split).to_xarray(allow_missing=allow_missing)[layout.FEATURES]

    def skipped(self, epoch: Epoch, split: str) -> tuple[SkippedRow, ...]:
        """Return the rows of a split, at one epoch, that were bad when they were written.

        Like masked rows, they are left out of everything.
        """
        return skipped_rows(self.split(epoch, split))

    def runs(self) -> tuple[Run, ...]:
        """Return records of the runs that wrote features, oldest first."""
        return list_runs(self.location)

    def __repr__(self) -> str:
        epochs = ", ".join(map(str, self.epochs)) or "none"
        what = f"{self.spec.projection.kind}, dim {self.spec.dim}"
        return f"{type(self).__name__}({str(self.location)!r}, {what}, epochs: {epochs})"

    def _repr_html_(self) -> str:
        """Show in a notebook the rows of each split at the last epochs, as this process knows them."""
        return store_markup(str(self.location), self.spec, self._catalogue)
