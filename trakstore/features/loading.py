"""Data sets made from loaders, data sets and lists of samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    SequentialSampler,
    Subset,
    default_collate,
)

from trakstore.errors import TrakStoreError
from trakstore.features.batches import Collate
from trakstore.quantities import as_whole

__all__ = ["Loaded", "WithIds", "loaded", "stratum"]

_TRIPLE = ("head", "relation", "tail")


class Loaded(NamedTuple):
    """A map-style data set in its own order, and the way to make batches of its samples."""

    dataset: Any
    batch_size: int = 64
    collate: Collate | None = None

    @property
    def batches(self) -> dict[str, Any]:
        """Options of featurize for the batches."""
        return {"batch_size": self.batch_size, "collate": self.collate}


class WithIds:
    """A data set whose samples end in their id, so that a loader may shuffle them.

    In samples that are dicts the id is ``"sample_id"``.

    Parameters
    ----------
    dataset : map-style data set
        Tuples ``(input, ..., label)``, or dicts.
    ids : sequence of int or str, optional
        Names of the samples; their positions by default.

    Raises
    ------
    TrakStoreError
        When there are not as many ids as samples.

    Examples
    --------
    >>> named = WithIds([(0.5, 1), (0.7, 0)], ids=["a", "b"])
    >>> named[1]
    (0.7, 0, 'b')
    """

    def __init__(self, dataset: Any, ids: Sequence[int] | Sequence[str] | None = None) -> None:
        self.dataset, self.ids = dataset, range(len(dataset)) if ids is None else ids
        if len(self.ids) != len(dataset):
            raise TrakStoreError(f"{len(dataset)} samples need as many ids, got {len(self.ids)}")

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        sample, own = self.dataset[index], self.ids[index]
        if isinstance(sample, Mapping):
            return {**sample, "sample_id": own}
        return (*sample, own)


def loaded(source: Any, num_samples: int | None = None) -> Loaded:
    """Take the data set out of a loader; refuse a loader whose row i is not sample i.

    Parameters
    ----------
    source : DataLoader without shuffling, map-style data set, or list of samples
        Samples; a :class:`Loaded` is taken as it is.
    num_samples : int, optional
        Number of samples to take from the front; all when None.

    Raises
    ------
    TrakStoreError
        For a loader that shuffles or samples, a stream without length, too few samples.
    """
    whole = source if isinstance(source, Loaded) else _loaded(source)
    count = len(whole.dataset)
    if num_samples is None:
        return whole
    num_samples = as_whole(num_samples, "num_samples", 1, count, needed=f"must be in 1..{count}")
    return whole._replace(dataset=Subset(whole.dataset, range(num_samples)))


def _loaded(source: Any) -> Loaded:
    if isinstance(source, DataLoader):
        return _of_loader(source)
    if not hasattr(source, "__getitem__") or not hasattr(source, "__len__"):
        raise TrakStoreError(
            f"needed a DataLoader or a data set with a length and indices, got a "
            f"{type(source).__name__}"
        )
    return Loaded(source)


def _of_loader(loader: DataLoader[Any]) -> Loaded:
    if isinstance(loader.dataset, IterableDataset):
        raise TrakStoreError("the loader reads a stream; features need a data set with indices")
    batches: Any = loader.batch_sampler  # None where the loader gives samples one by one
    plain = batches is None or type(batches) is BatchSampler
    draws = loader.sampler if batches is None else batches.sampler if plain else batches
    # A sampler of batches may order samples differently from the loader's own sampler.
    if not plain or not isinstance(draws, SequentialSampler):
        raise TrakStoreError(
            f"the loader draws its samples by a {type(draws).__name__}, so that row i of the features "
            f"would be no particular sample: make it with shuffle=False, no sampler, no batch_sampler"
        )
    # Samples are read by index, in batches of the loader's size, as the loader would.
    dataset: Any = loader.dataset
    size, count = 1 if batches is None else batches.batch_size, len(draws)
    if batches is not None and batches.drop_last:
        count = count // size * size
    if count < len(dataset):
        dataset = Subset(dataset, range(count))
    collate = None if loader.collate_fn is default_collate else loader.collate_fn
    return Loaded(dataset, size, collate)


def stratum(sample: Any, by: str | Callable[[Any], Any] | None) -> Any:
    """Return the value by which samples are drawn in strata.

    Parameters
    ----------
    sample : tuple, list or mapping
        A sample.
    by : str, callable or None
        ``"label"``, the last entry of a tuple; ``"head"``, ``"relation"`` or ``"tail"`` of a triple; a
        key of a mapping; a function of the sample; None for one stratum of all.

    Raises
    ------
    TrakStoreError
        For a name that samples do not have, or values that are several numbers.

    Examples
    --------
    >>> stratum((3, 1, 7), "relation"), stratum((0.5, 4), "label"), stratum({"genre": "jazz"}, "genre")
    (1, 4, 'jazz')
    """
    if by is None:
        return 0
    if callable(by):
        return by(sample)
    if isinstance(sample, Mapping):
        # Models of transformers want the key "labels".
        key: Any = "labels" if by == "label" and by not in sample else by
        if key not in sample:
            raise TrakStoreError(f"samples have no {by!r}, they have {sorted(sample)}")
    elif by == "label" and isinstance(sample, Sequence) and not isinstance(sample, str | bytes):
        key = -1
    elif by in _TRIPLE and isinstance(sample, Sequence) and len(sample) >= len(_TRIPLE):
        key = _TRIPLE.index(by)
    else:
        raise TrakStoreError(
            f"stratify_by={by!r}: samples are {type(sample).__name__}; give 'label' for tuples, "
            f"'relation' for triples (head, relation, tail), a key of dicts, or a function of a sample"
        )
    value = sample[key]
    if getattr(value, "ndim", 0):  # an array or a tensor
        value = value.reshape(-1).tolist()
        value = value[0] if len(value) == 1 else value
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        raise TrakStoreError(
            f"stratify_by={by!r} is a sequence of {len(value)} values in samples, and a stratum is "
            f"one: give a key of dicts that is one number or text, a function of a sample, or none"
        )
    return value.item() if hasattr(value, "item") else value
