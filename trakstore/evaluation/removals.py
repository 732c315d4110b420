"""Removals: train again without the samples to which a target is said to owe its output."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from trakstore.errors import TrakStoreError
from trakstore.evaluation.retraining import Trainer, retrain
from trakstore.evaluation.stored_places import target_places, train_places
from trakstore.passes.rows import whole_column
from trakstore.quantities import as_whole, as_wholes
from trakstore.sampling import without_rows
from trakstore.scores.factored import Scores
from trakstore.scores.top_k import top_k
from trakstore.scores.windows import Matrix, need_labels, need_matrix
from trakstore.storage.backends.location import Where
from trakstore.storage.store import FeatureStore

REMOVALS = ("top", "random", "same_class")


@dataclass(frozen=True, eq=False)
class RemovalPlan:
    """Models without some rows: model q is the (q mod ``repeats``)-th of ``removed[q // repeats]``.

    The r-th models of all entries have the same seed, so that they are comparable.

    Attributes
    ----------
    rows : int
        Number of train rows, those in ``without`` among them.
    removed : sequence of ndarray of int64
        Positions of the rows that are left out, an array for each removal.
    repeats : int
        Models of each removal.
    seed : int
        Seed that the models' seeds follow from.
    without : ndarray of int64
        Positions of rows that no model has, such as masked ones.
    """

    rows: int
    removed: Sequence[NDArray[np.int64]]
    repeats: int
    seed: int
    without: NDArray[np.int64]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that determine the models; of the positions, a digest."""
        digest = hashlib.sha256()
        for one in self.removed:
            digest.update(f"{len(one)}:".encode() + one.astype("<i8").tobytes())
        numbers = {"rows": self.rows, "repeats": self.repeats, "seed": self.seed}
        return {**numbers, "removed": digest.hexdigest(), **without_rows(self.without)}

    def masks(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Rows of models start..stop, shape (models, rows)."""
        masks = np.ones((stop - start, self.rows), dtype=bool)
        masks[:, self.without] = False
        for mask, q in zip(masks, range(start, stop), strict=True):
            mask[self.removed[q // self.repeats]] = False
        return masks

    def seeds(self, start: int, stop: int) -> NDArray[np.int64]:
        """Seeds of models start..stop."""
        # Seeds depend on the repeat alone: models of different removals differ by their rows only.
        drawn = [
            np.random.default_rng([self.seed, 2, q % self.repeats]).integers(2**63)
            for q in range(start, stop)
        ]
        return np.array(drawn, dtype=np.int64)


def counterfactual(
    scores: Matrix,
    trainer: Trainer,
    store: Where | FeatureStore,
    name: str,
    *,
    sizes: Sequence[int] = (10, 50),
    targets: Sequence[int] | None = None,
    labels: tuple[Any, Any] | None = None,
    repeats: int = 5,
    seed: int = 0,
    at_once: int = 50,
    memory_limit: int | str | None = None,
    finished: Callable[[int], None] | None = None,
) -> xr.Dataset:
    """Train without each target's highest scored samples, and without equally many others.

    Models are trained on subsets of all rows of the stored split, masked or not, as :func:`top_k` and
    data sets count them. Rows that the scores do not have, such as masked ones, are in no subset.

    Parameters
    ----------
    scores : Scores, DataArray or array, shape (m, n)
        Scores of m targets with n train samples; arrays have all rows.
    trainer : callable
        As for :func:`~trakstore.evaluation.retraining.retrain`; gives outputs for all rows of the
        targets' stored split, or for the m targets alone.
    store, name
        Place and name of the models, which are kept, so that a stopped run goes on.
    sizes : sequence of int
        Numbers of samples to remove.
    targets : sequence of int, optional
        Positions of the targets to test; by default all. There are ``1 + targets * sizes * 3``
        trainings, each ``repeats`` times.
    labels : (train, target) arrays, optional
        Classes, for removals from the target's own class; by default the stored ones of ``Scores``.
    repeats : int
        Models of each removal, and of all rows.
    seed : int
        Seed of the training and the random removals.
    at_once : int
        Models that are trained together.
    memory_limit : int or str, optional
        Bytes of one process for the top lists; a quarter of the available memory when None.
    finished : callable, optional
        Called with the number of models that were added.

    Returns
    -------
    Dataset
        Dimensions ``removal`` (``"top"``, ``"random"``, and with labels ``"same_class"``), ``size`` and
        ``target``. ``change``: mean output of models with all rows, less that of models without some;
        large for samples that the output needs. If models predict classes, ``flips``: share of models
        that predict another class than most models with all rows, and ``chance`` (target,): the same
        share among the models with all rows.

    Raises
    ------
    TrakStoreError
        Sizes or targets out of range; a class with fewer other rows than a size; outputs for another
        number of targets.
    SpecMismatchError
        When the name is that of other removals.

    Examples
    --------
    >>> from trakstore.evaluation import Retrained
    >>> def trainer(subsets, seeds):  # a model whose output is the share of rows it was given
    ...     return Retrained(subsets.mean(1, keepdims=True).repeat(6, 1).astype(np.float32))
    >>> scores = ts.trak_scores(store)
    >>> found = counterfactual(scores, trainer, "memory://removed", "top", sizes=(6,), repeats=1)
    >>> found["change"].sel(removal="top").values[0].round(2).tolist()
    [0.25, 0.25, 0.25, 0.25, 0.25, 0.25]
    """
    scores = need_matrix(scores)
    chosen = np.arange(scores.shape[0])
    if targets is not None:
        chosen = np.array(as_wholes(targets, "targets"), dtype=np.int64)
    sizes = as_wholes(sizes, "sizes")
    repeats, seed = as_whole(repeats, "repeats", 1), as_whole(seed, "seed", 0)
    _check(scores.shape, chosen, sizes)
    train, target = train_places(scores), target_places(scores)
    lists = _top_lists(scores, chosen, max(sizes), memory_limit)
    classes, kinds = _labels(scores, labels), removal_kinds(scores, labels)
    # Streams 0 to 2 of the seed are those of subsets and of models' seeds: 3 is for removals alone.
    rng = np.random.default_rng([seed, 3])
    removed = [np.zeros(0, dtype=np.int64)]  # models with all rows
    for size, kind in product(sizes, kinds):
        for row, first in zip(chosen.tolist(), lists, strict=True):
            own = classes if kind == "same_class" else None
            if kind == "top":
                removed.append(first[:size])
            else:
                removed.append(train.positions[_drawn(rng, size, row, own, scores)])
    plan = RemovalPlan(train.rows, removed, repeats, seed, train.left_out)
    models = retrain(
        trainer,
        store,
        name,
        plan,
        len(removed) * repeats,
        at_once=at_once,
        finished=finished,
        targets=target.widths,
    )
    outputs = target.columns(models.sizes["target"])
    assert outputs is not None, "retrain refuses outputs of other targets"
    return _compared(models, repeats, kinds, sizes, chosen, outputs[chosen])


def removal_kinds(scores: Matrix, labels: tuple[Any, Any] | None = None) -> tuple[str, ...]:
    """Name the removals: those of the same class only where classes are known."""
    return REMOVALS if _labels(scores, labels) is not None else REMOVALS[:2]


def _check(shape: tuple[int, ...], chosen: NDArray[np.int64], sizes: Sequence[int]) -> None:
    rows, columns = shape
    if not chosen.size or chosen.min() < 0 or chosen.max() >= rows:
        raise TrakStoreError(f"targets are positions in 0..{rows - 1}, got {chosen.tolist()[:9]}")
    if not sizes or min(sizes) < 1 or max(sizes) >= columns:
        raise TrakStoreError(f"sizes must be in 1..{columns - 1}, got {list(sizes)}")


def _top_lists(
    scores: Matrix, chosen: NDArray[np.int64], k: int, memory_limit: int | str | None
) -> NDArray[np.int64]:
    """Stored positions of the k highest scores of each target, shape (targets, k)."""
    if isinstance(scores, np.ndarray):
        scores = xr.DataArray(scores, dims=("target", "train"))
    lists = top_k(scores.isel(target=chosen), k, memory_limit=memory_limit)
    return np.asarray(lists["position"].values, dtype=np.int64)


def _labels(
    scores: Matrix, given: tuple[Any, Any] | None
) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Return classes of train samples and targets, given or stored; None if a side has none."""
    if given is None:
        stored = (scores.train_labels, scores.target_labels) if isinstance(scores, Scores) else ()
        columns = [whole_column(rows) for rows in stored if rows is not None]
        if len(columns) < 2:
            return None
        given = (columns[0], columns[1])
    return need_labels(scores, *given)


def _drawn(
    rng: np.random.Generator,
    size: int,
    target: int,
    classes: tuple[NDArray[Any], NDArray[Any]] | None,
    scores: Matrix,
) -> NDArray[np.int64]:
    """Draw columns of the scores, where classes are given from those of the target's class."""
    members = np.arange(scores.shape[1])
    if classes is not None:
        members = np.flatnonzero(classes[0] == classes[1][target])
    if len(members) < size:
        raise TrakStoreError(
            f"the class of target {target} has {len(members)} train rows: sizes must be smaller"
        )
    return rng.choice(members, size, replace=False)


def _compared(
    models: xr.Dataset,
    repeats: int,
    kinds: Sequence[str],
    sizes: Sequence[int],
    chosen: NDArray[np.int64],
    outputs: NDArray[np.int64],
) -> xr.Dataset:
    """Compare the outputs, and the classes where there are some, with those of models with all rows.

    ``outputs`` are the chosen targets' columns of what the models gave.
    """
    dims, at = ("removal", "size", "target"), np.arange(len(chosen))
    coords = {"removal": list(kinds), "size": list(sizes), "target": chosen}

    def own(name: str) -> tuple[NDArray[Any], NDArray[Any]]:
        """Values of models with all rows (repeats, targets), and of each removal its own target's.

        The second has the shape (kinds, sizes, targets, repeats).
        """
        # Models come as they were planned: without a removal, then by size, kind, target, repeat.
        values = models[name].values[:, outputs].reshape(-1, repeats, len(chosen))
        after = values[1:].reshape(len(sizes), len(kinds), len(chosen), repeats, len(chosen))
        return values[0], after[:, :, at, :, at].transpose(2, 1, 0, 3)

    full, after = own("output")
    variables: dict[str, Any] = {"change": (dims, full.mean(axis=0) - after.mean(axis=3))}
    if "predicted" in models:
        full, after = own("predicted")
        # Models with other seeds sometimes predict other classes: flips are compared with this chance.
        most = np.array([np.bincount(one).argmax() for one in full.T])
        variables["flips"] = (dims, (after != most[:, None]).mean(axis=3))
        variables["chance"] = (("target",), (full != most).mean(axis=0))
    return xr.Dataset(variables, coords=coords)
