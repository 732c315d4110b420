"""Rows of splits that arrive in any order, from any process, kept in a folder until complete."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import DamagedError, IncompleteError, SpecMismatchError
from trakstore.paths import exists
from trakstore.storage.store import FeatureStore

_WEIGHTS = "checkpoint.txt"


@dataclass(frozen=True, eq=False)
class StagedSplit:
    """Rows of a split at an epoch; which rows have arrived is looked up once.

    As an array of shape (rows, dim) it is lazy. Of a row that arrived twice, the later one counts.

    Attributes
    ----------
    place : Path
        Folder of all epochs.
    epoch : int
        Number of the epoch.
    split : str
        Name of the split.
    rows, dim : int
        Expected rows, and features of each.
    """

    place: Path
    epoch: int
    split: str
    rows: int
    dim: int

    ndim = 2

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.dim

    @property
    def folder(self) -> Path:
        return self.place / str(self.epoch) / self.split

    def claim(self, weights: str) -> list[str]:
        """Note the hash of the weights of these rows; return other epochs that have the same weights.

        Nothing is returned if the note existed already.

        Raises
        ------
        SpecMismatchError
            When rows of other weights have arrived.
        """
        note = self.folder / _WEIGHTS
        if exists(note):
            if (known := note.read_text()) != weights:
                raise SpecMismatchError(
                    f"epoch {self.epoch} has rows of other weights (hash {known[:12]}, these are "
                    f"{weights[:12]}): give these another number, or delete {self.folder}"
                )
            return []
        notes = sorted(self.place.glob(f"*/{self.split}/{_WEIGHTS}"))
        self.folder.mkdir(parents=True, exist_ok=True)
        note.write_text(weights)
        return [one.parent.parent.name for one in notes if one.read_text() == weights]

    def add(self, inds: NDArray[np.int64], features: NDArray[Any], scale: NDArray[Any]) -> None:
        """Keep rows at positions, with their ``out_to_loss``; the file that counts appears last."""
        name = uuid.uuid4().hex
        np.save(self.folder / f"{name}.features.npy", features)
        # Rows are written first: a process killed before the rename leaves files that nobody reads.
        partial = self.folder / f"{name}.partial.npz"
        np.savez(partial, inds=inds, scale=scale)
        partial.rename(self.folder / f"{name}.npz")

    def write(self, store: FeatureStore) -> None:
        """Write all rows to a store; raise an :class:`IncompleteError` if some are missing."""
        missing = np.flatnonzero(~self.there)
        if len(missing):
            raise IncompleteError(
                f"{self.split} at epoch {self.epoch} lacks {len(missing)} of {self.rows} samples, the "
                f"first is {missing[0]}"
            )
        weights, (_, _, scale) = (self.folder / _WEIGHTS).read_text(), self._places
        store.write_split(self.epoch, self.split, self, out_to_loss=scale, checkpoint=weights)

    @property
    def there(self) -> NDArray[np.bool_]:
        """Mask of the rows that have arrived."""
        return self._places[0] >= 0

    @cached_property
    def files(self) -> list[Path]:
        """Files that record which rows arrived, the oldest first."""
        whole = [one for one in self.folder.glob("*.npz") if not one.match("*.partial.npz")]
        return sorted(whole, key=lambda path: path.stat().st_mtime_ns)

    @cached_property
    def _places(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Return each row's file and its row in that, -1 if it never arrived; and ``out_to_loss``."""
        file, row = np.full((2, self.rows), -1, dtype=np.int64)
        scale = np.full(self.rows, np.nan, dtype=np.float32)
        for at, path in enumerate(self.files):
            with np.load(path, allow_pickle=False) as kept:
                inds = kept["inds"]
                if len(inds) and inds.min() < 0:
                    raise DamagedError(f"{path} has rows below 0; delete it")
                if len(inds) and inds.max() >= self.rows:
                    raise SpecMismatchError(
                        f"{self.split} at epoch {self.epoch} has {inds.max() + 1} samples or more, and "
                        f"{self.rows} were announced: announce as many as before, or take another name "
                        f"or folder for fewer"
                    )
                file[inds], row[inds], scale[inds] = at, np.arange(len(inds)), kept["scale"]
        return file, row, scale

    def __getitem__(self, index: slice) -> NDArray[np.float32]:
        file, row = (places[index] for places in self._places[:2])
        out = np.empty((len(row), self.dim), dtype=np.float32)
        # Files are mapped, not read: only requested rows come into memory.
        for at in np.unique(file):
            path = self.files[at].with_suffix(".features.npy")
            try:
                rows = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError) as error:
                raise DamagedError(f"{path} cannot be read: {error}") from error
            here = file == at
            out[here] = rows[row[here]]
        return out
