"""Samples of a data set, recognised in the batches of a loader that shuffles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as tree
from torch.utils.data import default_collate

from trakstore.errors import TrakStoreError

_BYTES = 16
_REMEDY = "wrap the data set in WithIds, whose samples end in their id, and give ids="


class SampleRecogniser:
    """Finder of samples' positions in a data set, by their contents.

    The data set is read once, and a digest of each sample is kept. Samples with equal contents, label
    included, are taken in order, each once an epoch.
    and all, are taken in their order, each once an epoch.

    Parameters
    ----------
    dataset : map-style data set
        Samples ``(input, ..., label)`` or dicts of tensors, the same ones whenever they are read.

    Raises
    ------
    TrakStoreError
        When the first sample differs between two readings.
    """

    def __init__(self, dataset: Any) -> None:
        if _digests(*_collated(dataset[0], None)) != _digests(*_collated(dataset[0], None)):
            raise TrakStoreError(
                f"samples of the data set differ each time they are read (augmentation), and cannot be "
                f"told by what they hold: {_REMEDY}"
            )
        self._dataset = dataset
        self._positions: dict[bytes, list[int]] = {}
        self._epoch: int | None = None
        self._seen: Counter[bytes] = Counter()

    def positions(self, epoch: int, data: Any, targets: Tensor) -> NDArray[np.int64]:
        """Find the samples of a batch.

        Parameters
        ----------
        epoch : int
            Epoch of the batch.
        data : Tensor, or tuple, list or dict of Tensor
            Inputs of the batch as the loader collates them, on any device.
        targets : Tensor, shape (batch,)
            Their labels.

        Raises
        ------
        TrakStoreError
            When a sample of the batch is not in the data set.
        """
        if not self._positions:
            self._read_all(data)
        if epoch != self._epoch:
            self._epoch, self._seen = epoch, Counter()
        return np.array([self._next(one, at) for at, one in enumerate(_digests(data, targets))])

    @property
    def digest(self) -> str:
        """Hash of all samples, in order; known once a batch was looked up."""
        at = {place: one for one, places in self._positions.items() for place in places}
        whole = blake2b(digest_size=_BYTES)
        for place in range(len(at)):
            whole.update(at[place])
        return whole.hexdigest()

    def _read_all(self, data: Any) -> None:
        keys = frozenset(data) if isinstance(data, Mapping) else None
        for at in range(len(self._dataset)):
            (digest,) = _digests(*_collated(self._dataset[at], keys))
            self._positions.setdefault(digest, []).append(at)

    def _next(self, digest: bytes, row: int) -> int:
        known = self._positions.get(digest)
        if known is None:
            raise TrakStoreError(
                f"sample {row} of the batch is none of the {len(self._dataset)} of the data set: what "
                f"loaders or loops change (augmentation, normalising, another dtype) cannot be told by "
                f"what it holds; {_REMEDY}"
            )
        self._seen[digest] += 1
        return known[(self._seen[digest] - 1) % len(known)]


def _collated(sample: Any, keys: frozenset[str] | None) -> tuple[Any, Tensor]:
    """Return inputs and label of one sample as a batch; of a dict, the inputs with these names."""
    if isinstance(sample, Mapping):
        label = sample["labels" if "labels" in sample else "label"]
        chosen = {name: sample[name] for name in sample if keys is None or name in keys}
        return default_collate([chosen]), torch.as_tensor(label).reshape(1)
    *inputs, label = sample
    return default_collate([tuple(inputs)]), torch.as_tensor(label).reshape(1)


def _digests(data: Any, targets: Tensor) -> list[bytes]:
    """Return a digest of each sample of a batch, from its tensors and its label."""
    if isinstance(data, Mapping):
        data = [data[name] for name in sorted(data)]
    leaves = [one for one in tree.tree_leaves(data) if isinstance(one, Tensor)]
    columns = [_bytes(one) for one in (*leaves, torch.as_tensor(targets).long())]
    digests = []
    for rows in zip(*columns, strict=True):
        digest = blake2b(digest_size=_BYTES)
        for row in rows:
            digest.update(row)
        digests.append(digest.digest())
    return digests


def _bytes(leaf: Tensor) -> list[bytes]:
    """Return the bytes of each row of a tensor, with a mark of its kind."""
    rows = leaf.detach().cpu().contiguous()
    kind = f"{rows.dtype} {tuple(rows.shape[1:])};".encode()
    flat = rows.reshape(len(rows), -1).view(torch.uint8).numpy()
    return [kind + row.tobytes() for row in flat]
