"""TracIn as a class of a model: samples in, lists of influences out, a store behind it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from torch import nn

from trakstore.attributors.loading import loaded
from trakstore.errors import TrakStoreError
from trakstore.features import Job, featurize_job
from trakstore.features.job import Checkpoint
from trakstore.features.outputs import ModelOutput
from trakstore.methods.tracin import tracin_scores
from trakstore.sampling import Estimate, Sample, estimate_mean, sample_rows
from trakstore.scores.top_k import top_k as first_of
from trakstore.spec import ProjectionSpec
from trakstore.storage.opening import open_store
from trakstore.storage.store import FeatureStore

__all__ = ["TracInAttributor"]

Influences = list[list[dict[str, Any]]]


class TracInAttributor:
    """TracIn of one model, or TracInCP of its checkpoints.

    Parameters
    ----------
    model : nn.Module
    projection_dim : int, optional
        Dimension that loss gradients are projected to; not projected when None, which is for small
        models.
    use_last_layers_only : bool
        Only the parameters of the last ``num_last_layers`` modules that have any: cheaper, and
        another method, since layers may cancel one another.
    num_last_layers : int
    learning_rates : float or mapping of epoch to float
        At the checkpoints.
    checkpoints : mapping of epoch to path or state_dict, optional
        The model as it is when None.
    output : str or ModelOutput
        Whose loss is meant.
    device : str, optional
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
        output: str | ModelOutput = "margin",
        device: str | None = None,
    ) -> None:
        self.model, self.checkpoints, self.output = model, checkpoints, output
        self.learning_rates, self.device = learning_rates, device
        identity = ProjectionSpec("identity")
        self.projection = (
            identity if projection_dim is None else ProjectionSpec("sjlt", dim=projection_dim)
        )
        self.parameters = last_layers(model, num_last_layers) if use_last_layers_only else ("*",)

    def compute_influences(self, test: Any, train: Any, top_k: int = 10) -> Influences:
        """The train samples with the largest influence on the loss of each test sample.

        Parameters
        ----------
        test, train : DataLoader without shuffling, data set, or list of samples (input, label)
        top_k : int

        Returns
        -------
        list
            For each test sample a list of ``{"train_index": int, "influence": float}``, largest
            first; positive: training on the sample lowered the test sample's loss.
        """
        with tempfile.TemporaryDirectory("-trakstore") as folder:
            store = self._featurized(folder, test, train)
            return _lists(first_of(self._scores(store), top_k))

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
        """The same from a share of the train samples: most of the true lists are not in it.

        Parameters
        ----------
        test, train, top_k
            As in :meth:`compute_influences`.
        sample_rate : float
            Share of the train samples that gradients are computed of.
        stratify_by : "label", or key of dict samples, or function of a sample, or None
            What is drawn in equal shares; ``"label"`` is the last entry of a sample.
        seed : int

        Returns
        -------
        dict
            ``influences``: the lists among the drawn samples, ``train_index`` of all train samples;
            ``expected_recall``: share of the true lists that can be expected among them, the sampling
            rate; ``sampled``: samples drawn; ``mean_influence``: for each test sample and each
            stratum, the Horvitz-Thompson estimate of the mean over all its train samples, with
            ``low`` and ``high`` of a 95% interval.
        """
        data = loaded(train)
        strata = np.array([_stratum(data.dataset[row], stratify_by) for row in range(len(data))])
        drawn = sample_rows(len(data), sample_rate, strata=strata, seed=seed)
        part = [data.dataset[int(row)] for row in drawn.positions]
        with tempfile.TemporaryDirectory("-trakstore") as folder:
            scores = self._scores(self._featurized(folder, test, part))
            lists = _lists(first_of(scores, min(top_k, len(part))))
            means = _means(drawn, np.asarray(scores), strata)
        for one in lists:
            for entry in one:
                entry["train_index"] = int(drawn.positions[entry["train_index"]])
        share = len(part) / len(data)
        return {
            "influences": lists,
            "expected_recall": share,
            "sampled": len(part),
            "mean_influence": means,
        }

    def _featurized(self, folder: str, test: Any, train: Any) -> FeatureStore:
        sides = {"train": loaded(train), "test": loaded(test)}
        one = sides["train"]
        job = Job(
            self.model,
            {split: side.dataset for split, side in sides.items()},
            output=self.output,
            projector=self.projection,
            checkpoints=self.checkpoints,
            parameters=self.parameters,
            batch_size=one.batch_size,
            collate=one.collate,
        )
        featurize_job(job, f"{folder}/features.zarr", device=self.device, progress=False)
        return open_store(f"{folder}/features.zarr")

    def _scores(self, store: FeatureStore) -> Any:
        return tracin_scores(store, learning_rates=self.learning_rates)


def last_layers(model: nn.Module, count: int) -> tuple[str, ...]:
    """Patterns of the parameters of the last modules that have trainable ones of their own."""
    if count < 1:
        raise TrakStoreError(f"num_last_layers must be 1 or more, got {count}")
    owners = [
        name
        for name, module in model.named_modules()
        if any(p.requires_grad for p in module.parameters(recurse=False))
    ]
    own = owners[-count:]
    return tuple(f"{name}.*" if name else "*" for name in own)


def _lists(top: xr.Dataset) -> Influences:
    rows = zip(top["position"].values.tolist(), top["score"].values.tolist(), strict=True)
    return [
        [{"train_index": at, "influence": score} for at, score in zip(*row, strict=True)]
        for row in rows
    ]


def _means(drawn: Sample, scores: Any, strata: Any) -> list[dict[Any, dict[str, float]]]:
    groups = {stratum.item(): strata == stratum for stratum in np.unique(strata)}
    return [
        {name: _interval(estimate_mean(drawn, row, within)) for name, within in groups.items()}
        for row in scores
    ]


def _interval(mean: Estimate) -> dict[str, float]:
    return {"mean": mean.value, "low": mean.low, "high": mean.high}


def _stratum(sample: Any, by: str | Callable[[Any], Any] | None) -> Any:
    if by is None:
        return 0
    if callable(by):
        return by(sample)
    if isinstance(sample, Mapping):
        key = "labels" if by == "label" and by not in sample else by
        if key not in sample:
            raise TrakStoreError(f"samples have no {by!r}, they have {sorted(sample)}")
        return _plain(sample[key])
    if by != "label" or not isinstance(sample, Sequence):
        raise TrakStoreError(
            f"stratify_by={by!r}: samples are {type(sample).__name__}; give 'label' for tuples, a key "
            f"of dicts, or a function of a sample"
        )
    return _plain(sample[-1])


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
