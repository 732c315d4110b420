"""TRAK over checkpoints: the samples from which a target was learned, and the epochs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from heapq import nsmallest
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import nn

from trakstore.analysis.changepoint import change_point
from trakstore.analysis.evolution import evolution
from trakstore.analysis.transition import Scale, Transition, transition
from trakstore.attributors.model_checkpoints import ModelCheckpoints, by_epoch, model_of
from trakstore.attributors.trak_attributor import TRAKAttributor
from trakstore.errors import TrakStoreError
from trakstore.features.checkpoints import load_weights
from trakstore.features.weights import kept, state_dicts
from trakstore.methods.trak import trak_scores
from trakstore.scores.factored import Scores
from trakstore.storage.layout import Epoch

log = logging.getLogger("trakstore")


class DelayedGeneralizationTRAK(TRAKAttributor):
    """:class:`TRAKAttributor` for a model whose weights change.

    Whenever the model has the weights of an epoch, call ``compute_epoch_features`` for both splits.
    Then ask.

    Examples
    --------
    >>> projection = ts.ProjectionSpec("rademacher", dim=8)
    >>> network = nn.Linear(4, 3)
    >>> trak = DelayedGeneralizationTRAK(network, projector=projection, device="cpu")
    >>> for epoch in (0, 1):
    ...     network.reset_parameters()  # a training would change the weights
    ...     for split, data in (("train", train), ("test", test)):
    ...         features = trak.compute_epoch_features(data, epoch, split)
    >>> evolution = trak.analyze_attribution_evolution(test_idx=0, top_k=3)
    >>> sorted(evolution[1])
    ['max', 'mean', 'spearman', 'std', 'top_indices', 'top_scores']
    """

    def analyze_attribution_evolution(
        self, test_idx: int, epochs: Sequence[Epoch] | None = None, top_k: int = 10
    ) -> dict[Epoch, dict[str, Any]]:
        """Follow the scores of one target, epoch by epoch.

        Parameters
        ----------
        test_idx, top_k : int
            Row of the target, and length of the lists.
        epochs : sequence of epochs, optional
            Epochs to follow; all when None.

        Returns
        -------
        dict
            For each epoch ``top_indices`` (Tensor of int64), ``top_scores`` (float32); ``mean``,
            ``max`` and ``std`` of all scores; ``spearman``, the correlation with the epoch before.
        """
        scores = self._scores(epochs).isel(target=[test_idx])
        whole = evolution(scores, min(top_k, scores.shape[1])).isel(target=0)
        each = [whole.isel(epoch=at) for at in range(len(scores.epochs))]
        return {
            epoch: {
                "top_indices": torch.tensor(one["position"].values),
                "top_scores": torch.tensor(one["score"].values, dtype=torch.float32),
                **{name: float(one[name]) for name in ("mean", "max", "std", "spearman")},
            }
            for epoch, one in zip(scores.epochs, each, strict=True)
        }

    def find_phase_transition_examples(
        self,
        pre_transition_epoch: Epoch,
        post_transition_epoch: Epoch,
        top_k: int = 10,
        *,
        scale: Scale = "standard",
        null_epochs: Sequence[tuple[Epoch, Epoch]] = (),
    ) -> dict[str, Any]:
        """Find the train samples whose influence on the targets grew or shrank most.

        Parameters
        ----------
        pre_transition_epoch, post_transition_epoch : int or str
            Epochs before and after the transition.
        top_k : int
            Length of both lists.
        scale : {"standard", "rank", "raw"}
            As in :func:`trakstore.analysis.transition`; raw changes are mostly changes of gradient
            norms.
        null_epochs : sequence of pairs of epochs
            Epochs between which nothing changed: they give p-values.

        Returns
        -------
        dict
            ``gained_influence_indices`` and ``lost_influence_indices`` (Tensors of int64, rows of the
            train data), ``..._scores`` (float32, the changes), ``..._intervals`` (float32, shape
            (k, 2), 95% over targets), ``..._p_values`` and ``..._error_rate`` (NaN without a null);
            of all train samples, shape (n,): ``indices``, ``changes`` and ``p_values``; ``scale``;
            ``null_pairs``.
        """
        if not null_epochs:
            log.warning(
                "no null, so p-values are NaN: give null_epochs=[(16, 20)], pairs of epochs between "
                "which nothing happened"
            )
        ends = (pre_transition_epoch, post_transition_epoch)
        return self._changes(ends, top_k, scale, null_epochs)

    def _changes(
        self,
        ends: tuple[Epoch, Epoch],
        top_k: int,
        scale: Scale,
        null_epochs: Sequence[tuple[Epoch, Epoch]],
    ) -> dict[str, Any]:
        pairs = [ends, *null_epochs]
        scores = self._scores(list(dict.fromkeys(epoch for pair in pairs for epoch in pair)))
        change, *null = [(scores.epoch(before), scores.epoch(after)) for before, after in pairs]
        changes = transition(*change, null, scale=scale, k=min(top_k, scores.shape[1]))
        every = {
            "indices": torch.tensor(changes.changes["position"].values),
            "changes": torch.tensor(changes.changes["change"].values).float(),
            "p_values": torch.tensor(changes.changes["p"].values).float(),
        }
        about = {"scale": changes.scale, "null_pairs": changes.null_pairs}
        return {**_listed(changes, "gained"), **_listed(changes, "lost"), **every, **about}

    def _scores(self, epochs: Sequence[Epoch] | None) -> Scores:
        return trak_scores(self.store, epochs=epochs, damping=self.damping, temperature=None)


class PhaseTransitionAttributor:
    """Change of influence across a transition.

    Parameters
    ----------
    model_checkpoints : mapping of epoch to nn.Module, state dict or path, or list of these
        Checkpoints in order; those of a list are the epochs 0, 1, 2, ... State dicts and paths need
        ``model``.
    train_data, test_data : DataLoader without shuffling, or data set
        Samples that the model was trained on, and targets.
    model : nn.Module, optional
        Model into which weights are loaded; it has its own again afterwards. By default a copy of a
        checkpoint.
    curve : sequence of float, optional
        A number for each checkpoint, such as the test accuracy; the transition is where it changes.
    transition : pair of epochs, optional
        Last epoch before and first epoch after the transition. By default from ``curve``, or else the
        first and the last checkpoint, with a warning if there are others.
    **options
        ``task``, ``proj_dim``, ``device``, ``store``, ``damping`` and ``projector`` of a
        :class:`TRAKAttributor`.

    Raises
    ------
    TrakStoreError
        For fewer than two checkpoints, a curve of another length, or state dicts or paths without a
        model.

    Examples
    --------
    >>> projection = ts.ProjectionSpec("rademacher", dim=8)
    >>> checkpoints = [nn.Linear(4, 3), nn.Linear(4, 3), model]
    >>> one = PhaseTransitionAttributor(checkpoints, train, test, projector=projection, device="cpu")
    >>> influences = one.compute_transition_attributions(top_k=3)
    >>> found = one.find_critical_examples(influences, top_k=3)
    >>> one.transition, len(found)
    ((0, 2), 3)
    """

    def __init__(
        self,
        model_checkpoints: ModelCheckpoints,
        train_data: Any,
        test_data: Any,
        model: nn.Module | None = None,
        *,
        curve: Sequence[float] | None = None,
        transition: tuple[Epoch, Epoch] | None = None,
        **options: Any,
    ) -> None:
        checkpoints = by_epoch(model_checkpoints)
        self.epochs = tuple(checkpoints)
        if len(self.epochs) < 2:
            raise TrakStoreError(f"a transition needs 2 checkpoints, got {len(self.epochs)}")
        if curve is not None and len(curve) != len(self.epochs):
            raise TrakStoreError(
                f"{len(self.epochs)} checkpoints need as many numbers in curve, got {len(curve)}"
            )
        if transition is not None:
            _need_ends(transition, self.epochs)
        self.model = model_of(checkpoints, model)
        self.checkpoints = state_dicts(checkpoints, self.model)
        self.change_point = change = None if curve is None else change_point(curve)
        # A change at index i is the first value of the new phase: the old one ends at i - 1.
        last, first = (0, -1) if change is None else (change.index - 1, change.index)
        self.transition = transition or (self.epochs[last], self.epochs[first])
        if curve is None and transition is None and len(self.epochs) > 2:
            log.warning(
                "neither curve= nor transition=, so the transition is from %s to %s, the first and "
                "the last of %d checkpoints: give curve=, a number for each (such as its test "
                "accuracy), or transition=, the last before and the first after",
                *self.transition,
                len(self.epochs),
            )
        self.trak = DelayedGeneralizationTRAK(self.model, **options)
        self._data = {"train": train_data, "test": test_data}
        self._ready = False

    def compute_transition_attributions(
        self, top_k: int = 10, *, scale: Scale = "standard"
    ) -> dict[str, Any]:
        """Find gained and lost train samples, with a null from neighbouring checkpoints of both phases.

        Parameters
        ----------
        top_k, scale
            As in ``DelayedGeneralizationTRAK.find_phase_transition_examples``.

        Returns
        -------
        dict
            Result of that method; also ``transition``, the two epochs, ``null_epochs``, the pairs that
            make the null, and ``change_point``.
        """
        if not self._ready:
            self._featurize()
        before, after = (self.epochs.index(epoch) for epoch in self.transition)
        # Pairs of neighbours within a phase, none across the transition: their changes show what is
        # usual.
        null = [*pairwise(self.epochs[: before + 1]), *pairwise(self.epochs[after:])]
        if not null:
            log.warning(
                "no null, so p-values are NaN: they come from neighbouring checkpoints of one phase, "
                "and the transition from %s to %s leaves none; give further checkpoints before or "
                "after it, or a narrower transition=",
                *self.transition,
            )
        changes = self.trak._changes(self.transition, top_k, scale, null)
        about = {"transition": self.transition, "null_epochs": null}
        return {**changes, **about, "change_point": self.change_point}

    def find_critical_examples(
        self, influences: Mapping[str, Any], top_k: int = 10
    ) -> list[dict[str, Any]]:
        """Find the train samples with the largest changes, whatever their sign.

        Parameters
        ----------
        influences, top_k : dict and int
            Result of :meth:`compute_transition_attributions`, whose own lists may be shorter, and
            number of samples to list; all if there are fewer.

        Returns
        -------
        list of dict
            ``train_index``, ``change``, ``p_value``, the largest ``|change|`` first.
        """
        columns = (influences[name].tolist() for name in ("indices", "changes", "p_values"))
        every = [
            {"train_index": at, "change": change, "p_value": p}
            for at, change, p in zip(*columns, strict=True)
        ]
        return nsmallest(top_k, every, key=lambda one: (-abs(one["change"]), one["train_index"]))

    def _featurize(self) -> None:
        with kept(self.model):
            for epoch, state in self.checkpoints.items():
                load_weights(state, self.model, f"checkpoint {epoch}")
                for split, data in self._data.items():
                    self.trak.compute_epoch_features(data, epoch, split)
        self._ready = True


def _listed(changes: Transition, side: Literal["gained", "lost"]) -> dict[str, Any]:
    """Give the columns of one of the lists their well-known names."""
    one, name = getattr(changes, side), f"{side}_influence"
    return {
        f"{name}_indices": torch.tensor(one["position"].values),
        f"{name}_scores": torch.tensor(one["change"].values).float(),
        f"{name}_intervals": torch.tensor(one[["low", "high"]].to_array().values.T).float(),
        f"{name}_p_values": torch.tensor(one["p"].values).float(),
        f"{name}_error_rate": changes.error_rate(side),
    }


def _need_ends(transition: tuple[Epoch, Epoch], epochs: Sequence[Epoch]) -> None:
    """Raise a :class:`TrakStoreError` unless a transition leads from one epoch to a later one."""
    places = [epochs.index(one) for one in transition if one in epochs]
    # Otherwise the pairs of the null would include the transition.
    if len(places) != 2 or places[0] >= places[1]:
        raise TrakStoreError(
            f"transition= takes two checkpoints, (before, after), among "
            f"{', '.join(map(str, epochs))} in this order, got {transition}"
        )
