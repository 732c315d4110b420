"""A use of parameters by one torch function, and the per-sample gradients that follow from it.

Layers are recognised by the functions that modules call (``linear``, ``conv2d``, ``layer_norm``, ...),
not by the modules. So a weight is seen wherever it is used: twice, tied, or by a module that calls
functions on parts of another (attention's output projection).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trakstore.features.axes import Arguments
from trakstore.features.projectors import Piece, Rows

__all__ = ["Call", "Layer", "Matcher", "Some", "Use", "WeightAndBias", "as_rows", "vector"]


class Use(NamedTuple):
    """A parameter, or a view of it, that a function was given."""

    name: str
    parameter: Tensor
    tensor: Tensor

    @property
    def whole(self) -> bool:
        """Tell whether it is the parameter itself."""
        return self.tensor is self.parameter

    @property
    def first_row(self) -> int | None:
        """First row of the view in the parameter, if its rows are whole and consecutive."""
        own, of = self.tensor, self.parameter
        if own is of:
            return 0
        if own.ndim != of.ndim or own.shape[1:] != of.shape[1:] or not of.is_contiguous():
            return None
        # Consecutive rows lie one after another in memory, so that the offset tells the first one.
        rest = max(1, of[0].numel()) if of.ndim else 1
        offset = own.storage_offset() - of.storage_offset()
        return offset // rest if own.is_contiguous() and offset % rest == 0 else None

    @property
    def only_row(self) -> int | None:
        """Row of the parameter that the view is, without that dimension: one expert of several."""
        own, of = self.tensor, self.parameter
        if own.shape != of.shape[1:] or not of.is_contiguous() or not own.is_contiguous():
            return None
        size, offset = max(1, own.numel()), own.storage_offset() - of.storage_offset()
        return None if offset % size else offset // size


@dataclass(slots=True)
class Call(Arguments):
    """A call of a torch function.

    Attributes
    ----------
    names : mapping of id to str
        Canonical names of the parameters that gradients are taken of.
    """

    names: Mapping[int, str]

    def use(self, tensor: Any) -> Use | None:
        """Return the parameter that a tensor is, or views, if gradients are taken of it.

        A view made while gradients were off does not count, nor does one with hooks.
        """
        if not isinstance(tensor, Tensor) or not tensor.requires_grad:
            return None
        # The base of any view is the tensor that owns the memory, even for a view of a view.
        parameter = tensor if tensor._base is None else tensor._base
        if tensor is not parameter and tensor._backward_hooks:
            return None
        name = self.names.get(id(parameter))
        return None if name is None else Use(name, parameter, tensor)

    def is_of(self, layer: Layer) -> bool:
        """Tell whether the layer accounts for every parameter among the arguments."""
        count, names = 0, self.names
        # `tensors` is not used here: a generator takes as long as everything else in this method.
        for value in (*self.args, *self.kwargs.values()):
            for one in value if isinstance(value, tuple | list) else (value,):
                if isinstance(one, Tensor) and one.requires_grad:
                    count += id(one if one._base is None else one._base) in names
        return count == len(layer.names)

    def given(self) -> list[Tensor]:
        """Return the tensors among the arguments that require gradients and are no parameters."""
        names = self.names
        return [
            tensor
            for tensor in self.tensors()
            if tensor.requires_grad
            and id(tensor) not in names
            and (tensor._base is None or id(tensor._base) not in names)
        ]

    def tensors(self) -> Iterator[Tensor]:
        """Yield all tensors among the arguments, also in lists."""
        for value in (*self.args, *self.kwargs.values()):
            if isinstance(value, Tensor):
                yield value
            elif isinstance(value, tuple | list):
                yield from (one for one in value if isinstance(one, Tensor))


@dataclass(frozen=True)
class Some:
    """A piece of the gradients for a range of samples only."""

    samples: slice
    piece: Piece


class Layer(ABC):
    """Per-sample gradients of the parameters that one call uses.

    Attributes
    ----------
    names : tuple of str
        Parameters that the call uses.
    inputs : tuple of Tensor
        Activations from which the gradients are computed.
    samples_first : bool
        Whether samples must be the first dimension of activations.
    beside : tuple of Tensor
        Tensors with the output's rows, placed like the output.
    same_input : sequence of str
        Parameters of all calls of this pass that have the first input in common, this layer's included.
    """

    samples_first: bool = False
    beside: tuple[Tensor, ...] = ()
    same_input: Sequence[str] = ()

    def __init__(self, names: tuple[str, ...], inputs: tuple[Tensor, ...] = ()) -> None:
        self.names, self.inputs = names, inputs

    @abstractmethod
    def pieces(self, inputs: tuple[Tensor, ...], gradient: Tensor) -> Iterator[Piece | Some]:
        """Yield parts of the gradients.

        Parameters
        ----------
        inputs : tuple of Tensor, shape (batch, each, ...)
            Activations, then tensors beside the output, samples first. ``each`` is 1, or the number of
            entries of a sample where batches were merged with another dimension. Where the data sent
            rows somewhere, samples with fewer rows than others have zeros for the rest.
        gradient : Tensor, shape (batch, each, ...)
            Gradient of the model's output by the function's output.
        """


class WeightAndBias(Layer):
    """A call with one activation, a weight whose gradient needs it, and a bias.

    Parameters
    ----------
    x : Tensor
        The activation.
    weight, bias : Use or None
        None where no gradient is taken of it, or there is none.
    """

    def __init__(self, x: Tensor, weight: Use | None, bias: Use | None) -> None:
        names = tuple(use.name for use in (weight, bias) if use)
        super().__init__(names, (x,) if weight else ())
        self._weight, self._bias = weight, bias


Matcher = Callable[[Call], Layer | None]


def vector(name: str, gradient: Tensor, first_row: int = 0) -> Rows:
    """Return gradients of a bias or scale: ``(batch, ..., rows)`` summed over the middle dimensions."""
    # Sums over many positions need float32, whatever dtype the model computes in.
    batch, rows = gradient.shape[0], gradient.shape[-1]
    if gradient.numel() != batch * rows:
        gradient = gradient.flatten(1, -2).sum(1, dtype=torch.float32)
    return Rows(name, gradient.reshape(batch, rows, 1), first_row)


def as_rows(name: str, parameter: Tensor, gradient: Tensor) -> Rows:
    """Return gradients of a whole parameter, given as ``(batch, *shape of the parameter)``."""
    first = parameter.shape[0] if parameter.ndim else 1
    return Rows(name, gradient.reshape(len(gradient), first, -1))
