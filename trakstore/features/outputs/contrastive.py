"""Pairs of images and texts, each against a fixed bank of others."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trakstore.errors import TrakStoreError
from trakstore.features.outputs.model_output import (
    Model,
    ModelOutput,
    RowOutputs,
    need_keywords,
    widened,
)
from trakstore.features.outputs.odds import log_losses, log_odds, precise, rounded
from trakstore.spec import OutputSpec

__all__ = ["Contrastive"]


class Contrastive(ModelOutput):
    """The log-odds that a pair finds itself among a bank of others (CLIP's loss).

    loss = -(log p(text | image) + log p(image | text))/2, each a softmax over the own pair and the
    bank. A bank that is fixed, instead of the rest of the batch, makes a sample's output its own:
    it does not change with the batching.

    Parameters
    ----------
    image_bank, text_bank : Tensor, shape (bank, width)
        Embeddings of other pairs, by the same model; their hash is part of the stored spec.
    scale : float
        Factor of cosines: the inverse temperature.

    Raises
    ------
    TrakStoreError
        For banks of two shapes, or a scale that is not above 0.

    Notes
    -----
    The model gives ``(image, text)`` embeddings of shape (batch, width), or an object with
    ``image_embeds`` and ``text_embeds``.

    Examples
    --------
    >>> class Pairs(nn.Module):
    ...     def forward(self, image, text):
    ...         return image, text
    ...
    >>> output = Contrastive(torch.eye(4), torch.eye(4), scale=10.0)
    >>> output(Pairs(), (torch.ones(2, 4), torch.ones(2, 4))).out_to_loss.shape
    torch.Size([2])
    """

    name = "contrastive"
    columns: frozenset[str] = frozenset()

    def __init__(self, image_bank: Tensor, text_bank: Tensor, scale: float = 100.0) -> None:
        if image_bank.ndim != 2 or image_bank.shape != text_bank.shape or len(image_bank) < 1:
            raise TrakStoreError(
                f"banks must be two tensors of one shape (bank, width), got "
                f"{tuple(image_bank.shape)} and {tuple(text_bank.shape)}"
            )
        if not 0 < scale < float("inf"):
            raise TrakStoreError(f"scale must be a number above 0, got {scale}")
        self._images, self._texts = (_unit_rows(bank.detach()) for bank in (image_bank, text_bank))
        self._digest = _digest(image_bank, text_bank)
        self._scale = float(scale)

    @property
    def spec(self) -> OutputSpec:
        """Name, size and hash of the banks, and the scale."""
        options = (("bank", self._digest), ("bank_rows", len(self._images)), ("scale", self._scale))
        return OutputSpec(self.name, options)

    def __call__(self, model: Model, batch: Any) -> RowOutputs:
        """See :meth:`ModelOutput.__call__`."""
        embeddings = _embeddings(model, batch)
        image, text = (_unit_rows(one) for one in embeddings)
        # log((1 - p)/p) of the own pair among the bank, once by its texts and once by its images.
        own = self._scale * (image * text).sum(1)
        others = (
            self._scale * one @ bank.to(one).T
            for one, bank in ((image, self._texts), (text, self._images))
        )
        x = torch.stack([one.logsumexp(1) - own for one in others], dim=1)
        # The loss is the mean of both losses: the logarithm of their sum, less log 2.
        log_loss = log_losses(x).logsumexp(1) - math.log(2)
        return rounded(log_odds(log_loss), widened(embeddings[0]).dtype)

    def check(self, model: Model, batch: Any) -> int | None:
        """Check that the model's embeddings of a batch are as wide as those of the bank.

        Raises
        ------
        TrakStoreError
            When they are not.
        """
        need_keywords(model, batch)
        embeddings = _embeddings(model, batch)
        width = self._images.shape[1]
        if any(not isinstance(one, Tensor) or one.shape[1:] != (width,) for one in embeddings):
            got = [tuple(getattr(one, "shape", ())) for one in embeddings]
            raise TrakStoreError(f"the bank has embeddings of width {width}, the model gives {got}")
        return None


def _embeddings(model: Model, batch: Any) -> tuple[Any, Any]:
    answer = model(**batch) if isinstance(batch, Mapping) else model(*batch)
    if hasattr(answer, "image_embeds"):
        return answer.image_embeds, answer.text_embeds
    if not isinstance(answer, tuple | list) or len(answer) < 2:
        raise TrakStoreError(
            f"contrastive needs a model that gives (image, text) embeddings, got a "
            f"{type(answer).__name__}"
        )
    return answer[0], answer[1]


def _unit_rows(rows: Tensor) -> Tensor:
    """Return rows of length 1, float64."""
    # Cosines are multiplied by a large scale, and only their differences count.
    return F.normalize(precise(rows), dim=1)


def _digest(*banks: Tensor) -> str:
    digest = hashlib.sha256()
    for bank in banks:
        rows = F.normalize(bank.detach().float(), dim=1)
        digest.update(rows.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]
