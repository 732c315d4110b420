"""Running top-k lists on a GPU, and entries of a tile there; importing this imports torch.

The operations on a tile do not depend on its values: none waits for a number from the GPU, so that the
next rows are read meanwhile.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trakstore.passes.gpu import NotFiniteError
from trakstore.passes.pinned import Upload, to_host
from trakstore.scores.running_lists import NOWHERE, Lists, Order, group_size

# Positions of entries are below this: a rank holds the position in its lower half.
_PLACES = 2**31


class DeviceLists:
    """Lists of a window's targets on a GPU, as :class:`.Running` keeps them on the CPU.

    Each tile is merged into the lists. Only some groups of neighbouring columns of the tile are
    examined: for each target, the k groups whose best scores come first contain its first k scores.
    """

    def __init__(self, rows: int, k: int, device: str) -> None:
        there = torch.device(device)
        self._key = torch.full((rows, k), -math.inf, dtype=torch.float32, device=there)
        self._score = torch.zeros((rows, k), dtype=torch.float32, device=there)
        self._position = torch.full((rows, k), NOWHERE, dtype=torch.int64, device=there)
        # The largest magnitude so far: once NaN or infinite, it stays so.
        self._largest = torch.zeros((), dtype=torch.float32, device=there)
        self._positions = Upload(there)

    def offer(
        self,
        tile: Tensor,
        target: int,  # noqa: ARG002
        positions: NDArray[np.int64],
        order: Order,
    ) -> None:
        """Update the lists with scores of all targets and the train rows at ascending ``positions``."""
        ends = torch.stack(torch.aminmax(tile)).abs().amax()
        self._largest = torch.maximum(self._largest, ends)
        k, key = self._key.shape[1], _keys(tile, order)
        column = _candidates(key, k)
        # Listed entries have lower positions than those of this tile, and are in order. So an entry's
        # place among both breaks ties as its position would.
        listed = _ranks(self._key, torch.arange(k, device=tile.device))
        offered = _ranks(key.gather(1, column), column + k)
        best = torch.topk(torch.cat([listed, offered], dim=1), k, dim=1).values
        place = _PLACES - (best & 0xFFFFFFFF)
        new, kept, own = place >= k, place.clamp(max=k - 1), (place - k).clamp_(min=0)
        with self._positions.sent(positions) as position:
            entries = (
                (key.gather(1, own), self._key),
                (tile.gather(1, own), self._score),
                (position[own], self._position),
            )
            self._key, self._score, self._position = (
                torch.where(new, offer, held.gather(1, kept)) for offer, held in entries
            )

    def lists(self) -> Lists:
        """Return the lists as they are now.

        Raises
        ------
        NotFiniteError
            When a score was not finite.
        """
        if not np.isfinite(to_host(self._largest)):
            raise NotFiniteError("scores are not finite")
        return Lists(*(to_host(one) for one in (self._key, self._score, self._position)))


def _keys(tile: Tensor, order: Order) -> Tensor:
    """Return keys of scores in a new tensor: the larger key comes first."""
    if order == "magnitude":
        return tile.abs()
    # −0 and 0 are equal, but their bits are not. Adding 0, or subtracting from it, gives 0 for both.
    return 0.0 - tile if order == "smallest" else tile + 0.0


def _candidates(key: Tensor, k: int) -> Tensor:
    """Return columns that contain the first k scores of each row, shape (rows, candidates)."""
    rows, columns = key.shape
    size = group_size(k, columns)
    every = torch.arange(columns, device=key.device)
    if size == 1:
        return every.expand(rows, columns)
    # Of groups with equal bests, the first one has the lowest position. So the first k groups have k
    # entries that come before every entry of any other group.
    groups = columns // size
    best = key[:, : groups * size].unflatten(1, (groups, size)).amax(2)
    rank = torch.topk(_ranks(best, every[:groups]), k, dim=1, sorted=False).values
    first = (_PLACES - (rank & 0xFFFFFFFF)) * size
    chosen = (first[:, :, None] + every[:size]).flatten(1)
    # Columns beyond the last whole group are always candidates.
    rest = every[groups * size :]
    return torch.cat([chosen, rest.expand(rows, len(rest))], dim=1)


def _ranks(key: Tensor, place: Tensor) -> Tensor:
    """Return integers that order finite keys, larger first, and equal ones by place, lower first."""
    bits = key.view(torch.int32)
    # As integers, the bits of negative floats ascend as the floats descend.
    ascending = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return ascending.to(torch.int64) * 2**32 + (_PLACES - place)


def entries_above(
    tile: Tensor, threshold: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Return row, column and score of the scores with magnitudes of a threshold or more.

    Raises
    ------
    NotFiniteError
        When a score is not finite.
    """
    if not to_host(torch.isfinite(tile).all()):
        raise NotFiniteError("scores are not finite")
    row, column = torch.nonzero(tile.abs() >= threshold, as_tuple=True)
    return to_host(row), to_host(column), to_host(tile[row, column])
