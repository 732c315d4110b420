"""Rows of tokens: batches of samples, with the tokens that belong to each row."""

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
    """Maker of batches of rows: it adds to samples which of their tokens belong to each row.

    Attributes
    ----------
    model : nn.Module
    output : SeparatesTokens
    first : ndarray of int64, shape (rows,)
        Number, among those of its sample that count, of each row's first token.
    each : int
        Tokens of a row.
    """

    model: nn.Module
    output: SeparatesTokens
    first: NDArray[np.int64]
    each: int
    # Several rows of one sample are computed as if they were separate samples.
    draws = 1

    def forget(self, at_once: int) -> None:
        """Drop what is held for a block, which is nothing here."""

    def scaled(self, batch: Any, rows: FeatureRows) -> FeatureRows:  # noqa: ARG002
        """Return rows as they are."""
        return rows

    def labelled(self, rows: NDArray[np.int64], batch: Any) -> OfTokens:
        """Return the batch of some rows, made from that of their samples."""
        counted = self.output.tokens(self.model, batch) >= 0
        place = counted.cumsum(1) - 1
        first = torch.from_numpy(self.first[rows]).to(place.device)[:, None]
        return OfTokens(counted & (place >= first) & (place < first + self.each), batch)
