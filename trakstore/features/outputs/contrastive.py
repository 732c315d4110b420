"""Pairs of images and texts, each against a fixed bank of others."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trakstore.errors import TrakStoreError
from trakstore.features.outputs.base import Model, ModelOutput, RowOutputs, log_odds
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
        What cosines are multiplied by: the inverse temperature.

    Notes
    -----
    The model gives ``(image, text)`` embeddings of shape (batch, width), or an object with
    ``image_embeds`` and ``text_embeds``.
    """

    name = "contrastive"

    def __init__(self, image_bank: Tensor, text_bank: Tensor, scale: float = 100.0) -> None:
        if image_bank.ndim != 2 or image_bank.shape != text_bank.shape or len(image_bank) < 1:
            raise TrakStoreError(
                f"banks must be two tensors of one shape (bank, width), got "
                f"{tuple(image_bank.shape)} and {tuple(text_bank.shape)}"
            )
        if not 0 < scale < float("inf"):
            raise TrakStoreError(f"scale must be a number above 0, got {scale}")
        self._images = F.normalize(image_bank.detach().float(), dim=1)
        self._texts = F.normalize(text_bank.detach().float(), dim=1)
        self._scale = float(scale)

    @property
    def spec(self) -> OutputSpec:
        """With the size and the hash of the banks."""
        digest = hashlib.sha256()
        for bank in (self._images, self._texts):
            digest.update(bank.cpu().contiguous().numpy().tobytes())
        options = (
            ("bank", digest.hexdigest()[:32]),
            ("bank_rows", len(self._images)),
            ("scale", self._scale),
        )
        return OutputSpec(self.name, options)

    def __call__(self, model: Model, batch: Any) -> RowOutputs:
        """See :meth:`ModelOutput.__call__`."""
        image, text = (F.normalize(one.float(), dim=1) for one in _embeddings(model, batch))
        own = self._scale * (image * text).sum(1)
        loss = (_loss(own, self._scale * image @ self._texts.to(image).T)) / 2
        loss = loss + _loss(own, self._scale * text @ self._images.to(text).T) / 2
        return log_odds(loss)

    def check(self, model: Model, batch: Any) -> int | None:
        """Embeddings must be as wide as those of the bank."""
        with torch.no_grad():
            found = _embeddings(model, batch)
        width = self._images.shape[1]
        if any(not isinstance(one, Tensor) or one.shape[1:] != (width,) for one in found):
            got = [tuple(getattr(one, "shape", ())) for one in found]
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


def _loss(own: Tensor, others: Tensor) -> Tensor:
    return torch.cat([own[:, None], others], dim=1).logsumexp(1) - own
