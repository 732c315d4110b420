"""Tensors that a model computes from parameters alone: Gemma's ``1 + weight``, magnitudes of DoRA.

Such a tensor is the same for every sample, so that autograd sums its gradient over the batch. Where it
meets the samples, the function is given one row of it for each sample instead. The rows' gradients
belong to the samples, and go on through the tensor's own graph to the parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from trakstore.features.graph import reached
from trakstore.features.layers.layer import Layer, as_rows
from trakstore.features.projectors import Piece

__all__ = ["Derived"]


class Derived(Layer):
    """Parameters behind a tensor that was computed without samples.

    Parameters
    ----------
    tensor : Tensor
        Result of the function, with its graph.
    parameters : dict of name to Parameter
        Those that the graph leads to.
    """

    def __init__(self, tensor: Tensor, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__(tuple(parameters))
        self._tensor, self._parameters = tensor, parameters

    @classmethod
    def of(cls, tensor: Tensor, names: Mapping[int, str]) -> Derived | None:
        """Return the parameters behind a tensor; None if there are none, or not all can be seen.

        Parameters
        ----------
        names : mapping of id to str
            Names of the parameters that gradients are taken of.
        """
        ends = reached([tensor.grad_fn])
        leaves = [node.variable for node in ends.leaves]  # type: ignore[attr-defined]
        known = {names[id(leaf)]: leaf for leaf in leaves if id(leaf) in names}
        # A torch.autograd.Function may use parameters that the graph does not show.
        return None if ends.python or not known else cls(tensor, known)

    def pieces(self, inputs: tuple[Tensor, ...], gradient: Tensor) -> Iterator[Piece]:  # noqa: ARG002
        """See :meth:`Layer.pieces`."""
        own, batch = self._tensor, len(gradient)
        if gradient.numel() != batch * own.numel():
            gradient = gradient.sum(1, dtype=torch.float32)
        # All samples at once. The graph is kept, since the tensor may meet the samples again.
        each = torch.autograd.grad(
            own,
            list(self._parameters.values()),
            gradient.reshape(batch, *own.shape).to(own.dtype),
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=True,
        )
        for (name, parameter), one in zip(self._parameters.items(), each, strict=True):
            if one is not None:
                yield as_rows(name, parameter, one)
