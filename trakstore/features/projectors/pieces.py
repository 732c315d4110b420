"""Per-sample gradients as a layer knows them: factors, or rows at an index, before they are formed."""

# Annotations are not postponed: a postponed one of a named tuple is a name that only this module knows.
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from trakstore.features.projectors.products import (
    Side,
    aligned,
    low_dtype,
    times,
    up_to_aligned,
    wide_bmm,
)

__all__ = ["Gathered", "Memory", "Outer", "Piece", "Rows", "Unfolded", "part"]

Filters = Callable[[int, int, Tensor], Tensor]
Memory = Callable[[int, int, int], Tensor]  # gives memory of a shape, float32 and contiguous


class Unfolded(NamedTuple):
    """A right factor ``(batch, positions, columns)`` as it lies in a smaller tensor.

    Attributes
    ----------
    input : Tensor
        Samples first.
    positions, columns : Tensor, int32, shape (positions,) and (columns,)
        Offsets, whose sum is that of an entry behind the sample's first.
    taps, inside : Tensor, int32 or int64, shape (columns,) and (positions,), optional
        Bit of each column, and the bits of the columns whose entries are in the input at a position.
        Others are zero. Without them, all entries are in it.
    """

    input: Tensor
    positions: Tensor
    columns: Tensor
    taps: Tensor | None = None
    inside: Tensor | None = None


class Outer(NamedTuple):
    """Gradients Σ_t left[b, t] ⊗ right[b, t] of some rows of a parameter.

    Attributes
    ----------
    name : str
        Canonical name of the parameter, which is seen as (first dimension, rest).
    left : Tensor, shape (batch, positions, rows)
        Any strides.
    make_right : callable
        ``make_right(start, stop)`` gives ``(stop - start, positions, columns)`` for these samples. It
        is called, and not held, since a convolution unfolds its input there.
    positions, columns : int
    first_row : int
        Row of the parameter that is the first of these.
    filtered : callable, optional
        ``filtered(start, stop, matrix)`` gives the same as ``right @ matrix``, faster.
    unfolded : callable, optional
        ``unfolded(start, stop)`` gives the same as ``make_right``, as it lies in a smaller tensor.
    beside : sequence of str
        Parameters whose gradients have the same right factor, as far as is known, with this one.
    """

    name: str
    left: Tensor
    make_right: Callable[[int, int], Tensor]
    positions: int
    columns: int
    first_row: int = 0
    filtered: Filters | None = None
    unfolded: Callable[[int, int], Unfolded] | None = None
    beside: Sequence[str] = ()

    @property
    def batch(self) -> int:
        """Number of samples."""
        return self.left.shape[0]

    @property
    def rows(self) -> int:
        """Number of rows of the parameter."""
        return self.left.shape[2]

    @property
    def low_dtype(self) -> torch.dtype | None:
        """Dtype of 16 bits in which both factors are multiplied; None for float32."""
        # A range of no samples tells the dtype of the right factor, without making it.
        right = self.unfolded(0, 0).input if self.unfolded else self.make_right(0, 0)
        return low_dtype(self.left, right)

    def factors(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return both factors of some samples, float32."""
        return part(self.left, start, stop).float(), self.make_right(start, stop).float()

    def formed_in(self, memory: Memory) -> Tensor:
        """Form the gradients of all rows, ``(batch, rows, columns)``, float32, in some memory."""
        left, right = self._operands()
        out = memory(self.batch, left.shape[2], right.shape[2])
        wide_bmm(left.transpose(1, 2), right, out)
        return out[:, : self.rows, : self.columns]

    def former(self) -> Callable[[int, int], Tensor]:
        """Return a function that forms the gradients of rows ``start`` to ``stop``.

        They are ``(batch, rows, columns)``, float32. On a GPU factors in 16 bits are multiplied as
        such, as in training, and summed in float32. There ``start`` is a multiple of 8.
        """
        # The right factor is made once, for all rows that are formed afterwards.
        left, right = self._operands()
        if left.dtype == torch.float32:
            return lambda a, b: left[:, :, a:b].transpose(1, 2) @ right
        columns = self.columns
        # Zero rows and columns after the last ones are formed too, and cut off.
        return lambda a, b: wide_bmm(left[:, :, a : up_to_aligned(b)].transpose(1, 2), right)[
            :, : b - a, :columns
        ]

    def _operands(self) -> tuple[Tensor, Tensor]:
        """Return both factors as they are multiplied: aligned in 16 bits, or in float32."""
        left, right = self.left, self.make_right(0, self.batch)
        low = low_dtype(left, right)
        if low is None:
            return left.to(torch.float32), right.to(torch.float32)
        return aligned(left.to(low)), aligned(right.to(low))

    def right_times(self, start: int, stop: int, side: Side) -> tuple[Tensor, float]:
        """Multiply the right factor with a side ``(columns, n)``: the product and its unit.

        The product is ``(stop - start, positions, n)``, float32.
        """
        if self.filtered is not None:
            return self.filtered(start, stop, side.whole), 1.0
        return times(self.make_right(start, stop), side)


class Rows(NamedTuple):
    """Gradients of some rows, formed: ``tile (batch, rows, rest)`` from ``first_row`` on."""

    name: str
    tile: Tensor
    first_row: int = 0


@dataclass(frozen=True)
class Gathered:
    """Gradients that are Σ_i values[b, i] at row index[b, i], as of an embedding.

    Attributes
    ----------
    index : Tensor, int64, shape (batch, n)
    values : Tensor, shape (batch, n, rest)
    """

    name: str
    index: Tensor
    values: Tensor


Piece = Outer | Rows | Gathered


def part(tensor: Tensor, start: int, stop: int) -> Tensor:
    """Return rows ``start`` to ``stop``: the tensor itself where they are all, as views take time."""
    return tensor if stop - start == tensor.shape[0] else tensor[start:stop]
