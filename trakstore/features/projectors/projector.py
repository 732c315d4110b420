"""Base of projectors: one linear map of gradients, given parameter by parameter, tile by tile."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import wraps
from math import prod
from typing import TypeVar, TypeVarTuple

import torch
from torch import Tensor

from trakstore.errors import SpecMismatchError
from trakstore.features.projectors.collecting import Collecting
from trakstore.features.projectors.pieces import Gathered, Outer, Piece, Rows
from trakstore.planning import ranges
from trakstore.spec import ParameterSpec, ProjectionSpec

__all__ = ["Projector", "Sides", "as_matrix", "remembered"]

Sides = tuple[Tensor, Tensor]  # of a parameter: factors of its rows and of its columns

_Arguments = TypeVarTuple("_Arguments")
_Owner = TypeVar("_Owner")
_Result = TypeVar("_Result")

_TILE = 1 << 20  # entries of gradients that are formed at once, in a core's cache
_LARGE_TILE = 1 << 26  # and not on the CPU: 256 MB
_CORE = 64  # rows that a GPU's tensor cores take at once
_TEST_PARAMETERS = ParameterSpec((("weight", (3, 5)),))


def as_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Shape of a parameter seen as (first dimension, rest).

    Examples
    --------
    >>> as_matrix((16, 3, 3, 3)), as_matrix((10,)), as_matrix(())
    ((16, 27), (10, 1), (1, 1))
    """
    return (shape[0] if shape else 1), prod(shape[1:])


def remembered(
    method: Callable[[_Owner, *_Arguments], _Result],
) -> Callable[[_Owner, *_Arguments], _Result]:
    """Cache a method's results by its arguments, on the object, with which they are freed."""

    @wraps(method)
    def remembering(self: _Owner, *args: *_Arguments) -> _Result:
        held = vars(self).setdefault(f"{method.__name__} remembered", {})
        if args not in held:
            held[args] = method(self, *args)
        result: _Result = held[args]
        return result

    return remembering


class Projector(ABC):
    """φ = Σ_parameters P_parameter·g_parameter, with E[PᵀP] = I.

    P is a function of the spec, the parameter's canonical name and shape, and the index, and of
    nothing else; it is never formed.

    Parameters
    ----------
    spec : ProjectionSpec
        Kind, dimension, seed.
    parameters : ParameterSpec
        Canonical names and shapes of the parameters.
    """

    def __init__(self, spec: ProjectionSpec, parameters: ParameterSpec) -> None:
        self.spec = spec
        self.shapes = dict(parameters.shapes)
        self.matrices = {name: as_matrix(shape) for name, shape in parameters.shapes}

        # Columns of parameters that stand before those that tiles have; see `of_columns`.
        self.first_columns: dict[str, int] = {}

    @property
    def dim(self) -> int:
        """Number of features."""
        return self.spec.dim or 0

    def of_columns(self, columns: Mapping[str, tuple[int, int]]) -> Projector:  # noqa: ARG002
        """Return the projector of gradients that are zero but in some columns, which alone are given.

        It may need more columns than those: tiles must have ``matrices[name][1]`` columns, from
        ``first_columns[name]`` on. By default it needs all.

        Parameters
        ----------
        columns : mapping of name to (first, last)
            First column that is not zero, and the one after the last.
        """
        return self

    def of_scaled(self, factors: Mapping[str, Sides]) -> Projector | None:  # noqa: ARG002
        """Return the projector of scaled gradients, where this kind has a place for factors.

        Parameters
        ----------
        factors : mapping of name to (rows, columns)
            Factors of each parameter, float32, of shapes (rows,) and (columns,).
        """
        return None

    @abstractmethod
    def add(self, out: Tensor, name: str, tile: Tensor, first_row: int = 0) -> None:
        """Add the projection of a tile of a parameter's gradients to ``out``.

        Parameters
        ----------
        out : Tensor, shape (batch, dim), float32
            Changed in place.
        name : str
            Canonical name of the parameter.
        tile : Tensor, shape (batch, rows, rest)
            Gradients of some rows of the parameter seen as (first dimension, rest).
        first_row : int
            Row of the parameter that is the tile's first.
        """

    def collecting(self) -> Collecting:
        """Return what adds the pieces of one backward pass."""
        return Collecting(self)

    def add_piece(self, out: Tensor, piece: Piece) -> None:
        """Add the projection of a part of a parameter's gradients, formed or not."""
        if isinstance(piece, Rows):
            self.add(out, piece.name, piece.tile, piece.first_row)
        elif isinstance(piece, Outer):
            self.add_outer(out, piece)
        else:
            self.add_gathered(out, piece)

    def add_outer(self, out: Tensor, outer: Outer) -> None:
        """Add a product of two factors: by default as tiles of all samples and some rows."""
        form, entries = outer.former(), outer.batch * outer.columns
        if out.device.type == "cpu":
            most = max(1, _TILE // entries)
        else:
            # Whole tiles of a tensor core: a tile that began elsewhere would be read number by number.
            most = max(1, _LARGE_TILE // entries // _CORE) * _CORE
        for start, stop in ranges(outer.rows, most):
            self.add(out, outer.name, form(start, stop), outer.first_row + start)

    def add_gathered(self, out: Tensor, gathered: Gathered) -> None:
        """Add rows that an index picks: by default each of them as a tile of one row."""
        # A row that a sample has twice gets the sum of both. Rows that no sample has are never formed.
        used, which = torch.unique(gathered.index, return_inverse=True)
        for i, row in enumerate(used.tolist()):
            tile = torch.einsum("bn,bnc->bc", (which == i).float(), gathered.values.float())
            self.add(out, gathered.name, tile[:, None], row)

    def project(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """Project whole gradients.

        Parameters
        ----------
        gradients : mapping of name to Tensor, shape (batch, ...) with the parameter's shape

        Returns
        -------
        Tensor, shape (batch, dim), float32
        """
        first = next(iter(gradients.values()))
        out = torch.zeros(len(first), self.dim, dtype=torch.float32, device=first.device)
        for name, gradient in gradients.items():
            self.add(out, name, gradient.reshape(len(gradient), *self.matrices[name]))
        return out

    def check(self) -> None:
        """Raise a :class:`SpecMismatchError` unless the published test vector comes out."""
        spec = self.spec.of_published_test
        tester = type(self)(spec, _TEST_PARAMETERS)
        gradient = torch.arange(1.0, 16.0, dtype=torch.float32).reshape(1, 3, 5)
        got = tester.project({"weight": gradient})[0]
        defined = torch.tensor(spec.test_vector, dtype=torch.float32)
        if not torch.allclose(got, defined, rtol=1e-5, atol=1e-5):
            raise SpecMismatchError(
                f"this {spec.kind} gives {got.tolist()} on the published test, version "
                f"{spec.version} is defined to give {list(spec.test_vector)}; reinstall trakstore"
            )
