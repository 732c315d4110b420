"""A store that belongs to one object, such as an attributor that was given no place for one."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import SpecMismatchError
from trakstore.storage.backends.location import Where
from trakstore.storage.layout import Epoch
from trakstore.storage.opening import find_store, open_store
from trakstore.storage.split import Split
from trakstore.storage.store import FeatureStore

_NORMS_AGREE = 1e-2  # relative: a stored float16 row keeps its norm to that


class EmbeddedStore:
    """A store at a place, or in a temporary folder that is removed with this object.

    Parameters
    ----------
    where : path, FeatureStore or zarr store, optional
        Place of the store; it refuses features of other weights or data than those that it has. In a
        temporary folder they replace those before.
    """

    def __init__(self, where: Where | FeatureStore | None = None) -> None:
        self._temporary = where is None
        if where is None:
            folder = tempfile.mkdtemp("-trakstore")
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            where = f"{folder}/features.zarr"
        self.where = where

    def open(self) -> FeatureStore | None:
        """Open the store; None before anything was written."""
        return find_store(self.where)

    def write(self, epoch: Epoch, split: str, write: Callable[..., Any]) -> Split:
        """Have a split written by a function of the place, and open it."""
        try:
            write(self.where)
        except SpecMismatchError:
            # In a place that somebody named, other features are somebody's; in a temporary one they are
            # what the same object computed of other weights, or data, before.
            if not self._temporary:
                raise
            open_store(self.where).drop(epoch, split)
            write(self.where)
        return open_store(self.where).split(epoch, split)

    def find(self, name: str, features: NDArray[np.float32]) -> Split | None:
        """Find the complete split of this name whose rows have the norms of these features."""
        store = self.open()
        for epoch in store.epochs_of(name) if store else ():
            split = store.split(epoch, name)  # type: ignore[union-attr]
            if split.rows != len(features) or not split.status().complete:
                continue
            norms = split.column("norm").read(0, split.rows)
            if np.allclose(np.linalg.norm(features, axis=1), norms, rtol=_NORMS_AGREE):
                return split
        return None
