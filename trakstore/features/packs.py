"""Documents of packed sequences, as samples of their own."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trakstore.errors import TrakStoreError
from trakstore.features.fingerprint import dataset_rows
from trakstore.features.outputs.sequences import IGNORED
from trakstore.features.padding import row_of_tokens
from trakstore.features.reading import read_sample

__all__ = ["Documents"]

_OFFSETS = ("cu_seq_lens_q", "cu_seq_lens", "cu_seqlens")  # names that libraries have for them
_TELLS = ("seq_lengths", *_OFFSETS, "seq_idx", "position_ids")


class Documents:
    """A data set whose samples are the documents of packs: one row of features for each.

    Each document is computed by itself. Since documents of a pack do not see one another, this gives
    its part of the pack's gradient. Collate with :func:`pad_tokens`, or another collator that pads.

    Every pack is read once here, to count its documents.

    Parameters
    ----------
    packs : map-style data set of dict
        Each with ``input_ids``, and one column that separates its documents: ``seq_lengths``;
        ``cu_seq_lens``, ``cu_seq_lens_q`` or ``cu_seqlens``, the positions where they begin and the end
        of the last; ``seq_idx``, a number for each token; or ``position_ids`` that begin again. Columns
        with a number for each token, such as ``labels``, are cut like the tokens; others belong to the
        whole pack. Tokens that an ``attention_mask`` hides belong to no document.

    Attributes
    ----------
    places : ndarray of int64, shape (documents, 3)
        Pack of each document, the position of its first token in it, and that after its last. Documents
        with nothing to predict (one token, or no label) are left out: they have no features.

    Raises
    ------
    TrakStoreError
        When a pack does not say where its documents are, or no document is left.

    Examples
    --------
    >>> packs = [{"input_ids": [5, 6, 7, 8, 9], "seq_lengths": [3, 2]}]
    >>> documents = Documents(packs)
    >>> documents[1]["input_ids"].tolist(), documents.places.tolist()
    ([8, 9], [[0, 0, 3], [0, 3, 5]])
    """

    def __init__(self, packs: Any) -> None:
        self.packs = packs
        count = dataset_rows(packs, "the data set of packs")
        places, self._positions = list[tuple[int, int, int]](), False
        for at in range(count):
            pack = read_sample(packs, at)
            own = [(at, *part) for part in _documents(pack, at)]
            places += own
            self._positions = self._positions or not _from_zero(pack, own)
        if not places:
            raise TrakStoreError("no document of the packs has a token to predict")
        self.places: NDArray[np.int64] = np.array(places)
        self._last: tuple[int, Any] = (-1, None)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        at, start, stop = self.places[index].tolist()
        pack = self._pack(at)
        length = len(row_of_tokens(pack))
        # Without positions, models number the tokens of a document from 0 themselves.
        aside = set(_TELLS) - ({"position_ids"} if self._positions else set())
        return {
            name: _cut(value, start, stop, length)
            for name, value in pack.items()
            if name not in aside
        }

    def _pack(self, at: int) -> Any:
        # Documents are mostly read pack by pack, so that the last pack is kept. Number and pack are one
        # tuple: a second thread cannot see one without the other.
        known, pack = self._last
        if known != at:
            pack = read_sample(self.packs, at)
            self._last = at, pack
        return pack


def _documents(pack: Any, at: int) -> list[tuple[int, int]]:
    """Return the ranges of a pack's tokens that are documents with something to predict."""
    length = len(row_of_tokens(pack))
    edges = _edges(pack, length, at)
    mask = torch.as_tensor(pack.get("attention_mask", torch.ones(length))) != 0
    asked = torch.as_tensor(pack.get("labels", torch.zeros(length))) != IGNORED
    if not len(mask) == len(asked) == length:
        raise TrakStoreError(
            f"pack {at} has {length} input_ids, and other numbers of labels or masks"
        )
    parts = []
    for start, stop in pairwise(edges):
        real = mask[start:stop].nonzero()[:, 0]
        if not len(real):
            continue
        first, end = start + int(real[0]), start + int(real[-1]) + 1
        if bool(asked[first + 1 : end].any()):
            parts.append((first, end))
    return parts


def _from_zero(pack: Mapping[str, Any], places: list[tuple[int, int, int]]) -> bool:
    """Tell whether the positions of documents begin at 0; they do not if one began in another pack."""
    positions = pack.get("position_ids")
    return positions is None or all(int(positions[start]) == 0 for _, start, _ in places)


def _edges(pack: Mapping[str, Any], length: int, at: int) -> list[int]:
    """Return the position where each document of a pack begins, and the end of the last one."""
    given = {name: torch.as_tensor(pack[name]) for name in _TELLS if pack.get(name) is not None}
    name = next(iter(given), None)
    if name is None:
        raise TrakStoreError(
            f"pack {at} does not tell its documents apart: give one of {', '.join(_TELLS)} with each "
            f"pack, got {sorted(pack)}"
        )
    told = given[name].reshape(-1)
    if name == "seq_lengths":
        edges = [0, *told.cumsum(0).tolist()]
    elif name in _OFFSETS:
        edges = told.tolist()
    else:
        begins = told[1:] <= told[:-1] if name == "position_ids" else told[1:] != told[:-1]
        edges = [0, *(begins.nonzero()[:, 0] + 1).tolist(), len(told)]
    if edges[0] != 0 or edges[-1] != length or any(a > b for a, b in pairwise(edges)):
        raise TrakStoreError(
            f"pack {at} has {length} input_ids, and {name} of {told.tolist()[:8]} divides other numbers"
        )
    return edges


def _cut(value: Any, start: int, stop: int, length: int) -> Any:
    """Return a document's part of a column that has a number for each token; others as they are."""
    if isinstance(value, Tensor | np.ndarray | list | tuple) and len(value) == length:
        return torch.as_tensor(value[start:stop]) if not _has_text(value) else value
    return value


def _has_text(value: Any) -> bool:
    return isinstance(value, list | tuple) and any(isinstance(one, str) for one in value)
