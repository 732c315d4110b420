"""Rows of tokens: batches of samples, with what says which of their tokens are a row's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from trakstore.features.gradients import FeatureRows
from trakstore.features.outputs.tokens import OfTokens, SeparatesTokens

__all__ = ["TokenRows"]


@dataclass(frozen=True)
class TokenRows:
    """Maker of the batches of rows from those of their samples: it says which tokens are a row's own.

    Attributes
    ----------
    model : nn.Module
    output : SeparatesTokens
    first : ndarray of int64, shape (rows,)
        Number of each row's first token among those of its sample that count.
    each : int
        Tokens of a row.
    """

    model: nn.Module
    output: SeparatesTokens
    first: NDArray[np.int64]
    each: int
    # Rows of one sample are computed as samples like others.
    draws = 1

    def forget(self, at_once: int) -> None:
        """Let go of what is held of a block: nothing."""

    def scaled(self, batch: Any, rows: FeatureRows) -> FeatureRows:  # noqa: ARG002
        """Return rows as they are."""
        return rows

    def labelled(self, rows: NDArray[np.int64], batch: Any) -> OfTokens:
        """Return the batch of some rows, from that of their samples."""
        counted = self.output.tokens(self.model, batch) >= 0
        place = counted.cumsum(1) - 1
        first = torch.from_numpy(self.first[rows]).to(place.device)[:, None]
        return OfTokens(counted & (place >= first) & (place < first + self.each), batch)
