"""``BiasAttributor``: which train samples teach a shortcut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trakstore.analysis.group_influence import contrast
from trakstore.attributors.delayed import DelayedGeneralizationTRAK
from trakstore.attributors.loading import Loaded, loaded
from trakstore.errors import TrakStoreError, did_you_mean
from trakstore.features.outputs import ModelOutput
from trakstore.features.weights import kept, state_dicts
from trakstore.methods.influence import influence_scores
from trakstore.methods.similarity import grad_cos_scores, grad_dot_scores
from trakstore.methods.trak import trak_scores
from trakstore.scores.factored import Scores
from trakstore.storage.layout import Epoch

__all__ = ["BiasAttributor"]

_METHODS = {
    "trak": trak_scores,
    "influence": influence_scores,
    "grad_dot": grad_dot_scores,
    "grad_cos": grad_cos_scores,
}


class BiasAttributor:
    """Train samples that help targets with a shortcut and harm those that contradict it.

    Parameters
    ----------
    model : nn.Module
    biased_data : DataLoader without shuffling, or data set
        Targets that the shortcut solves.
    unbiased_data : DataLoader without shuffling, or data set
        Targets that it misleads.
    train_data : DataLoader without shuffling, or data set
        What the model was trained on; ``biased_data`` when None.
    proj_dim, task, device, store
        As of :class:`TRAKAttributor`.
    """

    def __init__(
        self,
        model: nn.Module,
        biased_data: Any,
        unbiased_data: Any,
        train_data: Any = None,
        *,
        proj_dim: int = 2048,
        task: str | ModelOutput = "image_classification",
        device: str | None = None,
        store: Any = None,
    ) -> None:
        self.model = model
        train = biased_data if train_data is None else train_data
        biased, unbiased = loaded(biased_data), loaded(unbiased_data)
        self._aligned = np.arange(len(biased) + len(unbiased)) < len(biased)
        both: Any = torch.utils.data.ConcatDataset([biased.dataset, unbiased.dataset])
        self._data = {
            "train": loaded(train),
            "test": Loaded(both, biased.collate, biased.batch_size),
        }
        self.trak = DelayedGeneralizationTRAK(model, task, proj_dim, device, store)

    def find_spurious_examples(
        self, attribution_method: str = "trak", top_k: int = 10
    ) -> dict[str, Any]:
        """Train samples with the largest contrast: mean score of the biased less the unbiased targets.

        Parameters
        ----------
        attribution_method : {"trak", "influence", "grad_dot", "grad_cos"}
        top_k : int

        Returns
        -------
        dict
            ``indices`` (Tensor of int64) and ``scores`` (float32), the largest first; ``contrast``,
            of every train sample.
        """
        found = self._contrast(0, attribution_method)
        order = np.argsort(-found, kind="stable")[:top_k].copy()
        return {
            "indices": torch.from_numpy(order),
            "scores": torch.from_numpy(found[order]).float(),
            "contrast": torch.from_numpy(found).float(),
        }

    def analyze_bias_development(
        self,
        model_checkpoints: Mapping[Epoch, nn.Module | Mapping[str, Tensor]],
        top_k: int = 10,
        attribution_method: str = "trak",
    ) -> dict[Epoch, dict[str, Any]]:
        """The contrast at each checkpoint.

        Returns
        -------
        dict
            For each epoch ``indices`` and ``scores`` as above; ``gap``: mean output of the biased
            less that of the unbiased targets; ``spread``: standard deviation of the contrast over
            train samples.
        """
        result: dict[Epoch, dict[str, Any]] = {}
        states = state_dicts(model_checkpoints, self.model)
        with kept(self.model):
            for epoch, state in states.items():
                self.model.load_state_dict(state)
                found = self._contrast(f"checkpoint.{epoch}", attribution_method)
                order = np.argsort(-found, kind="stable")[:top_k].copy()
                result[epoch] = {
                    "indices": torch.from_numpy(order),
                    "scores": torch.from_numpy(found[order]).float(),
                    "gap": self._gap(f"checkpoint.{epoch}"),
                    "spread": float(found.std()),
                }
        return result

    def _contrast(self, epoch: Epoch, method: str) -> NDArray[np.float64]:
        if method not in _METHODS:
            raise TrakStoreError(f"unknown method {method!r}{did_you_mean(method, _METHODS)}")
        for split, data in self._data.items():
            self.trak._features(epoch, split, data)
        make: Any = _METHODS[method]
        scores: Scores = make(self.trak.store, epochs=epoch)
        return contrast(scores, self._aligned, ~self._aligned)

    def _gap(self, epoch: Epoch) -> float:
        split = self.trak.store.split(epoch, "test")
        output = split.column("output").read(0, split.rows)
        return float(output[self._aligned].mean() - output[~self._aligned].mean())
