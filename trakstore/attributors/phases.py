"""``PhaseTransitionAttributor``: checkpoints in, what changed between them out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor, nn

from trakstore.analysis.changepoint import ChangePoint, change_point
from trakstore.analysis.transition import Scale
from trakstore.attributors.delayed import DelayedGeneralizationTRAK
from trakstore.errors import TrakStoreError
from trakstore.features.outputs import ModelOutput
from trakstore.features.weights import kept, own_copy, state_dicts
from trakstore.storage.layout import Epoch

__all__ = ["PhaseTransitionAttributor"]


class PhaseTransitionAttributor:
    """Change of influence across a transition.

    Parameters
    ----------
    model_checkpoints : mapping of epoch to nn.Module or state dict
        In order. State dicts need ``model``.
    train_data, test_data : DataLoader without shuffling, or data set
    model : nn.Module, optional
        Takes the state dicts; it has its own weights again afterwards.
    curve : sequence of float, optional
        A number for each checkpoint, such as the test accuracy, in which the transition is looked for.
    transition : pair of epochs, optional
        Last before and first after; from ``curve`` when None, else the first and the last.
    proj_dim, task, device, store
        As of :class:`TRAKAttributor`.
    """

    def __init__(
        self,
        model_checkpoints: Mapping[Epoch, nn.Module | Mapping[str, Tensor]],
        train_data: Any,
        test_data: Any,
        model: nn.Module | None = None,
        *,
        curve: Sequence[float] | None = None,
        transition: tuple[Epoch, Epoch] | None = None,
        proj_dim: int = 2048,
        task: str | ModelOutput = "image_classification",
        device: str | None = None,
        store: Any = None,
    ) -> None:
        self.epochs = tuple(model_checkpoints)
        if len(self.epochs) < 2:
            raise TrakStoreError(f"a transition needs 2 checkpoints, got {len(self.epochs)}")
        if curve is not None and len(curve) != len(self.epochs):
            raise TrakStoreError(
                f"{len(self.epochs)} checkpoints need as many numbers in curve, got {len(curve)}"
            )
        self.model = _one_model(model_checkpoints, model)
        self.checkpoints = state_dicts(model_checkpoints, self.model)
        self.change_point: ChangePoint | None = None if curve is None else change_point(curve)
        self.transition = transition or self._found()
        self._data = {"train": train_data, "test": test_data}
        self.trak = DelayedGeneralizationTRAK(self.model, task, proj_dim, device, store)
        self._ready = False

    def compute_transition_attributions(
        self, top_k: int = 10, *, scale: Scale = "standard"
    ) -> dict[str, Any]:
        """Gained and lost train samples, with a null from the checkpoints of both phases.

        Returns
        -------
        dict
            As :func:`.delayed.transition_document`; also ``transition``, the two epochs;
            ``null_epochs``, the neighbours that the null is of; and ``change_point``.
        """
        self._featurize()
        null = self._stable_pairs()
        found = self.trak.find_phase_transition_examples(
            *self.transition, top_k, scale=scale, null_epochs=null
        )
        about = {"transition": self.transition, "null_epochs": null}
        return {**found, **about, "change_point": self.change_point}

    def find_critical_examples(
        self, influences: Mapping[str, Any], top_k: int = 10
    ) -> list[dict[str, Any]]:
        """The samples of both lists with the largest changes, whatever their sign.

        Parameters
        ----------
        influences : dict
            From :meth:`compute_transition_attributions`.
        top_k : int

        Returns
        -------
        list of dict
            ``train_index``, ``change``, ``p_value``, the largest |change| first.
        """
        names = [f"{side}_influence" for side in ("gained", "lost")]
        columns = ("indices", "scores", "p_values")
        each = [
            np.concatenate([np.asarray(influences[f"{name}_{column}"]) for name in names])
            for column in columns
        ]
        _, first = np.unique(each[0], return_index=True)
        order = first[np.argsort(-np.abs(each[1][first]), kind="stable")][:top_k]
        return [
            {
                "train_index": int(each[0][at]),
                "change": float(each[1][at]),
                "p_value": float(each[2][at]),
            }
            for at in order
        ]

    def _found(self) -> tuple[Epoch, Epoch]:
        if self.change_point is None:
            return self.epochs[0], self.epochs[-1]
        return self.epochs[self.change_point.index - 1], self.epochs[self.change_point.index]

    def _stable_pairs(self) -> list[tuple[Epoch, Epoch]]:
        """Neighbouring checkpoints of one phase."""
        before, after = (self.epochs.index(epoch) for epoch in self.transition)
        phases = self.epochs[: before + 1], self.epochs[after:]
        return [pair for phase in phases for pair in pairwise(phase)]

    def _featurize(self) -> None:
        if self._ready:
            return
        with kept(self.model):
            for epoch, state in self.checkpoints.items():
                self.model.load_state_dict(state)
                for split, data in self._data.items():
                    self.trak.compute_epoch_features(data, epoch, split)
        self._ready = True


def _one_model(checkpoints: Mapping[Epoch, Any], model: nn.Module | None) -> nn.Module:
    if model is not None:
        return model
    first = next(iter(checkpoints.values()))
    if not isinstance(first, nn.Module):
        raise TrakStoreError("checkpoints that are state dicts need model=, which takes them")
    return own_copy(first)
