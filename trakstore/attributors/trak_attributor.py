"""``TRAKAttributor``: TRAK of one model; loaders in, tensors out, a store behind it."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Subset

from trakstore.analysis.group_influence import class_summary
from trakstore.errors import NotFoundError, SpecMismatchError, TrakStoreError
from trakstore.evaluation.agreement import stability
from trakstore.features import featurize
from trakstore.features.devices import worker_device
from trakstore.features.loading import loaded
from trakstore.features.outputs import ModelOutput, as_output
from trakstore.features.parameters import parameter_spec, select_parameters
from trakstore.features.projectors import make_projector
from trakstore.features.projectors.matrix import ProjectionMatrix
from trakstore.kernels.solvers import Damping
from trakstore.methods.trak import trak_scores, trak_scores_of_arrays
from trakstore.quantities import as_whole, shown
from trakstore.scores.top_k import top_k as first_of
from trakstore.spec import ProjectionSpec
from trakstore.storage.embedded import EmbeddedStore
from trakstore.storage.layout import Epoch
from trakstore.storage.store import FeatureStore

# Well-known names of tasks whose output is the margin.
_MARGIN = ("image_classification", "text_classification", "classification")


class TRAKAttributor:
    """TRAK of one model.

    Parameters
    ----------
    model : nn.Module
        Model; its frozen parameters are left out.
    task : str or ModelOutput
        ``"image_classification"``, ``"text_classification"``, or any output of ``featurize``.
    proj_dim : int
        Dimension of the features.
    device : str, optional
        By default the first GPU if there is one, else the CPU.
    store : path or FeatureStore, optional
        Place of the features; by default a temporary folder that is removed with this object, in which
        each call's features replace the earlier ones. In a given store they are computed once; features
        of other weights or data, recognised by all ids and 32 samples, are refused.
    damping, projector : optional
        As in :func:`trakstore.trak_scores`; by default ``ProjectionSpec("sjlt", proj_dim)``.

    Attributes
    ----------
    total_params : int
        Number of scalars by which gradients are taken.
    projection_matrix : ProjectionMatrix
        Matrix of shape (total_params, proj_dim), computed where it is read.

    Examples
    --------
    >>> projection = ts.ProjectionSpec("rademacher", dim=8)
    >>> trak = TRAKAttributor(model, projector=projection, device="cpu")
    >>> features = trak.compute_train_features(train), trak.compute_test_features(test)
    >>> attributions = trak.compute_attributions(*features)
    >>> attributions.shape
    torch.Size([6, 24])
    >>> trak.find_top_attributions(attributions, test_idx=0, top_k=3).shape
    torch.Size([3])
    """

    def __init__(
        self,
        model: nn.Module,
        task: str | ModelOutput = "image_classification",
        proj_dim: int = 2048,
        device: str | None = None,
        store: Any = None,
        *,
        damping: float | Damping = 1.0,
        projector: ProjectionSpec | None = None,
    ) -> None:
        self.model = model
        self.device = worker_device(None if device is None else str(device))
        self.output = _output_of(task)
        self.projection = projector or ProjectionSpec("sjlt", dim=proj_dim)
        parameters = parameter_spec(select_parameters(model), ("*",))
        self.projection_matrix = ProjectionMatrix(make_projector(self.projection, parameters))
        self.total_params, self.proj_dim = self.projection_matrix.shape
        self.damping = Damping.of(damping)
        # Without a given store, features of new weights replace the old ones, as one expects of an
        # object. A given store keeps its features and refuses others.
        self._embedded = EmbeddedStore(store)

    @property
    def store(self) -> FeatureStore:
        """Store of all features that were computed so far.

        Raises
        ------
        TrakStoreError
            When there are none yet.
        """
        store = self._embedded.open()
        if store is None:
            raise TrakStoreError(
                "there are no features yet: call compute_train_features first, or "
                "compute_epoch_features for both splits"
            )
        return store

    def compute_train_features(self, dataloader: Any, num_samples: int | None = None) -> Tensor:
        """Compute the features of the train samples.

        Parameters
        ----------
        dataloader, num_samples
            As in :meth:`compute_epoch_features`, with the same result.
        """
        return self.compute_epoch_features(dataloader, 0, "train", num_samples)

    def compute_test_features(self, dataloader: Any, num_samples: int | None = None) -> Tensor:
        """Compute the features of the targets.

        Parameters
        ----------
        dataloader, num_samples
            As in :meth:`compute_epoch_features`, with the same result.
        """
        return self.compute_epoch_features(dataloader, 0, "test", num_samples)

    def compute_epoch_features(
        self, dataloader: Any, epoch: Epoch, split: str = "train", num_samples: int | None = None
    ) -> Tensor:
        """Compute the features of a data set under the model's present weights.

        Parameters
        ----------
        dataloader : DataLoader without shuffling, or data set
            Samples ``(input, ..., label)``.
        epoch, split : int or str, and str
            Name of these weights; and ``"train"``, or ``"test"`` for the targets.
        num_samples : int, optional
            Number of samples, taken from the front; all by default.

        Returns
        -------
        Tensor, shape (n, proj_dim), float32
        """
        data = loaded(dataloader, num_samples)
        write = partial(
            featurize,
            self.model,
            data.dataset,
            epoch=epoch,
            split=split,
            output=self.output,
            projector=self.projection,
            device=str(self.device),
            **data.batches,
        )
        stored = self._embedded.write(epoch, split, write)
        rows = stored.column("features").read(0, stored.rows)
        return torch.from_numpy(rows.astype(np.float32))

    def compute_attributions(
        self, train_features: Tensor, test_features: Tensor, *, allow_other_weights: bool = False
    ) -> Tensor:
        """Compute TRAK scores from features alone.

        Q = ``out_to_loss`` of the train rows comes from the store, if these are its features, by their
        number and norms. In parts of them, or in several calls' features joined together, each row is
        found by its values, in any order. Otherwise Q = 1, with a warning.

        Parameters
        ----------
        train_features, test_features : Tensor, shapes (n, proj_dim) and (m, proj_dim)
            Features of the train samples and of the targets.
        allow_other_weights : bool
            Whether to compute scores even if the store says that both were made with different weights.

        Returns
        -------
        Tensor, shape (m, n), float32
            ``attributions[i, j]``: influence of train sample j on target i.

        Raises
        ------
        SpecMismatchError
            When train and test features were made with different weights; or when only some train rows
            are known here, so that Q would be right for a part of them.
        """
        train, test = _features(train_features, "train"), _features(test_features, "test")
        found, targets = self._embedded.find("train", train), self._embedded.find("test", test)
        # Features that are not in the store, or were made elsewhere, have no hash to be compared.
        weights = found.weights | targets.weights
        if len(weights) > 1 and "" not in weights and not allow_other_weights:
            one, other = (_short(each.weights) for each in (found, targets))
            raise SpecMismatchError(
                f"the train features were made with the weights {one}, the test features with "
                f"{other}: compute both with the same, or allow_other_weights=True if it is meant"
            )
        # Q belongs to the train rows with which it was computed.
        scale: NDArray[np.float32] | None = found.out_to_loss
        if found.missing and (found.chunked or found.missing < len(train)):
            raise SpecMismatchError(
                f"{found.missing} of these {len(train)} train features are not as they were computed "
                f"here, so that their Q is not known: give what compute_train_features gave unchanged, "
                f"in any order, or compute all train features in one call"
            )
        if found.missing:
            reason = "these train features are not those in the store, which has out_to_loss"
            warnings.warn(f"{reason}: scores are computed with Q = 1", stacklevel=2)
            scale = None
        return torch.from_numpy(np.asarray(trak_scores_of_arrays(test, train, scale, self.damping)))

    def find_top_attributions(
        self, attributions: Tensor, test_idx: int, top_k: int = 10, return_scores: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Find the train samples with the largest scores for a target, largest first.

        Parameters
        ----------
        attributions : Tensor, shape (m, n)
            Scores.
        test_idx, top_k : int
            Row of the target, and number of train samples.
        return_scores : bool
            Whether to return their scores too.

        Returns
        -------
        Tensor of int64, shape (top_k,), or that and a Tensor of float32

        Raises
        ------
        TrakStoreError
            When there is no such target.
        """
        test_idx = as_whole(test_idx, "test_idx")
        row = _array(torch.as_tensor(attributions)[test_idx : test_idx + 1])
        if not len(row):
            raise TrakStoreError(f"there are {len(attributions)} targets, none at {test_idx}")
        top = first_of(xr.DataArray(row, dims=("target", "train")), top_k).isel(target=0)
        indices = torch.from_numpy(top["position"].values)
        return (indices, torch.from_numpy(top["score"].values)) if return_scores else indices

    def analyze_attribution_patterns(
        self, attributions: Tensor, train_labels: Any, test_labels: Any
    ) -> dict[str, float]:
        """Describe the distribution of scores over train samples, by means over targets.

        Parameters
        ----------
        attributions : Tensor, shape (m, n)
            Scores.
        train_labels, test_labels : array of int, shapes (n,) and (m,)
            Classes of the train samples and of the targets.

        Returns
        -------
        dict
            ``same_class_bias``: share of the positive score from the target's class, less the share of
            train samples in that class, and both of these; ``attribution_concentration``: Gini
            coefficient of ``|score|``; ``participation_ratio``; ``positive_mass_top_tenth``.
        """
        summary = class_summary(_array(attributions), _array(train_labels), _array(test_labels))
        means, bias = summary.means(), float(np.nanmean(summary.share - summary.base))
        return {"same_class_bias": bias, "attribution_concentration": means.pop("gini"), **means}

    def _compute_gradient_vector(self, loss: Tensor) -> Tensor:
        """Flatten the gradient of a scalar, shape (total_params,)."""
        parameters = list(select_parameters(self.model).values())
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
        return torch.cat([one.reshape(-1) for one in gradients])

    def _project_gradient(self, vector: Tensor) -> Tensor:
        """Project a flattened gradient, shapes (total_params,) -> (proj_dim,)."""
        return self.projection_matrix.project(vector.detach()[None])[0]


def _output_of(task: str | ModelOutput) -> ModelOutput:
    """Return the output of a task."""
    try:
        return as_output("margin" if isinstance(task, str) and task in _MARGIN else task)
    except NotFoundError as error:
        raise NotFoundError(f"{error}; or name a task: {', '.join(_MARGIN)}") from None


def compute_attribution_stability(
    attributor: TRAKAttributor, dataloader: Any, num_runs: int = 3, top_k: int = 10
) -> dict[str, float]:
    """Measure how much scores depend on the seed of the projection.

    Every fifth sample is a target, and all others are train samples, so that none scores itself.

    Parameters
    ----------
    attributor : TRAKAttributor
        Its model, task, dimension and damping are used, with stores of their own.
    dataloader : DataLoader without shuffling, or data set
        Samples, ten or more.
    num_runs, top_k : int
        Number of seeds, two or more, and length of the lists that are compared.

    Returns
    -------
    dict
        ``spearman``, ``jaccard`` (of the first ``top_k``) and ``rank_biased_overlap``: means over
        targets and pairs of runs; ``num_runs``.

    Raises
    ------
    TrakStoreError
        For fewer than 2 runs or 10 samples, or a projection without a seed.

    Examples
    --------
    >>> trak = TRAKAttributor(model, projector=ts.ProjectionSpec("rademacher", dim=8), device="cpu")
    >>> sorted(compute_attribution_stability(trak, train, num_runs=2, top_k=3))
    ['jaccard', 'num_runs', 'rank_biased_overlap', 'spearman']
    """
    data, spec = loaded(dataloader), attributor.projection
    rows = range(len(data.dataset))
    if num_runs < 2 or len(rows) < 10:
        raise TrakStoreError(
            f"stability needs 2 runs and 10 samples or more, got {num_runs} and {len(rows)}"
        )
    if spec.seed is None:
        raise TrakStoreError(f"the {spec.kind} projection has no seed that scores could depend on")
    sides = {"train": [row for row in rows if row % 5], "test": rows[::5]}
    runs = []
    # Each seed has its own store, since a store has one projection.
    for seed in range(num_runs):
        one = TRAKAttributor(
            attributor.model,
            attributor.output,
            device=str(attributor.device),
            damping=attributor.damping,
            projector=replace(spec, seed=seed),
        )
        for split, some in sides.items():
            one.compute_epoch_features(data._replace(dataset=Subset(data.dataset, some)), 0, split)
        runs.append(np.asarray(trak_scores(one.store, damping=one.damping, temperature=None)))
    return {**stability(runs, top_k), "num_runs": float(num_runs)}


def _features(given: Any, side: str) -> NDArray[np.float32]:
    try:
        rows = torch.as_tensor(given).detach().cpu().float()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TrakStoreError(f"{side} features must be a tensor, got {shown(given)}") from error
    if rows.ndim != 2:
        raise TrakStoreError(
            f"{side} features must have the shape (samples, proj_dim), got {tuple(rows.shape)}: give "
            f"what compute_{side}_features gave"
        )
    return np.asarray(rows.numpy())


def _short(weights: frozenset[str]) -> str:
    return " and ".join(one[:12] for one in sorted(weights)) or "that are not known"


def _array(values: Any) -> NDArray[Any]:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
