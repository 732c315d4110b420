"""``BiasAttributor``: train samples that teach a shortcut."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import ConcatDataset

from trakstore.analysis.group_influence import contrast
from trakstore.attributors.kept_features import positions
from trakstore.attributors.model_checkpoints import ModelCheckpoints, by_epoch
from trakstore.attributors.over_time import DelayedGeneralizationTRAK
from trakstore.errors import TrakStoreError, did_you_mean
from trakstore.features.checkpoints import load_weights
from trakstore.features.fingerprint import checkpoint_hash, whole_digest
from trakstore.features.loading import loaded
from trakstore.features.weights import kept, state_dicts
from trakstore.methods.influence import influence_scores
from trakstore.methods.similarity import grad_cos_scores, grad_dot_scores
from trakstore.methods.trak import trak_scores
from trakstore.planning import ranges
from trakstore.scores.factored import Scores
from trakstore.scores.sums import group_scores
from trakstore.storage.layout import Epoch

# Rows and columns of blocks along the diagonal, which have the samples' scores on themselves.
_SQUARE = 256

_METHODS: dict[str, Any] = {
    "trak": trak_scores,
    "published_trak": partial(trak_scores, temperature=None),
    "influence": influence_scores,
    "grad_dot": grad_dot_scores,
    "grad_cos": grad_cos_scores,
}


class BiasAttributor:
    """Train samples that help targets with a shortcut, and harm targets that contradict it.

    Parameters
    ----------
    model : nn.Module
        Model that may have learned the shortcut.
    biased_data, unbiased_data : DataLoader without shuffling, or data set
        Targets that the shortcut solves, and targets that it misleads.
    train_data : DataLoader without shuffling, or data set
        Samples that the model was trained on. When None, ``biased_data`` must be the biased *train*
        data: its samples are then both train samples and targets, without their scores on themselves,
        which would outweigh those on all others.
    **options
        ``task``, ``proj_dim``, ``device`` and ``store`` of a :class:`TRAKAttributor`.

    Examples
    --------
    >>> projection = ts.ProjectionSpec("rademacher", dim=8)
    >>> one = BiasAttributor(model, test[:3], test[3:], train, projector=projection, device="cpu")
    >>> found = one.find_spurious_examples(top_k=3)
    >>> found["indices"].shape, found["contrast"].shape
    (torch.Size([3]), torch.Size([24]))
    """

    def __init__(
        self,
        model: nn.Module,
        biased_data: Any,
        unbiased_data: Any,
        train_data: Any = None,
        **options: Any,
    ) -> None:
        self.model = model
        self._train_are_targets = train_data is None or train_data is biased_data
        self.trak = DelayedGeneralizationTRAK(model, **options)
        train = loaded(biased_data if train_data is None else train_data)
        biased, unbiased = (loaded(data) for data in (biased_data, unbiased_data))
        # Both kinds of targets are in one split, so that their scores come from one query.
        both: ConcatDataset[Any] = ConcatDataset([biased.dataset, unbiased.dataset])
        self._data = {"train": train, "test": biased._replace(dataset=both)}
        self._aligned = np.arange(len(both)) < len(biased.dataset)
        # Hashes of the weights and samples, by epoch.
        self._computed: dict[Epoch, tuple[str, ...]] = {}

    def find_spurious_examples(
        self, attribution_method: str = "trak", top_k: int = 10
    ) -> dict[str, Tensor]:
        """Find the train samples that help the biased more than the unbiased targets.

        Parameters
        ----------
        attribution_method : {"trak", "published_trak", "influence", "grad_dot", "grad_cos"}
            Method that scores the train samples, called by this name with its defaults. ``"trak"`` is
            :func:`trakstore.trak_scores` with its temperature; ``"published_trak"`` is the paper's own
            form (``temperature=None``), as in :class:`TRAKAttributor`.
        top_k : int
            Number of train samples.

        Returns
        -------
        dict
            ``indices`` (Tensor of int64) and ``scores`` (float32), the largest first; ``contrast`` of
            every train sample: its mean score for the biased less that for the unbiased targets.
        """
        contrasts = self._contrast(0, attribution_method)
        return {**_first(contrasts, top_k), "contrast": torch.from_numpy(contrasts).float()}

    def analyze_bias_development(
        self,
        model_checkpoints: ModelCheckpoints,
        top_k: int = 10,
        attribution_method: str = "trak",
    ) -> dict[Epoch, dict[str, Any]]:
        """Follow the contrast over checkpoints; the model has its own weights again afterwards.

        Parameters
        ----------
        model_checkpoints : mapping of epoch to nn.Module, state dict or path, or list of these
            Checkpoints of the model; those of a list are the epochs 0, 1, 2, ...
        top_k, attribution_method
            As in :meth:`find_spurious_examples`.

        Returns
        -------
        dict
            For each epoch ``indices`` and ``scores`` as above; ``gap``: mean output of the biased
            less that of the unbiased targets; ``spread``: standard deviation of the contrast.
        """
        result: dict[Epoch, dict[str, Any]] = {}
        with kept(self.model):
            for epoch, state in state_dicts(by_epoch(model_checkpoints), self.model).items():
                load_weights(state, self.model, f"checkpoint {epoch}")
                # A name that is no number: epoch 0 is that of the model's own weights.
                name = f"checkpoint.{epoch}"
                contrasts = self._contrast(name, attribution_method)
                about = {"gap": self._gap(name), "spread": float(contrasts.std())}
                result[epoch] = {**_first(contrasts, top_k), **about}
        return result

    def _contrast(self, epoch: Epoch, method: str) -> NDArray[np.float64]:
        if method not in _METHODS:
            raise TrakStoreError(f"unknown method {method!r}{did_you_mean(method, _METHODS)}")
        self._featurize(epoch)
        scores = _METHODS[method](self.trak.store, epochs=epoch)
        if self._train_are_targets:
            return _contrast_with_others(scores, self._aligned)
        return contrast(scores, self._aligned, ~self._aligned)

    def _featurize(self, epoch: Epoch) -> None:
        """Compute all features under the model's present weights, once for all methods."""
        held = [whole_digest(one.dataset, positions(one.dataset)) for one in self._data.values()]
        state = (checkpoint_hash(self.model), *held)
        if self._computed.get(epoch) == state:
            return
        for split, data in self._data.items():
            self.trak.compute_epoch_features(data, epoch, split)
        self._computed[epoch] = state

    def _gap(self, epoch: Epoch) -> float:
        split = self.trak.store.split(epoch, "test")
        output = split.column("output").read(0, split.rows)
        return float(output[self._aligned].mean() - output[~self._aligned].mean())


def _first(contrasts: NDArray[np.float64], top_k: int) -> dict[str, Tensor]:
    order = np.argsort(-contrasts, kind="stable")[:top_k]
    return {"indices": torch.tensor(order), "scores": torch.tensor(contrasts[order]).float()}


def _contrast_with_others(scores: Scores, aligned: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Compute the contrast where the aligned targets are the train samples, in the same order.

    A sample's score on itself is left out of its mean, since it is far larger than those on others.
    """
    count = int(aligned.sum())
    if count < 2:
        raise TrakStoreError("biased_data that is also the train data needs 2 samples or more")
    means = group_scores(scores, targets=aligned.astype(np.int64), how="mean")
    conflicting_mean, aligned_mean = np.asarray(means, dtype=np.float64)
    squares = [scores.block(a, b, a, b) for a, b in ranges(count, _SQUARE)]
    own = np.concatenate([square.diagonal() for square in squares], dtype=np.float64)
    others = (count * aligned_mean - own) / (count - 1)
    difference: NDArray[np.float64] = others - conflicting_mean
    return difference
