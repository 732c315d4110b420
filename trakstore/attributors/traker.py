"""``TRAKer`` with the calls of the published library, on a store."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from trakstore.attributors.experiments import Experiment
from trakstore.errors import IncompleteError, SpecMismatchError, TrakStoreError
from trakstore.features.checkpoints import Checkpoint
from trakstore.features.incoming import BatchFeatures, IncomingRows, OrderError
from trakstore.features.outputs.peers import as_projection, as_task
from trakstore.kernels.solvers import Damping
from trakstore.methods.trak import trak_scores
from trakstore.quantities import as_number, as_whole
from trakstore.scores.streaming import for_each_tile
from trakstore.storage.layout import Epoch
from trakstore.storage.selections import as_epochs
from trakstore.storage.staging import StagedSplit
from trakstore.storage.store import FeatureStore

log = logging.getLogger("trakstore")

UNNAMED = "scores"  # name of the experiment if none is given


class ModelIDException(TrakStoreError):
    """A checkpoint that is unknown, or not featurized.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:  # doctest: +ELLIPSIS
    ...     traker = TRAKer(model, "image_classification", 24, folder, device="cpu")
    ...     traker.finalize_features(model_ids=[3])
    Traceback (most recent call last):
    trakstore.attributors.traker.ModelIDException: Model ID 3 not registered, ...
    """


@contextmanager
def _model_ids() -> Iterator[None]:
    """Turn errors about an epoch into the error type that users of the library catch."""
    try:
        yield
    except (SpecMismatchError, IncompleteError) as error:
        raise ModelIDException(f"Model ID not ready: {error}") from error


class TRAKer:
    """TRAK scores by the calls of ``trak.TRAKer`` (traker 0.3), whose arguments these are.

    Batches with any sample indices may come from several processes. They are kept in
    ``save_dir/staging``, and ``finalize_features`` writes them to the store ``save_dir/store.zarr``,
    which everything else in this package can open; there ``model_id`` is the epoch.

    With the same ``lambda_reg`` above 0, scores equal that library's except for a factor for each
    checkpoint, by which it divides its inverse, for the draw of the projection, and for its float16
    arithmetic where that is on. **At default arguments they do not**: that library then adds nothing to
    its kernel, which is singular if there are fewer samples than dimensions, and its scores are noise.
    For 1,000 digits, a network of 4,810 parameters, the default dimension of 2,048 and 100 targets, its
    scores correlate

    - at default arguments by 0.01 with those of here, and by 0.01 with its own under another
      ``projector_seed``;
    - with the ridge that is the default here, by 0.97 with those of here, and by 0.97 with its own
      under another seed: as well as the projection allows;
    - at a dimension of 256, where its kernel is regular, undamped by 0.47 and 0.49, with that ridge by
      0.81 and 0.80.

    Parameters
    ----------
    model : nn.Module
        Model that is copied; checkpoints are loaded into the copy. So the given model keeps its
        weights, mode and device, and ``model.state_dict()`` may be a checkpoint.
    task : str or object
        ``"image_classification"``, ``"text_classification"``, an object with ``get_output`` and
        ``get_out_to_loss_grad``, or an output of ``trakstore.features``.
    train_set_size : int
        Number of train samples.
    save_dir, load_from_save_dir : path and bool
        Folder of everything that is stored; its contents are always continued.
    device : str
        Device of the model. If there is no GPU, the CPU is used, with a line in the log.
    projector : ProjectionSpec, or object with ``proj_dim``, optional
        An object's ``proj_dim`` of 0 means no projection; its ``seed`` and ``proj_type`` are used, with
        this package's matrix. By default ``ProjectionSpec("sjlt", proj_dim, projector_seed)``.
    proj_dim, projector_seed : int
        Dimension and seed, if no projector is given.
    logging_level : int
        Level of this package's log.
    grad_wrt : str or iterable of str, optional
        Names of parameters; all by default.
    lambda_reg : float, optional
        λ for the kernel of that library's features, which are divided by the root of the number of
        parameters, and multiplied by the root of the dimension, by which its random matrices exceed
        those of this package. None means the damping of ``trak_scores``, 1 times the mean squared norm.
        That library's own default is 0, which is refused here if a kernel is singular.
    gradient_computer, saver, score_computer, use_half_precision, proj_max_batch_size
        Accepted, and without effect: features are float32.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> batch, targets = (tuple(torch.utils.data.default_collate(one)) for one in (train, test))
    >>> with TemporaryDirectory() as folder:
    ...     traker = TRAKer(model, "image_classification", 24, folder, device="cpu", proj_dim=8)
    ...     traker.load_checkpoint(model.state_dict(), model_id=0)
    ...     traker.featurize(batch, num_samples=24)
    ...     traker.finalize_features()
    ...     traker.start_scoring_checkpoint("test", model.state_dict(), model_id=0, num_targets=6)
    ...     traker.score(targets, num_samples=6)
    ...     scores = traker.finalize_scores("test")
    >>> scores.shape  # train, target, as in that library
    (24, 6)
    """

    def __init__(
        self,
        model: nn.Module,
        task: Any,
        train_set_size: int,
        save_dir: str | Path = "./trak_results",
        load_from_save_dir: bool = True,  # noqa: ARG002
        device: str = "cuda",
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
        projection = as_projection(projector, proj_dim, projector_seed)
        self._features = BatchFeatures(model, as_task(task), projection, grad_wrt, device)
        self.model, self.device = self._features.model, self._features.device
        self.projector, self.proj_dim = self._features.projector, self._features.projector.dim
        self.num_params_for_grad = self._features.parameters.count
        self.train_set_size = as_whole(train_set_size, "train_set_size", 1)
        self.save_dir = Path(save_dir).resolve()
        self._place = self.save_dir / "staging"
        # That library divides features by the root of the number of parameters, and so its kernel by
        # the number: the same ridge is that many times as large here. Its random matrices have entries
        # ±1 or standard normal, while ours are divided by the root of the dimension: the ridge is that
        # much smaller.
        scale = 1 if projection.kind == "identity" else self.proj_dim
        if lambda_reg is not None:
            lambda_reg = as_number(lambda_reg, "lambda_reg", least=0)
            lambda_reg *= self.num_params_for_grad / scale
        self._damping = Damping(absolute=lambda_reg)
        self._featurized: IncomingRows | None = None
        self._scored: IncomingRows | None = None

    @property
    def store(self) -> FeatureStore:
        """The store of finalized features."""
        return FeatureStore.of_spec(self.save_dir / "store.zarr", self._features.spec)

    def load_checkpoint(
        self,
        checkpoint: Checkpoint,
        model_id: int,
        _allow_featurizing_already_registered: bool = False,
    ) -> None:
        """Load the weights of a checkpoint, whose features come next.

        Parameters
        ----------
        checkpoint : path, state dict or callable
            Weights of the model.
        model_id : int
            Number of the checkpoint; refused if other weights were featurized under it.
        """
        self._featurized = self._begin(checkpoint, model_id, "train", self.train_set_size)
        self._featurized.done = self._featurized.staged.there

    def featurize(self, batch: Any, inds: Any = None, num_samples: int | None = None) -> None:
        """Compute the features of a batch of train samples; rows that are there already are left out.

        Parameters
        ----------
        batch : tuple or dict of Tensor
            Samples in the form that the task takes.
        inds, num_samples : array of int, or int
            Positions of these samples, or their number, if they follow those before.

        Raises
        ------
        OrderError
            When no checkpoint was loaded.
        """
        if self._featurized is None:
            raise OrderError("Load a checkpoint using traker.load_checkpoint before featurizing")
        self._featurized.add(batch, inds, num_samples)

    @_model_ids()
    def finalize_features(
        self, model_ids: Iterable[int] | None = None, del_grads: bool = False
    ) -> None:
        """Write the features of checkpoints to the store; every sample must have them.

        Parameters
        ----------
        model_ids : iterable of int, optional
            Numbers of the checkpoints; all by default.
        del_grads : bool
            Whether to remove the staged rows, which are then in the store.

        Raises
        ------
        ModelIDException
            When a checkpoint is unknown, or lacks features of a sample.
        """
        status = self.store.status()
        known = sorted(int(path.parent.name) for path in self._place.glob("*/train"))
        complete = {one.epoch for one in status if one.split == "train" and one.complete}
        for model_id in known if model_ids is None else as_epochs(model_ids):
            if model_id not in known:
                raise ModelIDException(
                    f"Model ID {model_id} not registered, not ready for finalizing; there are {known}"
                )
            staged = self._staged(model_id, "train", self.train_set_size)
            if model_id in complete:
                log.warning("Model ID %s already finalized, skipping it", model_id)
            else:
                staged.write(self.store)
            if del_grads:
                shutil.rmtree(staged.folder)

    def start_scoring_checkpoint(
        self,
        exp_name: str | Checkpoint | None = None,
        checkpoint: Checkpoint | None = None,
        model_id: int | None = None,
        num_targets: int | None = None,
    ) -> None:
        """Load the weights of a checkpoint for the targets of an experiment.

        Parameters
        ----------
        exp_name, num_targets : str and int
            Name of the experiment, by default ``"scores"``, and number of its targets.
        checkpoint, model_id
            As in :meth:`load_checkpoint`. If ``checkpoint`` is None, the first argument is the
            checkpoint, as in the first releases of that library, and still in its README.

        Raises
        ------
        TrakStoreError
            When there is no checkpoint, the experiment's name cannot name a split, or it has more
            targets.
        """
        if checkpoint is None:
            exp_name, checkpoint = None, exp_name
        if checkpoint is None:
            raise TrakStoreError("start_scoring_checkpoint needs a checkpoint, got none")
        experiment = Experiment(self._place, UNNAMED if exp_name is None else exp_name)
        split, num_targets = experiment.split, as_whole(num_targets, "num_targets", 1)
        experiment.need_all(num_targets, self.proj_dim)
        self._scored = self._begin(checkpoint, model_id, split, num_targets)
        experiment.begin(num_targets)

    def score(self, batch: Any, inds: Any = None, num_samples: int | None = None) -> None:
        """Compute the features of a batch of targets.

        Parameters
        ----------
        batch, inds, num_samples
            As in :meth:`featurize`, for targets.

        Raises
        ------
        OrderError
            When no checkpoint was started.
        """
        if self._scored is None:
            raise OrderError("call traker.start_scoring_checkpoint before scoring")
        self._scored.add(batch, inds, num_samples)

    def finalize_scores(
        self,
        exp_name: str = UNNAMED,
        model_ids: Iterable[int] | None = None,
        allow_skip: bool = False,
        *,
        allow_other_weights: bool = False,
    ) -> NDArray[np.float32]:
        """Compute the scores of an experiment, averaged over checkpoints.

        Parameters
        ----------
        exp_name : str
            Name of the experiment; by default the unnamed one.
        model_ids : iterable of int, optional
            Numbers of the checkpoints; by default all that were finalized.
        allow_skip : bool
            Whether to leave out checkpoints without features of these targets, instead of raising an
            error.
        allow_other_weights : bool
            Whether to compute scores even if targets and train samples of a ``model_id`` had different
            weights.

        Returns
        -------
        memmap of float32, shape (train, target)
            Scores in ``save_dir/scores/{exp_name}.npy``. Everything else in this package has (target,
            train).

        Raises
        ------
        ModelIDException
            When a checkpoint is not finalized, or has targets without features.
        TrakStoreError
            When there is no such experiment.
        """
        experiment = Experiment(self._place, exp_name)
        split, targets = experiment.split, experiment.targets
        if not targets:
            raise TrakStoreError(f"Experiment {exp_name} does not exist: score its targets first")
        scores = trak_scores(
            self.store,
            split,
            epochs=self._scorable(model_ids, split, targets, allow_skip),
            damping=self._damping,
            temperature=None,
            allow_other_weights=allow_other_weights,
        )
        path = self.save_dir / "scores" / f"{exp_name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        # Tiles may be computed in other processes, each of which opens the file made here and writes
        # its own part.
        np.lib.format.open_memmap(path, "w+", np.float32, scores.shape[::-1]).flush()
        for_each_tile(scores, partial(_write_transposed, path))
        self.scores: Any = np.load(path, mmap_mode="r+")
        return self.scores  # type: ignore[no-any-return]

    @_model_ids()
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
            staged = self._staged(model_id, split, targets)
            if allow_skip and not staged.files:
                log.warning("no target features for model ID %s, skipping it", model_id)
                continue
            # Targets may have been scored again since then: the staged features count.
            if split in store.splits_of(model_id):
                store.drop(model_id, split)
            staged.write(store)
            scored.append(model_id)
        return scored

    @_model_ids()
    def _begin(
        self, checkpoint: Checkpoint, model_id: object, split: str, rows: int
    ) -> IncomingRows:
        model_id = as_whole(model_id, "model_id", 0)
        return self._features.load(checkpoint, self._staged(model_id, split, rows))

    def _staged(self, model_id: Epoch, split: str, rows: int) -> StagedSplit:
        return StagedSplit(self._place, int(model_id), split, rows, self.proj_dim)


def _write_transposed(path: Path, t0: int, t1: int, n0: int, n1: int, tile: NDArray[Any]) -> None:
    np.load(path, mmap_mode="r+")[n0:n1, t0:t1] = tile.T
