"""Data sets from what people hand over: loaders, data sets, lists of samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, SequentialSampler, Subset, default_collate

from trakstore.errors import TrakStoreError
from trakstore.features.batches import Collate
from trakstore.quantities import as_whole

__all__ = ["Loaded", "loaded"]


@dataclass(frozen=True)
class Loaded:
    """A map-style data set in its own order, and how its samples become batches."""

    dataset: Any
    collate: Collate | None
    batch_size: int

    def __len__(self) -> int:
        return len(self.dataset)


def loaded(source: Any, num_samples: int | None = None) -> Loaded:
    """What to featurize of a loader or a data set.

    Parameters
    ----------
    source : DataLoader, or map-style data set, or list of samples
        A loader must not shuffle: row i has to be sample i, in every run.
    num_samples : int, optional
        Only so many from the front.

    Raises
    ------
    TrakStoreError
        For a loader that shuffles or samples, a stream without length, too few samples.
    """
    found = _of_loader(source) if isinstance(source, DataLoader) else Loaded(source, None, 64)
    if not hasattr(found.dataset, "__getitem__") or not hasattr(found.dataset, "__len__"):
        raise TrakStoreError(
            f"needed a DataLoader or a data set with a length and indices, got a "
            f"{type(found.dataset).__name__}"
        )
    if num_samples is None:
        return found
    needed = f"must be in 1..{len(found)}"
    num_samples = as_whole(num_samples, "num_samples", 1, len(found), needed=needed)
    return Loaded(Subset(found.dataset, range(num_samples)), found.collate, found.batch_size)


def _of_loader(loader: DataLoader[Any]) -> Loaded:
    if isinstance(loader.dataset, IterableDataset):
        raise TrakStoreError("the loader reads a stream; features need a data set with indices")
    if not isinstance(loader.sampler, SequentialSampler):
        raise TrakStoreError(
            f"the loader draws its samples by a {type(loader.sampler).__name__}, so that row i of "
            f"the features would be no particular sample: make it with shuffle=False, no sampler"
        )
    collate = None if loader.collate_fn is default_collate else loader.collate_fn
    size, dataset = loader.batch_size or 1, loader.dataset
    if loader.drop_last:
        whole: Sequence[int] = range(len(dataset) // size * size)  # type: ignore[arg-type]
        dataset = Subset(dataset, whole)
    return Loaded(dataset, collate, size)
