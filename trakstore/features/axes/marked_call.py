"""A call of a torch function with the marks of its arguments, as rules read it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from trakstore.features.axes.marks import FREE, LOST, SUSPECT, Axis, Mark

__all__ = [
    "Arguments",
    "MarkedCall",
    "Rule",
    "aligned",
    "dims_of",
    "integers",
    "tensors_of",
    "with_free_rest",
]


@dataclass(slots=True)
class Arguments:
    """Arguments of a call of a torch function.

    Attributes
    ----------
    args : tuple
        Positional ones.
    kwargs : mapping of str to object
        Those given by name.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument, however it was given."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)


@dataclass(slots=True)
class MarkedCall(Arguments):
    """A call of a torch function that has returned.

    Attributes
    ----------
    out : object
        Result of the function.
    tensors : list of Tensor
        Tensors among the arguments, also in lists.
    mark : callable
        Gives the mark of a tensor.
    batch : int
        Number of samples.
    """

    out: Any
    tensors: list[Tensor]
    mark: Callable[[Tensor], Mark]
    batch: int

    def of_first(self, **keywords: Any) -> MarkedCall:
        """Return a call of the same function with the first argument alone, and some keywords."""
        first = self.first
        return MarkedCall((first,), keywords, self.out, [first], self.mark, self.batch)

    @property
    def first(self) -> Tensor:
        """First argument, the tensor that a function works on."""
        value: Tensor = self.args[0] if self.args else next(iter(self.kwargs.values()))
        return value

    @property
    def result(self) -> Tensor:
        """Result, or its first tensor."""
        value: Tensor = self.out if isinstance(self.out, Tensor) else self.out[0]
        return value


# The mark of a call's result, or a list of marks, one for each result.
Rule = Callable[[MarkedCall], Mark | list[Mark]]


def with_free_rest(rule: Rule) -> Rule:
    """Make a rule of functions all of whose tensors but the first are weights or statistics."""

    def guarded(call: MarkedCall) -> Mark | list[Mark]:
        if any(call.mark(tensor) is not FREE for tensor in call.tensors[1:]):
            return LOST
        return rule(call)

    return guarded


def tensors_of(values: Iterable[Any]) -> list[Tensor]:
    """Return the tensors among some values, also in tuples and lists."""
    tensors: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, tuple | list):
            tensors += tensors_of(value)
    return tensors


def aligned(operands: Sequence[tuple[Mark, Sequence[int]]], shape: Sequence[int]) -> Mark:
    """Mark of what broadcasts operands, each with its shape, to a shape.

    Samples must be in one place in all operands that have them. A lost operand loses the result, unless
    it has size 1 along that place.
    """
    place: Axis | None = None
    suspect, lost, ndim = False, [], len(shape)
    for mark, own in operands:
        if mark is FREE:
            continue
        if isinstance(mark, Axis):
            # Broadcasting lines shapes up at their ends.
            moved = mark if len(own) == ndim else Axis(mark.dim - len(own) + ndim, *mark[1:])
            if own[mark.dim] != shape[moved.dim] or (place is not None and place != moved):
                return LOST
            place = moved
        elif mark is LOST:
            lost.append(own)
        else:
            suspect = True
    if place is None:
        return LOST if lost else SUSPECT if suspect else FREE
    for own in lost:
        # An operand of size 1 along the samples is the same for all of them: it moves no sample to
        # another row.
        dim = place.dim - ndim + len(own)
        if dim >= 0 and own[dim] != 1:
            return LOST
    return place


def integers(values: Sequence[Any]) -> tuple[int, ...]:
    """Return integers that were given one by one, or as one sequence."""
    if len(values) == 1 and isinstance(values[0], tuple | list):
        return tuple(values[0])
    return tuple(values)


def dims_of(dims: Any, ndim: int) -> tuple[int, ...] | None:
    """Return dimensions counted from the front; None where one is no integer."""
    each = tuple(dims) if isinstance(dims, tuple | list) else (dims,)
    if not all(isinstance(dim, int) and not isinstance(dim, bool) for dim in each):
        return None
    return tuple(dim % max(ndim, 1) for dim in each)
