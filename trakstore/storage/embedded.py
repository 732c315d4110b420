"""A store that belongs to one object, such as an attributor created without a place for one."""

from __future__ import annotations

import logging
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trakstore.storage.backends.location import Where
from trakstore.storage.known_rows import KnownRows, row_digests
from trakstore.storage.layout import Epoch
from trakstore.storage.opening import find_store, open_store
from trakstore.storage.split import Split
from trakstore.storage.store import FeatureStore

log = logging.getLogger("trakstore")

_NORMS_AGREE = 1e-2  # relative: a stored float16 row keeps its norm to that


@dataclass(frozen=True)
class FoundRows:
    """Properties of rows of features that were returned to a user, and came back.

    Attributes
    ----------
    out_to_loss : ndarray of float32, shape (rows,)
        Q of the rows, in their order; NaN for unknown rows.
    weights : frozenset of str
        Hashes of the weights with which the known rows were computed; empty if these are unknown.
    missing : int
        Number of unknown rows.
    chunked : bool
        Whether several calls computed rows of this split, each replacing the rows before.
    """

    out_to_loss: NDArray[np.float32]
    weights: frozenset[str]
    missing: int = 0
    chunked: bool = False


class EmbeddedStore:
    """A store at a place, or in a temporary folder that is removed with this object.

    Parameters
    ----------
    where : path, FeatureStore or zarr store, optional
        Place of the store, which refuses features of other weights or data than it has. In a temporary
        folder, new features replace the old ones.
    """

    def __init__(self, where: Where | FeatureStore | None = None) -> None:
        self._temporary = where is None
        # Replaced rows with the same weights as the present ones, by split: chunks of one data set.
        self._replaced: dict[str, list[KnownRows]] = {}
        # Rows of stored splits, by nonce and number of rows, since digests take a reading of all rows.
        self._known: dict[tuple[int, int], KnownRows] = {}
        if where is None:
            folder = tempfile.mkdtemp("-trakstore")
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            where = f"{folder}/features.zarr"
        self.where = where

    def open(self) -> FeatureStore | None:
        """Open the store; None before anything was written."""
        return find_store(self.where)

    def write(self, epoch: Epoch, split: str, write: Callable[..., Any]) -> Split:
        """Have a function write a split to the place, and open it.

        In a temporary folder an existing split is replaced: it may be of other samples with the same
        fingerprint, which covers only some of them.
        """
        store = self.open() if self._temporary else None
        replaces = store is not None and split in store.splits_of(epoch)
        if store is not None and replaces:
            self._drop(store, store.split(epoch, split))
        write(self.where)
        now = open_store(self.where).split(epoch, split)
        if replaces:
            self._keep_chunks(now)
        return now

    def _drop(self, store: FeatureStore, old: Split) -> None:
        # A failed call returned no rows: those that it left half written belong to nobody.
        if old.complete:
            self._replaced.setdefault(old.name, []).append(self._rows_of(old))
        store.drop(old.epoch, old.name)
        self._known.pop((old.spec.nonce, old.rows), None)

    def _rows_of(self, split: Split) -> KnownRows:
        """Return the rows of a complete split; they are read once."""
        key = (split.spec.nonce, split.rows)
        if key not in self._known:
            self._known[key] = KnownRows.of(split)
        return self._known[key]

    def _keep_chunks(self, now: Split) -> None:
        """Keep the replaced rows that have the weights of the new ones, and differ from them."""
        same = [
            one
            for one in self._replaced.pop(now.name, ())
            if one.weights == (now.spec.checkpoint or "")
            and not np.array_equal(one.digests, self._rows_of(now).digests)
        ]
        if same:
            self._replaced[now.name] = same
            log.info("%s at epoch %s now has the last %d rows alone", now.name, now.epoch, now.rows)

    def find(self, name: str, features: NDArray[np.float32]) -> FoundRows:
        """Find the stored properties of rows of features.

        The rows are those of a whole split, recognised by their number and norms; otherwise each row is
        looked up by its values, among all splits of this name and the rows that were replaced.
        """
        store = self.open()
        splits = [store.split(epoch, name) for epoch in store.epochs_of(name)] if store else []
        splits = [split for split in splits if split.status().complete]
        for split in splits:
            if split.rows == len(features) and _norms_agree(split, features):
                scale = split.column("out_to_loss").read(0, split.rows)
                return FoundRows(scale, frozenset({split.spec.checkpoint or ""}))
        replaced = self._replaced.get(name, [])
        known = chain(replaced, map(self._rows_of, splits))
        return _found_by_content(features, known, chunked=bool(replaced))


def _norms_agree(split: Split, features: NDArray[np.float32]) -> bool:
    norms = split.column("norm").read(0, split.rows)
    return np.allclose(np.linalg.norm(features, axis=1), norms, rtol=_NORMS_AGREE)


def _found_by_content(
    features: NDArray[np.float32], known: Iterable[KnownRows], *, chunked: bool
) -> FoundRows:
    digests, weights = row_digests(features), set[str]()
    scale = np.full(len(digests), np.nan, dtype=np.float32)
    missing = np.ones(len(digests), dtype=bool)
    for rows in known:  # read split after split, until every row is found
        at = rows.places(digests)
        fresh = missing & (at >= 0)
        if fresh.any():
            scale[fresh] = rows.out_to_loss[at[fresh]]
            weights.add(rows.weights)
            missing &= ~fresh
        if not missing.any():
            break
    return FoundRows(scale, frozenset(weights), int(missing.sum()), chunked)
