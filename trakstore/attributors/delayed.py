"""TRAK over checkpoints: what a target was learned from, and when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trakstore.analysis.evolution import evolution
from trakstore.analysis.transition import Scale, Transition, transition
from trakstore.attributors.loading import loaded
from trakstore.attributors.trak_attributor import TRAKAttributor
from trakstore.methods.trak import trak_scores
from trakstore.scores.factored import Scores
from trakstore.storage.layout import Epoch

__all__ = ["DelayedGeneralizationTRAK", "transition_document"]


class DelayedGeneralizationTRAK(TRAKAttributor):
    """:class:`TRAKAttributor` for a model whose weights change: features of each checkpoint.

    Call :meth:`compute_epoch_features` whenever the model has the weights of an epoch, then ask.
    """

    def compute_epoch_features(self, dataloader: Any, epoch: Epoch, split: str = "train") -> Tensor:
        """Features of a data set under the weights that the model has now.

        Parameters
        ----------
        dataloader : DataLoader without shuffling, or data set
        epoch : int or str
            Name of these weights.
        split : str
            ``"train"``, or ``"test"`` for the targets.

        Returns
        -------
        Tensor, shape (rows, proj_dim), float32
        """
        return self._features(epoch, split, loaded(dataloader))

    def analyze_attribution_evolution(
        self, test_idx: int, epochs: Sequence[Epoch] | None = None, top_k: int = 10
    ) -> dict[Epoch, dict[str, Any]]:
        """The scores of one target, epoch by epoch.

        Returns
        -------
        dict
            For each epoch ``top_indices`` (Tensor of int64), ``top_scores`` (float32), and ``mean``,
            ``max``, ``std`` of all its scores; ``spearman`` with the epoch before.
        """
        scores = self._scores(epochs).isel(target=[test_idx])
        found = evolution(scores, min(top_k, scores.shape[1])).isel(target=0)
        result: dict[Epoch, dict[str, Any]] = {}
        for at, epoch in enumerate(scores.epochs):
            one = found.isel(epoch=at)
            numbers = {name: float(one[name]) for name in ("mean", "max", "std", "spearman")}
            result[epoch] = {
                "top_indices": torch.from_numpy(one["position"].values.copy()),
                "top_scores": torch.from_numpy(one["score"].values.astype("float32")),
                **numbers,
            }
        return result

    def find_phase_transition_examples(
        self,
        pre_transition_epoch: Epoch,
        post_transition_epoch: Epoch,
        top_k: int = 10,
        *,
        scale: Scale = "standard",
        null_epochs: Sequence[tuple[Epoch, Epoch]] = (),
    ) -> dict[str, Any]:
        """Train samples whose influence on the targets grew or shrank most.

        Parameters
        ----------
        pre_transition_epoch, post_transition_epoch : int or str
        top_k : int
        scale : {"standard", "rank", "raw"}
            See :func:`trakstore.analysis.transition.transition`; raw differences are mostly those of
            gradient norms.
        null_epochs : sequence of pairs of epochs
            Between which nothing happened: gives p-values.

        Returns
        -------
        dict
            As :func:`transition_document`.
        """
        chosen = [pre_transition_epoch, post_transition_epoch]
        chosen += [epoch for pair in null_epochs for epoch in pair]
        scores = self._scores(list(dict.fromkeys(chosen)))
        null = [(scores.epoch(a), scores.epoch(b)) for a, b in null_epochs]
        before, after = scores.epoch(pre_transition_epoch), scores.epoch(post_transition_epoch)
        found = transition(before, after, null, scale=scale, k=min(top_k, scores.shape[1]))
        return transition_document(found)

    def _scores(self, epochs: Sequence[Epoch] | None) -> Scores:
        return trak_scores(self.store, epochs=epochs, damping=self.damping, temperature=None)


def transition_document(found: Transition) -> dict[str, Any]:
    """What people know as the result of a transition.

    Returns
    -------
    dict
        ``gained_influence_indices`` and ``lost_influence_indices`` (Tensors of int64, rows of the
        train data), ``..._scores`` (float32, the changes), ``..._intervals`` (float32, shape
        (k, 2), 95% over targets), ``..._p_values`` and ``..._error_rate`` (NaN without a null);
        ``scale``; ``null_pairs``.
    """
    document: dict[str, Any] = {"scale": found.scale, "null_pairs": found.null_pairs}
    for side, one in (("gained", found.gained), ("lost", found.lost)):
        name = f"{side}_influence"
        ends = torch.stack([torch.from_numpy(one[end].values) for end in ("low", "high")], dim=1)
        document |= {
            f"{name}_indices": torch.from_numpy(one["position"].values.copy()),
            f"{name}_scores": torch.from_numpy(one["change"].values).float(),
            f"{name}_intervals": ends.float(),
            f"{name}_p_values": torch.from_numpy(one["p"].values).float(),
            f"{name}_error_rate": found.error_rate("gained" if side == "gained" else "lost"),
        }
    return document
