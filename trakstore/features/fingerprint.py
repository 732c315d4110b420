"""What features were made from, in short: hashes of a checkpoint and of a data set."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as tree

from trakstore.errors import TrakStoreError
from trakstore.features.parameters import canonical_names

__all__ = ["checkpoint_hash", "dataset_fingerprint", "dataset_rows", "hashed_rows"]

_SAMPLES = 32  # part of the format: another number would make other hashes of the same data


def checkpoint_hash(model: nn.Module) -> str:
    """SHA-256 over all parameters and buffers: canonical names, dtypes, shapes, bytes."""
    digest = hashlib.sha256()
    state = canonical_names({n: t for n, t in model.state_dict().items() if isinstance(t, Tensor)})
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(_tensor_bytes(tensor))
    return digest.hexdigest()


def dataset_fingerprint(dataset: Any, ids: np.ndarray[Any, Any]) -> str:
    """Number of samples, and SHA-256 over some of them and all ids.

    The samples are those of :func:`hashed_rows`, 32 at most: data that are longer, shorter, in
    another order or of other files are told from these, while a change of single samples that are
    not among the 32 is not seen.

    Raises
    ------
    TrakStoreError
        When a sample read twice differs: a random transform gives features of no sample at all.
    """
    rows = dataset_rows(dataset)
    digest = hashlib.sha256()
    for index in hashed_rows(rows):
        first, again = _sample_hash(dataset[index]), _sample_hash(dataset[index])
        if first != again:
            raise TrakStoreError(
                f"sample {index} of the data set differs when it is read twice: turn off random "
                f"transforms (augmentation) for attribution"
            )
        digest.update(first)
    for one in ids.tolist():
        digest.update(f"{one};".encode())
    return f"{rows}:{digest.hexdigest()}"


def hashed_rows(rows: int) -> list[int]:
    """Which of so many samples a fingerprint is over: all of 32 or fewer, else 32 from first to last.

    Examples
    --------
    >>> len(hashed_rows(20)), hashed_rows(1300)[:3]
    (20, [0, 41, 83])
    """
    found: list[int] = np.unique(np.linspace(0, rows - 1, _SAMPLES).astype(int)).tolist()
    return found


def dataset_rows(dataset: Any, name: str = "the data set") -> int:
    """Number of samples of a map-style data set, called ``name`` in errors."""
    if not isinstance(dataset, Sized) or not hasattr(dataset, "__getitem__"):
        raise TrakStoreError(
            f"{name} needs __len__ and __getitem__, got {type(dataset).__name__}; "
            f"pass the data set itself, not a loader or an iterator"
        )
    if len(dataset) == 0:
        raise TrakStoreError(f"{name} is empty: it needs one sample or more")
    return len(dataset)


def _sample_hash(sample: Any) -> bytes:
    if isinstance(sample, Mapping):
        sample = dict(sample)
    leaves, structure = tree.tree_flatten(sample)
    digest = hashlib.sha256(str(structure).encode())
    for leaf in leaves:
        digest.update(_leaf_bytes(leaf))
    return digest.digest()


def _leaf_bytes(leaf: Any) -> bytes:
    if isinstance(leaf, Tensor):
        return f"{leaf.dtype} {tuple(leaf.shape)};".encode() + _tensor_bytes(leaf)
    if leaf is None or isinstance(leaf, bool | int | float | str | bytes | np.generic):
        return repr(leaf).encode()
    array = np.asarray(leaf)
    if array.dtype.kind == "O":
        raise TrakStoreError(
            f"samples are trees of tensors, arrays, numbers and strings; got a "
            f"{type(leaf).__name__}: convert it in the data set"
        )
    return f"{array.dtype} {array.shape};".encode() + array.tobytes()


def _tensor_bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().tobytes()
