"""Outputs made of tokens, and the part that some tokens have in a sample's output."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from torch import Tensor

from trakstore.errors import TrakStoreError
from trakstore.features.outputs.model_output import Model, ModelOutput

__all__ = ["OfTokens", "SeparatesTokens", "need_tokens"]


class OfTokens(NamedTuple):
    """A batch whose rows are some tokens of samples.

    The output of a row is that of its sample, but only the losses of the row's tokens are
    differentiated. Since an output is a function of its tokens' losses, the gradients of all rows of a
    sample add up to the sample's gradient, whatever the normaliser and slope of the function are.

    Attributes
    ----------
    own : Tensor of bool, shape (rows, positions)
        Positions of the row's tokens, as :meth:`SeparatesTokens.tokens` has them.
    batch : tree of Tensor
        Samples, one for each row.
    """

    own: Tensor
    batch: Any


class SeparatesTokens(ABC):
    """An output that is a function of losses of single tokens, and takes :class:`OfTokens`."""

    @abstractmethod
    def tokens(self, model: Model, batch: Any) -> Tensor:
        """Number the tokens that count, int64, shape (batch, positions); -1 for all others.

        A number is the token's place in its sample, counted from 0 without padding: of an
        encoder-decoder model, in the sample's labels. Positions are the last ones of the labels.
        """


def need_tokens(output: ModelOutput) -> SeparatesTokens:
    """Return an output if it is made of tokens.

    Raises
    ------
    TrakStoreError
        When it is not.
    """
    if isinstance(output, SeparatesTokens):
        return output
    raise TrakStoreError(
        f"the output {output.name!r} is not made of one sequence's tokens, as 'causal_lm' and "
        f"'masked_lm' are: it has no rows of tokens; leave tokens out"
    )
