"""``TracInAttributor``: samples in, lists of influences out, a store behind it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Subset

from trakstore.features import Job, featurize_job
from trakstore.features.checkpoints import Checkpoint
from trakstore.features.loading import loaded, stratum
from trakstore.features.outputs import ModelOutput
from trakstore.features.parameters import last_layers
from trakstore.methods.tracin import tracin_scores
from trakstore.quantities import as_whole
from trakstore.sampling import Sample, estimate_mean, sample_rows
from trakstore.scores.factored import Scores
from trakstore.scores.top_k import top_k as first_of
from trakstore.spec import ProjectionSpec
from trakstore.storage.opening import open_store

Influences = list[list[dict[str, Any]]]


class TracInAttributor:
    """TracIn of one model, or TracInCP of its checkpoints.

    Parameters
    ----------
    model : nn.Module
        Model whose loss gradients are taken.
    projection_dim : int, optional
        Dimension that they are projected to; not projected when None, which is for small models.
    use_last_layers_only, num_last_layers : bool and int
        Whether only the parameters of the last modules that have any are taken, and how many modules
        these are: cheaper, and another method, since layers may cancel one another.
    learning_rates : float or mapping of epoch to float
        Learning rates of the training at the checkpoints.
    checkpoints : mapping of epoch to path or state_dict, optional
        Weights of the model; those that it has when None.
    output : str or ModelOutput
        Output whose loss is meant.
    device : str, optional
        By default this worker's GPU where there is one, else the CPU.
    """

    def __init__(
        self,
        model: nn.Module,
        projection_dim: int | None = None,
        use_last_layers_only: bool = False,
        num_last_layers: int = 2,
        learning_rates: float | Mapping[int | str, float] = 1.0,
        *,
        checkpoints: Mapping[int | str, Checkpoint] | None = None,
        output: str | ModelOutput | None = None,
        device: str | None = None,
    ) -> None:
        self.model, self.checkpoints, self.output = model, checkpoints, output
        self.learning_rates, self.device = learning_rates, device
        # Whole gradients of a small model are its features: inner products are then exact.
        kind: Any = "identity" if projection_dim is None else "sjlt"
        self.projection = ProjectionSpec(kind, dim=projection_dim)
        self.parameters: tuple[str, ...] = ("*",)
        if use_last_layers_only:
            self.parameters = last_layers(model, as_whole(num_last_layers, "num_last_layers", 1))

    def compute_influences(self, test: Any, train: Any, top_k: int = 10) -> Influences:
        """List the train samples with the largest influence on the loss of each test sample.

        Parameters
        ----------
        test, train : DataLoader without shuffling, data set, or list of samples
            Samples ``(input, label)``, or as the output takes them.
        top_k : int
            Length of each list.

        Returns
        -------
        list
            For each test sample a list of ``{"train_index": int, "influence": float}``, largest
            first; positive: training on the sample lowered the test sample's loss.
        """
        with tempfile.TemporaryDirectory("-trakstore") as folder:
            return _lists(first_of(self._scores(folder, test, train), top_k))

    def compute_influences_sampled(
        self,
        test: Any,
        train: Any,
        sample_rate: float = 0.1,
        stratify_by: str | Callable[[Any], Any] | None = "label",
        top_k: int = 10,
        *,
        seed: int = 0,
    ) -> dict[str, Any]:
        """List the same from a share of the train samples: most of the true lists are not in it.

        Parameters
        ----------
        test, train, top_k
            As in :meth:`compute_influences`.
        sample_rate : float
            Share of the train samples that gradients are computed of.
        stratify_by : "label", or key of dict samples, or function of a sample, or None
            Strata, of which equal shares are drawn; ``"label"`` is the last entry of a sample.
        seed : int
            Seed of the draw.

        Returns
        -------
        dict
            ``influences``: the lists among the drawn samples, ``train_index`` of all train samples;
            ``expected_recall``: share of the true lists expected among them; ``sampled``: samples
            drawn; ``mean_influence``: for each test sample and each stratum, the Horvitz-Thompson
            estimate of the mean over all its train samples, with ``low`` and ``high`` of 95%.
        """
        data = loaded(train)
        # Only drawn samples get gradients, but every sample is read once for its stratum.
        rows, count = data.dataset, len(data.dataset)
        strata = np.array([stratum(rows[at], stratify_by) for at in range(count)])
        drawn = sample_rows(count, sample_rate, strata=strata, seed=seed)
        part = data._replace(dataset=Subset(rows, drawn.positions.tolist()))
        sampled = len(drawn.positions)
        with tempfile.TemporaryDirectory("-trakstore") as folder:
            scores = self._scores(folder, test, part)
            lists = _lists(first_of(scores, min(top_k, sampled)), drawn.positions)
            each = [_means(drawn, row, strata) for row in np.asarray(scores)]
        about = {"expected_recall": sampled / count, "sampled": sampled}
        return {"influences": lists, **about, "mean_influence": each}

    def _scores(self, folder: str, test: Any, train: Any) -> Scores:
        sides, where = {"train": loaded(train), "test": loaded(test)}, f"{folder}/features.zarr"
        job = Job(
            self.model,
            {split: side.dataset for split, side in sides.items()},
            output=self.output,
            projector=self.projection,
            checkpoints=self.checkpoints,
            parameters=self.parameters,
            **sides["train"].batches,
        )
        featurize_job(job, where, device=self.device, progress=False)
        return tracin_scores(open_store(where), learning_rates=self.learning_rates)


def _lists(top: xr.Dataset, drawn: NDArray[np.int64] | None = None) -> Influences:
    """Lists as people take them; positions among the ``drawn`` samples become those of all."""
    at = top["position"].values if drawn is None else drawn[top["position"].values]
    return [
        [{"train_index": row, "influence": score} for row, score in zip(*both, strict=True)]
        for both in zip(at.tolist(), top["score"].values.tolist(), strict=True)
    ]


def _means(drawn: Sample, scores: NDArray[Any], strata: NDArray[Any]) -> dict[Any, Any]:
    """Estimate the mean score of each stratum, drawn or not."""
    means = {one.item(): estimate_mean(drawn, scores, strata == one) for one in np.unique(strata)}
    return {
        name: {"mean": one.value, "low": one.low, "high": one.high} for name, one in means.items()
    }
