"""``TRAKer`` with the calls of the published library, on a store."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as tree

from trakstore.attributors.staging import Incoming, OrderError, Staged, stage
from trakstore.attributors.tasks import as_task
from trakstore.errors import TrakStoreError
from trakstore.features.fingerprint import checkpoint_hash
from trakstore.features.fitness import fit_modules, need_apart, need_weights
from trakstore.features.parameters import (
    as_patterns,
    need_real,
    own_names,
    parameter_spec,
    select_parameters,
    uncompiled,
)
from trakstore.features.projectors import make_projector
from trakstore.features.weights import own_copy
from trakstore.kernels.solvers import Damping
from trakstore.methods.trak import trak_scores
from trakstore.paths import exists, is_file
from trakstore.quantities import as_whole
from trakstore.scores.streaming import for_each_tile
from trakstore.spec import ProjectionSpec, StoreSpec
from trakstore.storage.layout import as_epochs, check_name
from trakstore.storage.store import FeatureStore

__all__ = ["ModelIDException", "TRAKer"]

log = logging.getLogger("trakstore")


class ModelIDException(TrakStoreError):
    """A checkpoint that is not known, or not featurized."""


class TRAKer:
    """TRAK scores by the calls of ``trak.TRAKer`` (traker 0.3), whose arguments these are.

    Batches of any sample indices may come from several processes: they are kept as they come, in
    ``save_dir/staging``, and ``finalize_features`` writes them as blocks of the store
    ``save_dir/store.zarr``, which is open to everything else in this package; there ``model_id`` is
    the epoch.

    Parameters
    ----------
    model : nn.Module
        Copied, so that checkpoints are loaded into the copy: the model that is given keeps its
        weights, its mode and its device, and ``model.state_dict()`` may be a checkpoint.
    task : str or object
        ``"image_classification"``, ``"text_classification"``, an object with ``get_output`` and
        ``get_out_to_loss_grad``, or an output of ``trakstore.features``.
    train_set_size : int
    save_dir : path
    device : str
        The CPU is used, with a line in the log, where there is no GPU.
    projector : ProjectionSpec, or object with ``proj_dim``, optional
        An object's ``proj_dim`` of 0 is no projection; its ``seed`` and ``proj_type`` are kept, its
        matrix is this package's.
    proj_dim : int
        ``ProjectionSpec("sjlt", proj_dim, seed=projector_seed)``, where there is no projector.
    grad_wrt : str or iterable of str, optional
        Names of parameters; all when None.
    lambda_reg : float, optional
        λ, added to the kernel of features that are divided by the root of the number of parameters,
        as there. None is the damping of ``trak_scores``, 1 times the mean squared norm.
    use_half_precision, proj_max_batch_size, gradient_computer, saver, score_computer
        Taken, and without effect: features are float32.
    load_from_save_dir
        Taken; what is in ``save_dir`` is always gone on with.

    Notes
    -----
    Scores differ from that library's by a factor for each checkpoint, by which it divides its
    inverse, and by its float16 arithmetic where that was on.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Any,
        train_set_size: int,
        save_dir: str | Path = "./trak_results",
        load_from_save_dir: bool = True,  # noqa: ARG002
        device: str | torch.device = "cuda",
        gradient_computer: Any = None,  # noqa: ARG002
        projector: Any = None,
        saver: Any = None,  # noqa: ARG002
        score_computer: Any = None,  # noqa: ARG002
        proj_dim: int = 2048,
        logging_level: int = logging.INFO,
        use_half_precision: bool = True,  # noqa: ARG002
        proj_max_batch_size: int = 32,  # noqa: ARG002
        projector_seed: int = 0,
        grad_wrt: str | Iterable[str] | None = None,
        lambda_reg: float | None = None,
    ) -> None:
        log.setLevel(logging_level)
        self.model = own_copy(uncompiled(model))
        self.train_set_size = as_whole(train_set_size, "train_set_size", 1)
        need_weights(self.model)
        need_apart(self.model)
        self.device, self.task = _usable(device), as_task(task)
        self.save_dir = Path(save_dir).resolve()
        named = grad_wrt if grad_wrt is None or isinstance(grad_wrt, str) else tuple(grad_wrt)
        patterns = ("*",) if named is None else as_patterns(named)
        self._parameters = _selected(self.model, None if named is None else patterns)
        parameters = parameter_spec(self._parameters, patterns)
        self.num_params_for_grad = parameters.count
        spec = _projection(projector, proj_dim, projector_seed)
        self.projector = make_projector(spec, parameters)
        self.proj_dim = self.projector.dim
        self._store_spec = StoreSpec(spec, self.task.spec, parameters)
        self._lambda = lambda_reg
        self._loaded: Incoming | None = None
        self._scored: Incoming | None = None

    @property
    def store(self) -> FeatureStore:
        """Where finalized features are."""
        return FeatureStore.of_spec(self.save_dir / "store.zarr", self._store_spec)

    def load_checkpoint(
        self,
        checkpoint: Mapping[str, Tensor],
        model_id: int,
        _allow_featurizing_already_registered: bool = False,
    ) -> None:
        """Take the weights of a checkpoint, whose features come next.

        Raises
        ------
        SpecMismatchError
            When other weights were featurized under this ``model_id``.
        """
        model_id = as_whole(model_id, "model_id", 0)
        self._loaded = self._load(checkpoint, model_id, "train", self.train_set_size)

    def featurize(self, batch: Any, inds: Any = None, num_samples: int | None = None) -> None:
        """Features of a batch of train samples; those that are there already are left out.

        Parameters
        ----------
        batch : tuple of Tensor
        inds : array of int, optional
            Which samples these are.
        num_samples : int, optional
            How many these are, next to those before; either this or ``inds``.
        """
        if self._loaded is None:
            raise OrderError("Load a checkpoint using traker.load_checkpoint before featurizing")
        self._stage(self._loaded, batch, inds, num_samples)

    def finalize_features(
        self, model_ids: Iterable[int] | None = None, del_grads: bool = False
    ) -> None:
        """Write the features of checkpoints, all when None, to the store.

        Parameters
        ----------
        model_ids : iterable of int, optional
        del_grads : bool
            Remove the staged rows, which are in the store then.

        Raises
        ------
        ModelIDException
            For a checkpoint that is not known, or has samples without features.
        """
        known = self._staged_ids()
        for model_id in known if model_ids is None else as_epochs(model_ids):
            if model_id not in known:
                raise ModelIDException(
                    f"Model ID {model_id} not registered, not ready for finalizing; "
                    f"there are {known}"
                )
            self._finalize(model_id, "train", self.train_set_size)
            if del_grads:
                shutil.rmtree(self._folder(model_id, "train"))

    def start_scoring_checkpoint(
        self, exp_name: str, checkpoint: Mapping[str, Tensor], model_id: int, num_targets: int
    ) -> None:
        """Take the weights of a checkpoint for the targets of an experiment."""
        split = _target_split(exp_name)
        model_id = as_whole(model_id, "model_id", 0)
        num_targets = as_whole(num_targets, "num_targets", 1)
        self._scored = self._load(checkpoint, model_id, split, num_targets, again=True)
        sizes = self.save_dir / "staging" / f"{split}.json"
        sizes.parent.mkdir(parents=True, exist_ok=True)
        sizes.write_text(json.dumps({"num_targets": num_targets}))

    def score(self, batch: Any, inds: Any = None, num_samples: int | None = None) -> None:
        """Features of a batch of targets; arguments as of :meth:`featurize`."""
        if self._scored is None:
            raise OrderError("call traker.start_scoring_checkpoint before scoring")
        self._stage(self._scored, batch, inds, num_samples)

    def finalize_scores(
        self,
        exp_name: str,
        model_ids: Iterable[int] | None = None,
        allow_skip: bool = False,
        *,
        allow_other_weights: bool = False,
    ) -> NDArray[np.float32]:
        """Scores of an experiment, averaged over checkpoints.

        Parameters
        ----------
        exp_name : str
        model_ids : iterable of int, optional
            All that were finalized when None.
        allow_skip : bool
            Leave out checkpoints without features of these targets, instead of an error.
        allow_other_weights : bool
            Score also where a ``model_id`` had other weights for the targets than for the train
            samples.

        Returns
        -------
        memmap of float32, shape (train, target)
            ``save_dir/scores/{exp_name}.npy``. Everything else in this package has (target, train).

        Raises
        ------
        ModelIDException
            For a checkpoint that is not finalized, or has targets without features.
        SpecMismatchError
            When targets and train samples of a ``model_id`` had different weights.
        TrakStoreError
            For an experiment that was never scored.
        """
        split = _target_split(exp_name)
        sizes = self.save_dir / "staging" / f"{split}.json"
        if not is_file(sizes):
            raise TrakStoreError(
                f"Experiment {exp_name} does not exist. Create it and compute scores first before "
                f"finalizing."
            )
        targets = int(json.loads(sizes.read_text())["num_targets"])
        epochs = self._scorable(model_ids, split, targets, allow_skip)
        scores = trak_scores(
            self.store,
            split,
            "train",
            epochs,
            self._damping(),
            temperature=None,
            allow_other_weights=allow_other_weights,
        )
        path = self.save_dir / "scores" / f"{exp_name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (scores.shape[1], scores.shape[0])
        np.lib.format.open_memmap(path, "w+", np.float32, shape).flush()
        for_each_tile(scores, _Transposed(path))
        found: NDArray[np.float32] = np.load(path, mmap_mode="r+")
        self.scores = found
        return found

    def _load(
        self,
        checkpoint: Mapping[str, Tensor],
        model_id: int,
        split: str,
        rows: int,
        again: bool = False,
    ) -> Incoming:
        self.model.load_state_dict(own_names(checkpoint, self.model))
        self.model.eval().to(self.device)
        folder, found = self._folder(model_id, split), checkpoint_hash(self.model)
        folder.mkdir(parents=True, exist_ok=True)
        _same_weights(folder, model_id, found)
        _warn_of_twins(folder, model_id, found)
        staged = Staged.read(folder, rows, self.proj_dim)
        done = np.zeros(rows, dtype=bool) if again else staged.there
        engine = self.task.engine(self.model, self._parameters, self.projector)
        return Incoming(model_id, folder, rows, engine, done)

    def _stage(self, into: Incoming, batch: Any, inds: Any, num_samples: int | None) -> None:
        rows = into.rows_of(inds, num_samples)
        size = len(tree.tree_leaves(batch)[0])
        if len(rows) != size:
            raise TrakStoreError(f"the batch has {size} samples, {len(rows)} indices were given")
        fresh = np.flatnonzero(~into.done[rows])
        if not len(fresh):
            return
        pick = torch.from_numpy(fresh)
        batch = tree.tree_map(lambda leaf: leaf.cpu()[pick].to(self.device), tuple(batch))
        with fit_modules(self.model):
            found = into.engine(batch)
        features, scale = (one.detach().cpu().numpy() for one in found)
        stage(into.folder, rows[fresh], features, scale)
        into.done[rows[fresh]] = True

    def _finalize(self, model_id: int, split: str, rows: int) -> None:
        staged = Staged.read(self._folder(model_id, split), rows, self.proj_dim)
        missing = np.flatnonzero(~staged.there)
        store = self.store
        if split in (store.splits_of(model_id) if model_id in store.epochs else ()):
            if split == "train" and store.split(model_id, split).status().complete:
                log.warning("Model ID %s already finalized, skipping it", model_id)
                return
            if split != "train":
                store.drop(model_id, split)  # scored once more
        if len(missing):
            raise ModelIDException(
                f"Model ID {model_id} not fully featurized, not ready for finalizing: {split} lacks "
                f"{len(missing)} of {rows} samples, the first is {missing[0]}"
            )
        weights = (self._folder(model_id, split) / "checkpoint.txt").read_text()
        scale = staged.scale
        store.write_split(model_id, split, staged, out_to_loss=scale, checkpoint=weights)

    def _scorable(
        self, model_ids: Iterable[int] | None, split: str, targets: int, allow_skip: bool
    ) -> list[int]:
        store = self.store
        finalized = [epoch for epoch in store.epochs_of("train") if isinstance(epoch, int)]
        chosen = finalized if model_ids is None else as_epochs(model_ids)
        if not chosen:
            raise OrderError("No model IDs to finalize scores for")
        scored = []
        for model_id in chosen:
            if model_id not in finalized:
                raise ModelIDException(f"Model ID {model_id} not finalized, cannot score")
            if allow_skip and not any(self._folder(model_id, split).glob("*.npz")):
                log.warning("no target features for model ID %s, skipping it", model_id)
                continue
            self._finalize(model_id, split, targets)
            scored.append(model_id)
        return scored

    def _damping(self) -> Damping:
        if self._lambda is None:
            return Damping()
        return Damping(absolute=self._lambda * self.num_params_for_grad)

    def _staged_ids(self) -> list[int]:
        found = (self.save_dir / "staging").glob("*/train")
        return sorted(int(path.parent.name) for path in found)

    def _folder(self, model_id: int, split: str) -> Path:
        return self.save_dir / "staging" / str(int(model_id)) / split


@dataclass(frozen=True)
class _Transposed:
    """Writes tiles to a file whose rows are train samples."""

    path: Path

    def __call__(self, t0: int, t1: int, n0: int, n1: int, tile: NDArray[np.float32]) -> None:
        np.load(self.path, mmap_mode="r+")[n0:n1, t0:t1] = tile.T


def _target_split(exp_name: str) -> str:
    return f"targets.{check_name(exp_name, 'experiment')}"


def _same_weights(folder: Path, model_id: int, found: str) -> None:
    """Refuse other weights than those whose rows are there."""
    note = folder / "checkpoint.txt"
    if not exists(note):
        note.write_text(found)
    elif note.read_text() != found:
        raise ModelIDException(
            f"Model ID {model_id} has rows of other weights (hash {note.read_text()[:12]}, these are "
            f"{found[:12]}): give these another model_id, or delete {folder}"
        )


def _warn_of_twins(folder: Path, model_id: int, found: str) -> None:
    """Say that another checkpoint has the same weights, when the first rows are to come."""
    if any(folder.glob("*.npz")):
        return
    for note in sorted(folder.parent.parent.glob(f"*/{folder.name}/checkpoint.txt")):
        other = note.parent.parent.name
        if other != str(int(model_id)) and note.read_text() == found:
            log.warning(
                "Model IDs %s and %s have the same weights (%s): are they two checkpoints, or one "
                "that was given twice?",
                other,
                model_id,
                found[:12],
            )


def _selected(model: nn.Module, names: Sequence[str] | None) -> dict[str, nn.Parameter]:
    if names is None:
        return select_parameters(model)
    known = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name in names:
        if name not in known:
            raise TrakStoreError(f"grad_wrt names {name!r}, which is no trainable parameter")
        need_real(name, known[name])
    return {name: p for name, p in known.items() if name in names}


def _projection(projector: Any, dim: int, seed: int) -> ProjectionSpec:
    if isinstance(projector, ProjectionSpec):
        return projector
    if projector is None:
        return ProjectionSpec("sjlt", dim=dim, seed=seed)
    if not hasattr(projector, "proj_dim"):
        raise TrakStoreError(
            f"projector must be a ProjectionSpec or have proj_dim, got {type(projector).__name__}"
        )
    if projector.proj_dim == 0:
        return ProjectionSpec("identity")
    kind = str(getattr(projector.proj_type, "value", projector.proj_type))
    kinds: dict[str, Any] = {"normal": "gaussian", "rademacher": "rademacher"}
    return ProjectionSpec(kinds.get(kind, "sjlt"), dim=projector.proj_dim, seed=projector.seed)


def _usable(device: str | torch.device) -> torch.device:
    wanted = torch.device(device)
    if wanted.type == "cuda" and not torch.cuda.is_available():
        log.info("there is no GPU: features are computed on the CPU")
        return torch.device("cpu")
    return wanted
