"""The feature store: epochs and splits of features under one spec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trakstore.spec import (
    FORMAT_VERSION,
    FeatureDtype,
    OutputSpec,
    ParameterSpec,
    ProjectionSpec,
    SplitSpec,
    StoreSpec,
)
from trakstore.storage import layout
from trakstore.storage.backends.location import Location, Where, open_location
from trakstore.storage.creation import make_split
from trakstore.storage.dropping import drop_rows
from trakstore.storage.given import GivenRows, append_given, write_given
from trakstore.storage.growth import drop_split, mask_samples
from trakstore.storage.layout import Epoch
from trakstore.storage.root import make_root
from trakstore.storage.selections import as_epochs
from trakstore.storage.split import Split
from trakstore.storage.store_reader import StoreReader
from trakstore.storage.tables.index_documents import drop_index
from trakstore.storage.tables.runs import forget_plan


# The reader says how it is shown.
@dataclass(frozen=True, repr=False)
class FeatureStore(StoreReader):
    """Features of samples, by epoch and split, in one place.

    Open one with :func:`~trakstore.storage.opening.open_store`, or make one with :meth:`create`.

    Attributes
    ----------
    location : Location
        Its place.
    spec : StoreSpec
        Properties that all of its features share.
    format : int
        Version of the format in which it was made: see ``storage/FORMAT.md``.

    Examples
    --------
    >>> store
    FeatureStore('memory://examples', sjlt, dim 8, epochs: 2, 5, 15)
    >>> store.epochs, store.splits
    ((2, 5, 15), ('test', 'train'))
    >>> store.features(15, "train").dims
    ('sample', 'feature')
    """

    # Defined again, so that the annotations of ``__init__`` are names of this module.
    location: Location
    spec: StoreSpec
    format: int = FORMAT_VERSION

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
        """Make a store, or open an existing one with the same spec.

        Any number of processes may do so at once.

        Parameters
        ----------
        where : str, path or zarr store
            A local folder, a URL such as ``s3://bucket/run.zarr`` or ``memory://name``, or any
            zarr store.
        projection : ProjectionSpec
            Projection from gradients to features.
        output, parameters : optional
            Output and parameters whose gradients are taken; None for features made elsewhere.
        dtype : {"float32", "float16", "int8"}
            Stored dtype of features. ``"int8"`` stores 8 bits a number and a scale for each row;
            rounding costs about a hundredth of a row's norm.
        keep_bits : int, optional
            Bits of the 23 in a float32 mantissa to which features are rounded; they are then
            compressed.

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
        """Make a store as :meth:`create` does, from a whole spec.

        Parameters
        ----------
        where : str, path, zarr store or FeatureStore
            Place of the store; an open store must have this spec.
        spec : StoreSpec
            Properties that all features of the store share.

        Raises
        ------
        SpecMismatchError
            When there is a store with another spec.
        """
        place = where.location if isinstance(where, FeatureStore) else where
        location = open_location(place, create=True)
        return cls(location, *make_root(location, spec)).refresh()

    def create_split(
        self, epoch: Epoch, split: str, spec: SplitSpec, *, batch_rows: int = 1
    ) -> Split:
        """Make a split, or open an existing one with the same spec.

        Parameters
        ----------
        epoch, split
            Its names.
        spec : SplitSpec
            Rows, features, columns and origin; ``block_rows`` 1 leaves the shape of blocks open.
        batch_rows : int
            Rows that are computed at once; blocks hold whole batches if possible.

        Raises
        ------
        SpecMismatchError
            When the split exists with other rows, columns, checkpoint or data set.
        """
        make_split(self.location, self.spec, epoch, split, spec, batch_rows=batch_rows)
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
        """Store features made elsewhere, block by block; existing blocks are passed over.

        The given values are hashed, so that going on with other values is refused; of features that are
        not a NumPy array in memory, 32 rows are hashed.

        Parameters
        ----------
        epoch, split
            Place for them.
        features : array or lazy array, shape (rows, dim)
            Features from NumPy, Dask or xarray, or anything that gives rows when it is sliced.
        out_to_loss : array, shape (rows,), optional
            TRAK's Q.
        ids : sequence of int or str, optional
            Names of the samples; their positions by default.
        labels : array of int, shape (rows,), optional
            Classes.
        checkpoint : str, optional
            Text that distinguishes these features from others.
        learning_rate : float, optional
            Learning rate at this epoch, for TracIn.
        block_rows : int
            Rows of a block; by default a 64th of the split, at least 64 rows and at most 64 MB.

        Raises
        ------
        NumericsError
            For values that are not finite or that the stored dtype cannot hold.
        SpecMismatchError
            When the split exists with another shape, other columns or other values.

        Examples
        --------
        >>> made = ts.FeatureStore.create("memory://elsewhere-made", projection=store.spec.projection)
        >>> split = made.write_split("final", "train", np.ones((3, 8), np.float32), ids=["a", "b", "c"])
        >>> split.rows, made.splits_of("final")
        (3, ('train',))
        """
        layout.split_path(epoch, split)  # refuses bad names
        where = f"{split} at epoch {epoch}"
        given = GivenRows.of(self.spec, features, out_to_loss, ids, labels, where)
        spec = given.split_spec(checkpoint, learning_rate, block_rows)
        write_given(self.location, epoch, split, given, spec)
        return self.split(epoch, split)

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
        """Add rows made elsewhere after the last of a complete split; of two at once one is refused.

        Parameters
        ----------
        epoch, split
            Names of the epoch and of the split at it.
        features : array or lazy array, shape (rows, dim)
            Features of the new rows, as :meth:`write_split` takes them.
        out_to_loss : array, shape (rows,), optional
            TRAK's Q of the new rows; given if the split has that column, and only then.
        ids : sequence of int or str, optional
            Names of the new samples, none of which is in the split; by default the positions that the
            new rows get.
        labels : array of int, shape (rows,), optional
            Classes of the new rows; given if the split has labels, and only then.

        Raises
        ------
        IncompleteError
            When rows of the split are missing.
        NumericsError
            For values that are not finite or that the stored dtype cannot hold.
        TrakStoreError
            When columns or dimensions differ, or an id exists already.

        Examples
        --------
        >>> made = ts.FeatureStore.create("memory://grown", projection=store.spec.projection)
        >>> split = made.write_split(0, "train", np.ones((3, 8), np.float32))
        >>> made.append(0, "train", np.zeros((2, 8), np.float32)).rows
        5
        """
        old = self.split(epoch, split)
        where = f"{split} at epoch {epoch}"
        given = GivenRows.of(self.spec, features, out_to_loss, ids, labels, where, old.rows)
        append_given(old, given)
        return self.split(epoch, split)

    def mask(
        self,
        split: str,
        ids: Sequence[int] | Sequence[str],
        *,
        epochs: Epoch | Sequence[Epoch] | None = None,
        masked: bool = True,
    ) -> int:
        """Leave samples out of kernels, scores and lists from now on, or take them in again.

        Nothing is rewritten, and the other rows keep their positions. Masking is not deletion: the
        features stay on the disk. A split of tokens has its own mask: to leave out the tokens of masked
        samples, mask the ids of their rows in ``"test~tokens"`` too.

        Parameters
        ----------
        split : str
            Name of the split, at all of the epochs.
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
            When no epoch has the split, one of ``epochs`` lacks it, or a sample is not in it; nothing
            is changed then.
        TrakStoreError
            When ``masked`` is not a boolean, or a row to be taken in again was bad when it was written.

        Examples
        --------
        >>> made = ts.FeatureStore.create("memory://masked", projection=store.spec.projection)
        >>> for split, rows in (("train", 3), ("test", 2)):
        ...     written = made.write_split(0, split, np.ones((rows, 8), np.float32))
        >>> made.mask("train", [1])
        1
        >>> ts.grad_dot_scores(made, of="output").shape
        (2, 2)
        """
        chosen = None if epochs is None else as_epochs(epochs)
        splits = self._catalogue.open_named(self.spec, chosen, split)
        return mask_samples(splits, ids, masked=masked)

    def drop(self, epoch: Epoch, split: str | None = None) -> None:
        """Delete a split at an epoch, or a whole epoch, from the disk; of two at once one is refused.

        Splits that a job planned there and has not begun no longer count as missing. Indexes of the
        rows (:func:`build_index`) are deleted as well.

        Raises
        ------
        NotFoundError
            When there is no such epoch or split.
        LocationError
            When another process is writing it, or building an index of its rows.

        Examples
        --------
        >>> made = ts.FeatureStore.create("memory://dropped", projection=store.spec.projection)
        >>> for epoch in (0, 1):
        ...     written = made.write_split(epoch, "train", np.ones((3, 8), np.float32))
        >>> made.drop(epoch=0)
        >>> made.epochs
        (1,)
        """
        forgotten = forget_plan(self.location, epoch, split)
        if forgotten and split is not None:
            return
        for name in self.splits_of(epoch) if split is None else (split,):
            # Indexes of its rows are deleted first: a drop that was stopped and continues may find
            # another nonce.
            spec = self._catalogue.open_to_drop(epoch, name).spec
            nonces = (spec.nonce, *spec.nonces_before)
            drop_index(self.location, name, layout.as_epoch(epoch), nonces)
            drop_split(self._catalogue.open_to_drop(epoch, name))
            self._catalogue.remove(epoch, name)
        if split is not None:
            return
        if layout.as_epoch(epoch) in self._catalogue.list_epochs():
            self.location.delete_folder(layout.epoch_path(epoch))
            self._catalogue.remove(epoch)
        elif not forgotten:
            raise self._catalogue.not_found(epoch)

    def drop_rows(self, epoch: Epoch, split: str) -> None:
        """Delete the features of rows with drawn labels, whose gram is stored, to free disk space.

        From then on a kernel of these rows uses the gram. The split stays complete, with all its other
        columns, and featurize passes over it. If further samples of the train split are masked, or rows
        are appended to it, no kernel can be made from the gram: to have the rows again, :meth:`drop`
        the split and featurize the draws again.
        rows again, :meth:`drop` the split and featurize the draws again.

        Parameters
        ----------
        epoch, split
            Names of the epoch and of the split at it, which ends with ``~sampled``.

        Raises
        ------
        NotFoundError
            When there is no such split.
        TrakStoreError
            When the split's name is another, or its gram is not stored, or is not that of the rows that
            count now (without those of masked train samples).
        IncompleteError
            When rows of the split, or of the train split, are missing.
        SpecMismatchError
            When the split does not belong to the train rows.
        """
        drop_rows(self.split(epoch, split))
