"""Hashes of a checkpoint and of a data set, by which a store knows what its features came from."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Mapping, Sized
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import PurePath
from typing import Any, NamedTuple
from uuid import UUID

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as tree
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.data import Dataset, Subset

from trakstore.errors import TrakStoreError
from trakstore.features.parameters import canonical_names
from trakstore.features.reading import number_of_samples, read_sample
from trakstore.features.sharding import local_part, whole_tensor
from trakstore.features.streamed import Streamed

__all__ = [
    "Weights",
    "checkpoint_checksum",
    "checkpoint_hash",
    "dataset_fingerprint",
    "dataset_rows",
    "hashed_rows",
    "sampled_rows",
    "whole_digest",
]

_ROWS = ("crow_indices", "col_indices", "values")
_COLUMNS = ("ccol_indices", "row_indices", "values")
_PARTS: Mapping[torch.layout, tuple[str, ...]] = {  # of sparse tensors
    torch.sparse_coo: ("indices", "values"),
    torch.sparse_csr: _ROWS,
    torch.sparse_bsr: _ROWS,
    torch.sparse_csc: _COLUMNS,
    torch.sparse_bsc: _COLUMNS,
}
# Objects whose repr holds all of their value; that of other objects may hold an address.
_VALUES = (date, time, timedelta, Decimal, PurePath, UUID)
_SAMPLES = 32  # part of the format: another number would make other hashes of the same data


class Weights(NamedTuple):
    """Hashes of a checkpoint: one that names it, and one that is quick to compute again.

    Attributes
    ----------
    hash : str
        SHA-256 over all parameters and buffers: canonical names, dtypes, shapes, bytes. A model that is
        spread over ranks has the hash of the whole model, so that any number of ranks can go on with a
        store. All ranks compute it together, one gathered tensor at a time.
    checksum : int
        CRC-32 of what this rank holds: it shows every accidental change, but not one made to deceive.
    """

    hash: str
    checksum: int

    @classmethod
    def of(cls, model: nn.Module) -> Weights:
        """Compute both in one reading of the weights."""
        digest, checksum = hashlib.sha256(), 0
        for head, tensor in _headed_tensors(model):
            whole, own = whole_tensor(tensor), local_part(tensor)
            content = _tensor_bytes(whole)
            digest.update(head)
            digest.update(content)
            checksum = zlib.crc32(head, checksum)
            checksum = zlib.crc32(content if own is whole else _tensor_bytes(own), checksum)
        return cls(digest.hexdigest(), checksum)


def checkpoint_hash(model: nn.Module) -> str:
    """Return SHA-256 over all parameters and buffers: canonical names, dtypes, shapes, bytes."""
    return Weights.of(model).hash


def checkpoint_checksum(model: nn.Module) -> int:
    """Return the checksum of a checkpoint by itself, in less than half of the time of its hash."""
    checksum = 0
    for head, tensor in _headed_tensors(model):
        checksum = zlib.crc32(_tensor_bytes(local_part(tensor)), zlib.crc32(head, checksum))
    return checksum


def _headed_tensors(model: nn.Module) -> Iterator[tuple[bytes, Tensor]]:
    """Yield the tensors of a model in the order of their names, each after a line that describes it."""
    state = canonical_names(dict(_tensors(model.state_dict())))
    for name, tensor in sorted(state.items()):
        yield f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode(), tensor


def _tensors(state: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a state, also those within what quantised modules pack."""
    for name, value in state.items():
        if isinstance(value, Tensor):
            yield name, value
            continue
        for number, leaf in enumerate(tree.tree_leaves(value)):
            if isinstance(leaf, Tensor):
                yield f"{name}[{number}]", leaf


def dataset_fingerprint(dataset: Any, ids: np.ndarray[Any, Any]) -> str:
    """Return the number of samples, and SHA-256 over some of them and all ids.

    At most 32 samples are hashed, those of :func:`sampled_rows`. Data that are longer, shorter, in
    another order or from other files have another fingerprint; a change of a single sample outside
    these is not noticed.

    Raises
    ------
    TrakStoreError
        When a sample read twice differs: a random transform gives features of no sample at all.
    """
    rows = dataset_rows(dataset)
    digest = hashlib.sha256()
    for index, first, again in _hashed_twice(dataset, ids):
        if first != again:
            raise TrakStoreError(
                f"sample {index} of the data set differs when it is read twice: turn off random "
                f"transforms (augmentation) for attribution"
            )
        digest.update(first)
    digest.update(_id_bytes(ids))
    return f"{rows}:{digest.hexdigest()}"


def whole_digest(dataset: Any, ids: np.ndarray[Any, Any]) -> str:
    """Return SHA-256 over all samples and all ids, which every change of a sample alters."""
    digest = hashlib.sha256()
    for index in range(dataset_rows(dataset)):
        digest.update(_sample_hash(read_sample(dataset, index, ids)))
    digest.update(_id_bytes(ids))
    return digest.hexdigest()


def _id_bytes(ids: np.ndarray[Any, Any]) -> bytes:
    r"""Return bytes that no other ids have: ``;`` ends each, and is written ``\;`` within one."""
    texts = (str(one).replace("\\", "\\\\").replace(";", "\\;") for one in ids.tolist())
    return "".join(f"{one};" for one in texts).encode()


def _hashed_twice(dataset: Any, ids: np.ndarray[Any, Any]) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield positions of chosen samples, and the two hashes of each from two readings."""
    chosen, stream = sampled_rows(dataset), _stream(dataset)

    def hashed(index: int) -> bytes:
        return _sample_hash(read_sample(dataset, index, ids))

    if stream is None:
        yield from ((index, hashed(index), hashed(index)) for index in chosen)
        return
    stream.restart()  # samples that the stream still holds would be the same objects again
    first = list(map(hashed, chosen))
    stream.restart()
    yield from zip(chosen, first, map(hashed, chosen), strict=True)


def _stream(dataset: Any) -> Streamed | None:
    """Return the stream that a data set is, or is a subset of."""
    whole = dataset.dataset if isinstance(dataset, Subset) else dataset
    return whole if isinstance(whole, Streamed) else None


def sampled_rows(dataset: Any) -> list[int]:
    """Choose the samples that stand for a data set: those of :func:`hashed_rows`.

    Of a stream the first ones are taken, since one pass reads it in order.
    """
    rows = number_of_samples(dataset)
    return hashed_rows(rows if _stream(dataset) is None else min(rows, _SAMPLES))


def hashed_rows(rows: int) -> list[int]:
    """Choose the samples that a fingerprint is over: all of 32 or fewer, else 32 from first to last.

    Examples
    --------
    >>> len(hashed_rows(20)), hashed_rows(1300)[:3]
    (20, [0, 41, 83])
    """
    chosen: list[int] = np.unique(np.linspace(0, rows - 1, _SAMPLES).astype(int)).tolist()
    return chosen


def dataset_rows(dataset: Any, name: str = "the data set") -> int:
    """Return the number of samples of a map-style data set, called ``name`` in errors."""
    if not isinstance(dataset, Sized) or not _gives_by_index(dataset):
        raise TrakStoreError(
            f"{name} needs __len__ and __getitem__, got {type(dataset).__name__}; pass the data set "
            f"itself, not a loader or an iterator; list(...) makes one of what can only be iterated, "
            f"and Streamed(..., rows=) of what is too large for that"
        )
    if isinstance(dataset, Mapping) and 0 not in dataset:
        keys = ", ".join(map(repr, list(dataset)[:5]))
        raise TrakStoreError(
            f"{name} is a mapping of {keys or 'nothing'}, and samples are numbered from 0; give one of "
            f"its splits, or a list of samples"
        )
    return number_of_samples(dataset, name)


def _gives_by_index(dataset: Any) -> bool:
    """Tell whether a data set has its own ``__getitem__``: that of torch's base class only fails."""
    given = getattr(type(dataset), "__getitem__", None)
    return given is not None and given is not Dataset.__getitem__


def _sample_hash(sample: Any) -> bytes:
    if isinstance(sample, Mapping):
        sample = dict(sample)  # a mapping of any class hashes as the dict with the same entries
    leaves, structure = tree.tree_flatten(sample)
    digest = hashlib.sha256(str(structure).encode())
    for leaf in leaves:
        digest.update(_leaf_bytes(leaf))
    return digest.digest()


def _leaf_bytes(leaf: Any) -> bytes:
    if isinstance(leaf, Tensor):
        return f"{leaf.dtype} {tuple(leaf.shape)};".encode() + bytes(_tensor_bytes(leaf))
    if leaf is None or isinstance(leaf, bool | int | float | str | bytes | np.generic):
        return repr(leaf).encode()
    if isinstance(leaf, _VALUES):
        return repr(leaf).encode()
    try:
        array = np.asarray(leaf)
    except ValueError:  # an object that numpy iterates, into parts of several sizes
        array = np.empty(1, dtype=object)
    if array.dtype.kind == "O" and callable(getattr(leaf, "to_dict", None)):  # a graph, for one
        return _sample_hash(leaf.to_dict())
    if array.dtype.kind == "O":
        raise TrakStoreError(
            f"samples are trees of tensors, arrays, numbers and strings; got a "
            f"{type(leaf).__name__}: convert it in the data set"
        )
    return f"{array.dtype} {array.shape};".encode() + array.tobytes()


def _tensor_bytes(tensor: Tensor) -> bytes | memoryview:
    # Stored hashes are of these bytes: any other order or form would be another checkpoint.
    tensor = tensor.detach().cpu()
    if is_traceable_wrapper_subclass(tensor):  # weights of few bits of torchao, with their scales
        parts, _ = tensor.__tensor_flatten__()
        return b"".join(_leaf_bytes(getattr(tensor, part)) for part in parts)
    if tensor.is_quantized:
        return _scale_bytes(tensor) + bytes(_tensor_bytes(tensor.int_repr()))
    if tensor.layout is not torch.strided:
        parts = _PARTS.get(tensor.layout)
        if parts is None:
            return _tensor_bytes(tensor.to_dense())
        stored = tensor.coalesce() if tensor.layout is torch.sparse_coo else tensor
        return b"".join(_leaf_bytes(getattr(stored, part)()) for part in parts)
    flat = tensor.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
    # The memory itself, as a copy of all weights would take as long as their checksum.
    return flat.numpy().data


def _scale_bytes(tensor: Tensor) -> bytes:
    """Return scale and zero point of a quantised tensor, which its integers stand for."""
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return f"{tensor.q_scale()!r} {tensor.q_zero_point()};".encode()
    scales = (tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points())
    return b"".join(map(_leaf_bytes, scales)) + f"{tensor.q_per_channel_axis()};".encode()
