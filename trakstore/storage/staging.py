"""Rows that come in any order, from any process, kept until all are there."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trakstore.attributors.tasks import FeatureRows
from trakstore.errors import DamagedError, TrakStoreError
from trakstore.quantities import as_whole

__all__ = ["Incoming", "OrderError", "Staged", "stage"]


class OrderError(TrakStoreError, AssertionError):
    """A call that comes too early, or with arguments that exclude each other."""


def stage(
    folder: Path, inds: NDArray[np.int64], features: NDArray[Any], scale: NDArray[Any]
) -> None:
    """Keep rows as a chunk of its own; the file that counts appears whole, and last."""
    folder.mkdir(parents=True, exist_ok=True)
    name = uuid.uuid4().hex
    np.save(folder / f"{name}.features.npy", features)
    partial = folder / f"{name}.partial.npz"
    np.savez(partial, inds=inds, scale=scale)
    partial.rename(folder / f"{name}.npz")


@dataclass(frozen=True, eq=False)
class Staged:
    """The rows of a folder as one lazy array; of a row that came twice the later one counts.

    Attributes
    ----------
    shape : (rows, dim)
    chunk, row : ndarray of int64, shape (rows,)
        Where each row is: which file, which of its rows; -1 for rows that never came.
    scale : ndarray of float32, shape (rows,)
        ``out_to_loss``.
    files : tuple of Path
    """

    shape: tuple[int, int]
    chunk: NDArray[np.int64]
    row: NDArray[np.int64]
    scale: NDArray[np.float32]
    files: tuple[Path, ...]

    ndim = 2
    dtype = np.dtype(np.float32)

    @classmethod
    def read(cls, folder: Path, rows: int, dim: int) -> Staged:
        """What is there now; features are left on disk.

        Raises
        ------
        DamagedError
            A row outside of the range, features that are not there.
        """
        chunk, row = np.full((2, rows), -1, dtype=np.int64)
        scale = np.full(rows, np.nan, dtype=np.float32)
        names = [path for path in folder.glob("*.npz") if not path.name.endswith(".partial.npz")]
        files = sorted(names, key=lambda path: path.stat().st_mtime_ns)
        for at, path in enumerate(files):
            with np.load(path, allow_pickle=False) as kept:
                inds = kept["inds"]
                if len(inds) and not (inds.min() >= 0 and inds.max() < rows):
                    raise DamagedError(f"{path} has rows outside of 0..{rows - 1}; delete it")
                chunk[inds], row[inds], scale[inds] = at, np.arange(len(inds)), kept["scale"]
        features = tuple(path.with_suffix(".features.npy") for path in files)
        return cls((rows, dim), chunk, row, scale, features)

    @property
    def there(self) -> NDArray[np.bool_]:
        """Which rows came."""
        return self.chunk >= 0

    def __getitem__(self, index: slice) -> NDArray[np.float32]:
        wanted = range(*index.indices(self.shape[0]))
        out = np.empty((len(wanted), self.shape[1]), dtype=np.float32)
        chunk, row = self.chunk[wanted.start : wanted.stop], self.row[wanted.start : wanted.stop]
        for at in np.unique(chunk):
            try:
                rows = np.load(self.files[at], mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError) as error:
                raise DamagedError(f"{self.files[at]} cannot be read: {error}") from error
            here = chunk == at
            out[here] = rows[row[here]]
        return out


@dataclass
class Incoming:
    """A checkpoint whose rows come in."""

    model_id: int
    folder: Path
    rows: int
    engine: Callable[[Any], FeatureRows]
    done: NDArray[np.bool_]
    next: int = 0

    def rows_of(self, inds: Any, num_samples: int | None) -> NDArray[np.int64]:
        if (inds is None) == (num_samples is None):
            raise OrderError("Exactly one of num_samples and inds should be specified")
        if num_samples is not None:
            num_samples = as_whole(num_samples, "num_samples", 0)
            found = np.arange(self.next, self.next + num_samples)
            self.next += num_samples
        else:
            found = np.asarray(inds, dtype=np.int64).reshape(-1)
        if len(found) and not (found.min() >= 0 and found.max() < self.rows):
            raise TrakStoreError(
                f"samples {found.min()} to {found.max()} are outside of the {self.rows} that were "
                f"announced"
            )
        return found
