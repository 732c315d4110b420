"""TRAK as a class of a model: loaders in, tensors out, a store behind it."""

from __future__ import annotations

import shutil
import tempfile
import warnings
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor, nn

from trakstore.analysis.concentration import gini, participation_ratio, positive_mass
from trakstore.analysis.group_influence import same_class_share
from trakstore.attributors.loading import Loaded, loaded
from trakstore.attributors.projection import ProjectionMatrix
from trakstore.errors import SpecMismatchError, TrakStoreError
from trakstore.evaluation.stability import stability
from trakstore.features import featurize
from trakstore.features.fitness import need_weights
from trakstore.features.outputs import ModelOutput, as_output
from trakstore.features.parameters import parameter_spec, select_parameters
from trakstore.features.projectors import make_projector
from trakstore.kernels.solvers import Damping
from trakstore.methods.trak import trak_scores, trak_scores_of_arrays
from trakstore.scores.top_k import top_k as first_of
from trakstore.spec import ProjectionSpec
from trakstore.storage.layout import Epoch
from trakstore.storage.opening import find_store, open_store
from trakstore.storage.split import Split
from trakstore.storage.store import FeatureStore

__all__ = ["TRAKAttributor", "compute_attribution_stability"]

TASKS = {
    "image_classification": "margin",
    "text_classification": "margin",
    "classification": "margin",
}
_NORMS_AGREE = 1e-2  # relative: a stored float16 row keeps its norm to that


class TRAKAttributor:
    """TRAK of one model.

    Parameters
    ----------
    model : nn.Module
        Frozen parameters are left out.
    task : str or ModelOutput
        ``"image_classification"``, ``"text_classification"``, or any output of ``featurize``.
    proj_dim : int
        Dimension of the features.
    device : str, optional
        By default the first GPU where there is one, else the CPU.
    store : path or FeatureStore, optional
        Where features are kept; by default a temporary folder that goes with this object, in which
        features of other weights or data replace those before. A store that is given is never
        replaced: it refuses them.
    damping : float or Damping
        As in :func:`trakstore.trak_scores`.
    projector : ProjectionSpec, optional
        ``ProjectionSpec("sjlt", proj_dim)`` when None.

    Attributes
    ----------
    total_params : int
        Scalars that gradients are taken of.
    projection_matrix : ProjectionMatrix
        (total_params, proj_dim), computed where it is looked at.
    """

    epoch: Epoch = 0

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
        need_weights(model)
        self.model, self.device = model, _device(device)
        self.output = as_output(TASKS.get(task, task) if isinstance(task, str) else task)
        self.projection = projector or ProjectionSpec("sjlt", dim=proj_dim)
        parameters = parameter_spec(select_parameters(model), ("*",))
        self.total_params = parameters.count
        self.projection_matrix = ProjectionMatrix(make_projector(self.projection, parameters))
        self.proj_dim = self.projection_matrix.shape[1]
        self.damping = Damping.of(damping)
        self._temporary = store is None
        self._where = _temporary_store(self) if store is None else store

    @property
    def store(self) -> FeatureStore:
        """What was featurized so far.

        Raises
        ------
        TrakStoreError
            Before anything was.
        """
        found = find_store(self._where)
        if found is None:
            raise TrakStoreError("there are no features yet: call compute_train_features first")
        return found

    def compute_train_features(self, dataloader: Any, num_samples: int | None = None) -> Tensor:
        """Features of the train samples.

        Parameters
        ----------
        dataloader : DataLoader without shuffling, or data set
        num_samples : int, optional
            Only so many from the front.

        Returns
        -------
        Tensor, shape (n, proj_dim), float32
        """
        return self._features(self.epoch, "train", loaded(dataloader, num_samples))

    def compute_test_features(self, dataloader: Any, num_samples: int | None = None) -> Tensor:
        """Features of the targets; as :meth:`compute_train_features`."""
        return self._features(self.epoch, "test", loaded(dataloader, num_samples))

    def compute_attributions(
        self,
        train_features: Tensor,
        test_features: Tensor,
        *,
        allow_other_weights: bool = False,
    ) -> Tensor:
        """TRAK scores of bare features.

        Q = ``out_to_loss`` of the train rows comes from the store when these are its features (by
        their number and their norms); otherwise Q = 1, with a warning.

        Parameters
        ----------
        train_features : Tensor, shape (n, proj_dim)
        test_features : Tensor, shape (m, proj_dim)
        allow_other_weights : bool
            Score also where the store says that both were made with different weights.

        Returns
        -------
        Tensor, shape (m, n), float32
            ``attributions[i, j]``: influence of train sample j on target i.

        Raises
        ------
        SpecMismatchError
            When the model had other weights for one than for the other.
        """
        train, test = _float32(train_features), _float32(test_features)
        stored, targets = self._stored("train", train), self._stored("test", test)
        if stored is not None and targets is not None and not allow_other_weights:
            _check_same_weights(stored, targets)
        scale = None if stored is None else stored.column("out_to_loss").read(0, stored.rows)
        if scale is None:
            warnings.warn(
                "these train features are not those in the store, so that their out_to_loss is not "
                "known: scores are computed with Q = 1",
                stacklevel=2,
            )
        scores = trak_scores_of_arrays(test, train, scale, self.damping)
        return torch.from_numpy(np.asarray(scores))

    def find_top_attributions(
        self, attributions: Tensor, test_idx: int, top_k: int = 10, return_scores: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Train samples with the largest scores for a target, largest first.

        Parameters
        ----------
        attributions : Tensor, shape (m, n)
        test_idx : int
        top_k : int
        return_scores : bool
            Also their scores.

        Returns
        -------
        Tensor of int64, shape (top_k,), or that and a Tensor of float32
        """
        row = torch.as_tensor(attributions)[test_idx : test_idx + 1].cpu().numpy()
        if not len(row):
            raise TrakStoreError(f"there are {len(attributions)} targets, none at {test_idx}")
        found = first_of(xr.DataArray(row, dims=("target", "train")), top_k)
        indices = torch.from_numpy(found["position"].values[0])
        return (indices, torch.from_numpy(found["score"].values[0])) if return_scores else indices

    def analyze_attribution_patterns(
        self, attributions: Tensor, train_labels: Any, test_labels: Any
    ) -> dict[str, float]:
        """Where the score goes: means over targets.

        Returns
        -------
        dict
            ``same_class_bias``: share of the positive score from the target's class, less the share
            of train samples that are of it, and both of these; ``attribution_concentration``: Gini
            coefficient of |score|; ``participation_ratio``; ``positive_mass_top_tenth``.
        """
        scores = _array(attributions)
        share, base = same_class_share(scores, _array(train_labels), _array(test_labels))
        return {
            "same_class_bias": float(np.nanmean(share - base)),
            "same_class_share": float(np.nanmean(share)),
            "same_class_base_rate": float(np.mean(base)),
            "attribution_concentration": float(np.mean(gini(scores))),
            "participation_ratio": float(np.mean(participation_ratio(scores))),
            "positive_mass_top_tenth": float(np.nanmean(positive_mass(scores, 0.1))),
        }

    def _features(self, epoch: Epoch, split: str, data: Loaded) -> Tensor:
        try:
            self._featurize(epoch, split, data)
        except SpecMismatchError:
            if not self._temporary:
                raise
            self.store.drop(epoch, split)
            self._featurize(epoch, split, data)
        stored = open_store(self._where).split(epoch, split)
        rows = stored.column("features").read(0, stored.rows)
        return torch.from_numpy(rows.astype(np.float32))

    def _featurize(self, epoch: Epoch, split: str, data: Loaded) -> None:
        featurize(
            self.model,
            data.dataset,
            self._where,
            epoch=epoch,
            split=split,
            output=self.output,
            projector=self.projection,
            batch_size=data.batch_size,
            collate=data.collate,
            device=str(self.device),
        )

    def _stored(self, name: str, features: NDArray[np.float32]) -> Split | None:
        """The stored split of this name whose features these are; None where there is none."""
        found = find_store(self._where)
        for epoch in found.epochs_of(name) if found else ():
            split = found.split(epoch, name)  # type: ignore[union-attr]
            if split.rows != len(features) or not split.status().complete:
                continue
            norms = split.column("norm").read(0, split.rows)
            if np.allclose(np.linalg.norm(features, axis=1), norms, rtol=_NORMS_AGREE):
                return split
        return None

    def _compute_gradient_vector(self, loss: Tensor) -> Tensor:
        """The flattened gradient of a scalar, shape (total_params,)."""
        parameters = list(select_parameters(self.model).values())
        found = torch.autograd.grad(
            loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return torch.cat([one.reshape(-1) for one in found])

    def _project_gradient(self, vector: Tensor) -> Tensor:
        """The feature of a flattened gradient, shapes (total_params,) -> (proj_dim,)."""
        return self.projection_matrix.project(vector.detach()[None])[0]


def _check_same_weights(train: Split, targets: Split) -> None:
    """Refuse features of two checkpoints."""
    one, other = train.spec.checkpoint, targets.spec.checkpoint
    if one is not None and other is not None and one != other:
        raise SpecMismatchError(
            f"the train features were made with the weights {one[:12]}, the test features with "
            f"{other[:12]}: their products mean nothing; compute both with the same weights, or "
            f"allow_other_weights=True if this is meant"
        )


def compute_attribution_stability(
    attributor: TRAKAttributor, dataloader: Any, num_runs: int = 3, top_k: int = 10
) -> dict[str, float]:
    """How much scores depend on the seed of the projection.

    A fifth of the samples, every fifth, are the targets and the rest the train samples, so that no
    sample scores itself; each run has another seed.

    Parameters
    ----------
    attributor : TRAKAttributor
        Its model, task, dimension and damping are used, in stores of their own.
    dataloader : DataLoader without shuffling, or data set
    num_runs : int
        Two or more.
    top_k : int
        Of the lists that are compared.

    Returns
    -------
    dict
        ``spearman``, ``jaccard`` (of the first ``top_k``) and ``rank_biased_overlap``: means over
        targets and pairs of runs; ``num_runs``.
    """
    data = loaded(dataloader)
    if num_runs < 2 or len(data) < 10:
        raise TrakStoreError(
            f"stability needs 2 runs and 10 samples or more, got {num_runs} and {len(data)}"
        )
    if attributor.projection.seed is None:
        kind = attributor.projection.kind
        raise TrakStoreError(f"the {kind} projection has no seed that scores could depend on")
    targets = range(0, len(data), 5)
    trains = [row for row in range(len(data)) if row % 5]
    runs = [_run(attributor, data, targets, trains, seed) for seed in range(num_runs)]
    return {**stability(runs, top_k), "num_runs": float(num_runs)}


def _run(
    like: TRAKAttributor, data: Loaded, targets: Any, trains: Any, seed: int
) -> NDArray[np.float32]:
    spec = replace(like.projection, seed=seed)
    one = TRAKAttributor(
        like.model, like.output, device=str(like.device), damping=like.damping, projector=spec
    )
    for split, rows in (("train", trains), ("test", targets)):
        part = torch.utils.data.Subset(data.dataset, rows)
        one._featurize(0, split, Loaded(part, data.collate, data.batch_size))
    return np.asarray(trak_scores(one.store, damping=one.damping, temperature=None))


def _temporary_store(owner: object) -> str:
    """A place that is removed when its owner goes."""
    folder = tempfile.mkdtemp("-trakstore")
    weakref.finalize(owner, shutil.rmtree, folder, ignore_errors=True)
    return f"{folder}/features.zarr"


def _device(device: str | None) -> torch.device:
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _array(values: Any) -> NDArray[Any]:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _float32(values: Any) -> NDArray[np.float32]:
    array: NDArray[np.float32] = torch.as_tensor(values).detach().cpu().float().numpy()
    return array
