"""Training dynamics of samples: confidence, variability, learning and forgetting."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from trakstore.errors import NotFoundError, TrakStoreError, did_you_mean
from trakstore.storage.backends.location import Where
from trakstore.storage.ids import as_ids
from trakstore.storage.opening import location_of
from trakstore.storage.store import FeatureStore
from trakstore.storage.tables.training_records import MEASURES, RecordPart, record_parts

EARLY_EPOCHS = 10  # first epochs over which EL2N is averaged
Part = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]


def training_dynamics(store: Where | FeatureStore, split: str = "train") -> xr.Dataset:
    """Summarise the records of a tracker over epochs, for each sample.

    One epoch is read after the other; memory is about 200 bytes for each sample, and the records that
    were stored at once. If a sample has several records at an epoch (drawn with replacement), the last
    one counts.

    Parameters
    ----------
    store : FeatureStore or its place
        Store to which the tracker wrote.
    split : str
        Name of the samples there.

    Returns
    -------
    Dataset
        Dimension ``sample`` with the coordinate ``sample_id``, sorted: samples of which a record
        counts. ``confidence`` and ``variability``: mean and standard deviation over epochs of the
        probability of the own class; ``correctness``: share of epochs at which it was predicted right;
        ``forgetting_events``: how often it went from right to wrong; ``first_learned``: first epoch at
        which it was right, -1 for never; ``aum``: mean over epochs of the own logit less the largest
        other; ``el2n``: mean over its first 10 epochs of ‖p − y‖; ``loss``: at its last epoch;
        ``epochs``: how many there are.

    Raises
    ------
    NotFoundError
        When nothing was recorded.
    TrakStoreError
        When some records name samples by integers, and others by text.

    References
    ----------
    Swayamdipta et al. (2020) for the first three, Toneva et al. (2019) for forgetting, Pleiss et al.
    (2020) for AUM, Paul et al. (2021) for EL2N.

    Examples
    --------
    >>> import torch
    >>> from trakstore.attributors import TrainingDynamicsTracker
    >>> labels, logits = torch.tensor([0, 1]), torch.tensor([[2.0, 0.0], [1.0, 0.0]])
    >>> with TrainingDynamicsTracker(store="memory://dynamics") as tracker:
    ...     tracker.update(0, 0, None, labels, logits, ids=[7, 8])
    >>> training_dynamics("memory://dynamics")["correctness"].values
    array([1., 0.])
    """
    location = location_of(store)
    parts = record_parts(location, split)
    _need_one_kind(parts, split)
    ids = np.unique(np.concatenate([np.unique(part.read("sample_id")) for part in parts]))
    summary = _Summary(len(ids))
    for epoch, rows, measures in _epoch_by_epoch(parts, ids):
        summary.add(epoch, rows, measures)
    # Samples that no run has seen since a later one began again have no valid record.
    seen = summary.epochs > 0
    columns = {name: ("sample", values) for name, values in summary.columns(seen).items()}
    ids = ids[seen]
    return xr.Dataset(columns, coords={"sample_id": ("sample", ids)}, attrs={"split": split})


def dynamics_of(dynamics: xr.Dataset, ids: Any) -> xr.Dataset:
    """Take the rows of some samples, in their order, to join dynamics with lists of scores.

    Parameters
    ----------
    dynamics : Dataset
        From :func:`training_dynamics`.
    ids : array of int or str, of any shape
        Sample ids, such as ``top_k(...)["train"]``.

    Returns
    -------
    Dataset
        As ``dynamics``, with the dimension ``sample``, or ``dim_0``, ``dim_1``, ... where the ids
        have another number of dimensions than one.

    Raises
    ------
    NotFoundError
        When a sample was not recorded.

    Examples
    --------
    >>> import xarray as xr
    >>> seen = xr.Dataset({"aum": ("sample", [0.5, -1.0])}, coords={"sample_id": ("sample", [7, 8])})
    >>> dynamics_of(seen, [8, 7])["aum"].values
    array([-1. ,  0.5])
    """
    # Python's own strings: NumPy would cut a longer text to the length of the known ones.
    wanted, known = as_ids(ids), as_ids(dynamics["sample_id"].values).tolist()
    row_of = {sample: row for row, sample in enumerate(known)}
    rows = [row_of.get(sample, -1) for sample in wanted.ravel().tolist()]
    if -1 in rows:
        first = wanted.ravel()[rows.index(-1) :].tolist()[0]
        raise NotFoundError(f"sample {first!r} was not tracked{did_you_mean(first, known[:1000])}")
    at = np.array(rows, dtype=np.int64).reshape(wanted.shape)
    dims = [f"dim_{i}" for i in range(wanted.ndim)] if wanted.ndim != 1 else ["sample"]
    return dynamics.isel(sample=xr.DataArray(at, dims=dims))


def _need_one_kind(parts: list[RecordPart], split: str) -> None:
    by_kind = {part.has_text_ids: part for part in parts}
    if len(by_kind) > 1:
        raise TrakStoreError(
            f"samples of {split!r} are named by integers in {by_kind[False].path} and by text in "
            f"{by_kind[True].path}: remove the records of one kind from {parts[0].location}"
        )


def _epoch_by_epoch(
    parts: list[RecordPart], ids: NDArray[Any]
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.float64]]]:
    """Yield each epoch, in order, with measures of its samples, and their rows in ``ids``."""
    held: list[Part] = []
    # An epoch is complete when the next part begins at a later one: ranks, and parts of one run, share
    # it.
    limits = [*(part.first_epoch for part in parts[1:]), np.iinfo(np.int64).max]
    for part, counting, limit in zip(parts, _counting(parts, ids), limits, strict=True):
        held.append(counting)
        if part.first_epoch == limit:
            continue
        rows, epochs, measures = map(np.concatenate, zip(*held, strict=True))
        for epoch in np.unique(epochs[epochs < limit]):
            last_first = np.flatnonzero(epochs == epoch)[::-1]
            here = last_first[np.unique(rows[last_first], return_index=True)[1]]
            yield int(epoch), rows[here], measures[here]
        left = epochs >= limit
        held = [(rows[left], epochs[left], measures[left])]


def _counting(parts: list[RecordPart], ids: NDArray[Any]) -> Iterator[Part]:
    """Yield rows in ``ids``, epochs and measures of each part, without records that were replaced."""
    first = {part.run: part.first_epoch for part in reversed(parts)}  # of each run
    # A run that goes on from a checkpoint repeats some epochs: the records of the same rank's later run
    # are valid from its first epoch on.
    for part in parts:
        epochs, own = part.read("epoch"), part.run
        later = [
            epoch
            for run, epoch in first.items()
            if run.rank == own.rank and run.sort_key > own.sort_key
        ]
        kept = np.flatnonzero(epochs < min(later, default=np.iinfo(np.int64).max))
        rows = np.searchsorted(ids, part.read("sample_id")[kept])
        yield rows, epochs[kept], part.read("measures")[kept].astype(np.float64)


class _Summary:
    """Running sums over epochs, which must come in order, each with a sample at most once.

    Memory is a few numbers for each sample, for any number of epochs.
    """

    def __init__(self, samples: int) -> None:
        self.epochs = np.zeros(samples, dtype=np.int64)
        self.sums = np.zeros((samples, len(MEASURES)))
        self.squares, self.early = np.zeros((2, samples))
        self.loss = np.full(samples, np.nan)
        self.was_right = np.zeros(samples, dtype=bool)
        self.forgotten = np.zeros(samples, dtype=np.int64)
        self.first = np.full(samples, -1, dtype=np.int64)

    def add(self, epoch: int, rows: NDArray[np.int64], measures: NDArray[np.float64]) -> None:
        """Add some samples of an epoch; measures have the shape (samples, measures)."""
        loss, confidence, correct, _, el2n = measures.T
        right = correct > 0
        self.early[rows] += np.where(self.epochs[rows] < EARLY_EPOCHS, el2n, 0)
        self.epochs[rows] += 1
        self.sums[rows] += measures
        self.squares[rows] += confidence**2
        self.loss[rows] = loss
        # A forgetting event (Toneva et al.): right when last seen, wrong now.
        self.forgotten[rows] += self.was_right[rows] & ~right
        self.was_right[rows] = right
        new = rows[right & (self.first[rows] < 0)]
        self.first[new] = epoch

    def columns(self, seen: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
        """Return the summaries by name, of the samples that were seen: others have no means."""
        epochs = self.epochs[seen]
        means = self.sums[seen] / epochs[:, None]
        by_name = dict(zip(MEASURES, means.T, strict=True))
        # The mean of squares less the squared mean may become negative by rounding.
        spread = np.maximum(self.squares[seen] / epochs - by_name["confidence"] ** 2, 0)
        return {
            "confidence": by_name["confidence"],
            "variability": np.sqrt(spread),
            "correctness": by_name["correct"],
            "forgetting_events": self.forgotten[seen],
            "first_learned": self.first[seen],
            "aum": by_name["margin"],
            "el2n": self.early[seen] / np.minimum(epochs, EARLY_EPOCHS),
            "loss": self.loss[seen],
            "epochs": epochs,
        }
