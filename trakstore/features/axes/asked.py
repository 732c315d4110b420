"""A call of a torch function with the marks of its arguments, and what a rule says of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from trakstore.features.axes.marks import Axis, Mark, Unplaced

__all__ = ["Asked", "Rule", "aligned", "alone", "dims_of", "integers", "tensors_of"]

FREE, LOST, TOLD = Unplaced.FREE, Unplaced.LOST, Unplaced.TOLD


class Asked:
    """A call of a torch function that has returned.

    Attributes
    ----------
    args, kwargs
        Its arguments.
    out : object
        Its result.
    tensors : list of Tensor
        Those among the arguments, also in lists.
    of : callable
        Gives the mark of a tensor.
    batch : int
        Number of samples.
    """

    __slots__ = ("args", "batch", "kwargs", "of", "out", "tensors")

    def __init__(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        out: Any,
        tensors: list[Tensor],
        of: Callable[[Tensor], Mark],
        batch: int,
    ) -> None:
        self.args, self.kwargs, self.out = args, kwargs, out
        self.tensors, self.of, self.batch = tensors, of, batch

    def of_first(self, **keywords: Any) -> Asked:
        """The same of the first argument alone, with some keywords."""
        first = self.first
        return Asked((first,), keywords, self.out, [first], self.of, self.batch)

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument, however it was given."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)

    @property
    def first(self) -> Tensor:
        """The tensor that a function is of: its first argument."""
        value: Tensor = self.args[0] if self.args else next(iter(self.kwargs.values()))
        return value

    @property
    def result(self) -> Tensor:
        """The result, or its first tensor."""
        value: Tensor = self.out if isinstance(self.out, Tensor) else self.out[0]
        return value


# the mark of a call's results, or one for each of them
Rule = Callable[[Asked], Mark | list[Mark]]


def alone(rule: Callable[[Asked], Mark]) -> Callable[[Asked], Mark]:
    """A rule of functions all of whose tensors but the first must be free: weights, statistics."""

    def guarded(asked: Asked) -> Mark:
        if any(asked.of(tensor) is not FREE for tensor in asked.tensors[1:]):
            return LOST
        return rule(asked)

    return guarded


def tensors_of(values: Iterable[Any]) -> list[Tensor]:
    """Tensors among some values, also in tuples and lists."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, tuple | list):
            found += tensors_of(value)
    return found


def aligned(operands: Sequence[tuple[Mark, Sequence[int]]], shape: Sequence[int]) -> Mark:
    """Mark of what broadcasts operands, each with its shape, to a shape.

    Samples must be in one place in all operands that have them. What is lost spoils the result, unless
    it has no extent along that place.
    """
    place: Axis | None = None
    told, lost, ndim = False, [], len(shape)
    for mark, own in operands:
        if mark is FREE:
            continue
        if isinstance(mark, Axis):
            moved = mark if len(own) == ndim else Axis(mark.dim - len(own) + ndim, *mark[1:])
            if own[mark.dim] != shape[moved.dim] or (place is not None and place != moved):
                return LOST
            place = moved
        elif mark is LOST:
            lost.append(own)
        else:
            told = True
    if place is None:
        return LOST if lost else TOLD if told else FREE
    for own in lost:
        dim = place.dim - ndim + len(own)
        if dim >= 0 and own[dim] != 1:
            return LOST
    return place


def integers(values: Sequence[Any]) -> tuple[int, ...]:
    """Integers that were given one by one, or as one sequence."""
    if len(values) == 1 and isinstance(values[0], tuple | list):
        return tuple(values[0])
    return tuple(values)


def dims_of(dims: Any, ndim: int) -> tuple[int, ...] | None:
    """Dimensions, counted from the front; None where one is no integer."""
    each = tuple(dims) if isinstance(dims, tuple | list) else (dims,)
    if not all(isinstance(dim, int) and not isinstance(dim, bool) for dim in each):
        return None
    return tuple(dim % max(ndim, 1) for dim in each)
