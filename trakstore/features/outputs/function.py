"""A user's own output as one function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as tree

from trakstore.errors import TrakStoreError
from trakstore.features.outputs.function_identity import code_digest, function_name
from trakstore.features.outputs.model_output import Model, ModelOutput, RowOutputs, widened
from trakstore.spec import OutputSpec

__all__ = ["FunctionOutput"]


class FunctionOutput(ModelOutput):
    """Outputs that ``function(model, batch)`` gives: a loss of each sample, or :class:`RowOutputs`.

    A plain tensor of shape ``(batch,)`` is taken as output and loss in one.

    Parameters
    ----------
    function : callable
        A function, a ``functools.partial``, or an object that can be called. It is given the model,
        whose methods, parts and attributes it may use.
    name : str, optional
        Name that tells it from other outputs of the store. By default its own name and a digest of its
        code and of all values that it computes with: give a name where these change and the output
        does not, as with another version of Python.

    Raises
    ------
    TrakStoreError
        For a name that is no text.

    Examples
    --------
    >>> def loss(model, batch):
    ...     return (model(batch[0]).squeeze(1) - batch[1]).abs()
    >>> output = FunctionOutput(loss, name="absolute-error")
    >>> output(nn.Linear(4, 1), (torch.eye(4), torch.ones(4))).loss.shape
    torch.Size([4])
    """

    name = "function"

    def __init__(
        self, function: Callable[[Model, Any], Tensor | RowOutputs], name: str | None = None
    ) -> None:
        if name is not None and (not isinstance(name, str) or not name):
            raise TrakStoreError(f"an output's name must be a string, got {name!r}")
        self._function, self._called = function, name or function_name(function)
        self._code = code_digest(function) if name is None else None

    @property
    def spec(self) -> OutputSpec:
        """Name, and the digest of the code where the name is the function's own."""
        named = ("function", self._called)
        return OutputSpec(
            self.name, (named,) if self._code is None else (("code", self._code), named)
        )

    def __call__(self, model: Model, batch: Any) -> RowOutputs:
        """See :meth:`ModelOutput.__call__`."""
        # Of a loss alone the loss is the output: -d loss/d output is -1.
        result = self._function(model, batch)
        if isinstance(result, Tensor):
            result = RowOutputs(result, result, -torch.ones_like(result))
        several = result if isinstance(result, tuple | list) else [result]
        if len(several) != 3 or not all(isinstance(one, Tensor) for one in several):
            got = ", ".join(type(one).__name__ for one in several)
            raise TrakStoreError(
                f"an output function gives a tensor, or RowOutputs of three; {self._called} gives {got}"
            )
        return RowOutputs(*map(widened, several))

    def check(self, model: Model, batch: Any) -> int | None:
        """Check that the function of the model and a batch gives one number, or three, a sample.

        Raises
        ------
        TrakStoreError
            When it gives something else.
        """
        size = len(tree.tree_leaves(batch)[0])
        shapes = [tuple(column.shape) for column in self(model, batch)]
        if shapes != [(size,)] * 3:
            raise TrakStoreError(
                f"an output function gives one tensor of shape ({size},), or RowOutputs of three; "
                f"{self._called} gives {shapes}"
            )
        return None
