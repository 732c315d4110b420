"""Models trained on parts of the data, kept in the store: trained when missing, or added."""

# Annotations are not postponed: a postponed one of a named tuple is a name that only this module knows.
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import nullcontext
from itertools import groupby
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from trakstore.errors import NumericsError, TrakStoreError
from trakstore.evaluation.same_trainer import check_plan, description
from trakstore.named import blamed_on
from trakstore.passes.dask_cluster import active_client, cluster_errors
from trakstore.planning import ranges
from trakstore.quantities import as_mask, as_whole, shown
from trakstore.storage.backends.location import Location, Where
from trakstore.storage.claims import claimed
from trakstore.storage.columns import narrowed_column
from trakstore.storage.layout import evaluation_path
from trakstore.storage.opening import location_of
from trakstore.storage.store import FeatureStore
from trakstore.storage.tables.retrained import (
    ModelPart,
    add_models,
    begin_set,
    missing_set,
    model_parts,
)


class Plan(Protocol):
    """Rows on which each model is trained, in the form of :class:`~trakstore.sampling.SubsetPlan`."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that determine rows and seeds: equal for equal plans."""

    def masks(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Rows of models start..stop, shape (models, n)."""

    def seeds(self, start: int, stop: int) -> NDArray[np.int64]:
        """Seeds of models start..stop."""


class Retrained(NamedTuple):
    """Outputs of models for the targets.

    Attributes
    ----------
    output : ndarray of float32, shape (models, targets)
        The higher, the more certain, such as the margin.
    predicted : ndarray of int64, shape (models, targets), or None
        Classes that the models predict, if there are classes.

    Examples
    --------
    >>> Retrained(np.zeros((2, 6), np.float32)).output.shape
    (2, 6)
    """

    output: NDArray[np.float32]
    predicted: NDArray[np.int64] | None = None


Trainer: TypeAlias = Callable[[NDArray[np.bool_], NDArray[np.int64]], Retrained]


def retrain(
    trainer: Trainer,
    store: Where | FeatureStore,
    name: str,
    plan: Plan,
    models: int,
    *,
    at_once: int = 50,
    finished: Callable[[int], None] | None = None,
    targets: Collection[int] | None = None,
) -> xr.Dataset:
    """Train models on the subsets of a plan, as many as are missing of the first ``models``.

    Some models at a time are trained and stored, so that a stopped run goes on, and models can be added
    later. The workers of an active Dask cluster share them.

    Parameters
    ----------
    trainer : callable
        Of subsets (g, n) of bool and seeds (g,) of int64; gives a :class:`Retrained` with outputs
        (g, m). A :class:`SubsetTrainer`, or anything that can be pickled for a cluster. What its
        ``to_dict()`` gives, where it has one, is stored with the models: plain values for JSON, equal
        for trainers that train alike. What ``count_targets()`` gives, where it has one, is m, which is
        known then before anything is trained.
    store : FeatureStore or its place
        The place may have models before it is a store.
    name : str
        Name of this set of models.
    plan : SubsetPlan, or the like
        Rows and seed of each model, by its number.
    models : int
        Number of models in the end.
    at_once : int
        Models that are trained together, and lost together if the run is stopped.
    finished : callable, optional
        Called with the number of models that were added.
    targets : collection of int, optional
        Numbers of targets m that will do; any when None. Others are refused before they are stored.

    Returns
    -------
    Dataset
        Models, as :func:`retrained_models` returns them.

    Raises
    ------
    SpecMismatchError
        When the name is that of models of another plan, or of another trainer.
    TrakStoreError
        The trainer gave something else than (g, m) numbers, or of other targets, or describes itself
        by what is not JSON; a trainer, plan or ``finished`` that cannot be called.
    NumericsError
        When a model's outputs are not finite.
    LocationError
        When another process is training models of that name.

    Examples
    --------
    >>> from trakstore.evaluation import SubsetPlan
    >>> def trainer(subsets, seeds):
    ...     return Retrained(subsets.sum(1, keepdims=True).astype(np.float32))
    >>> models = retrain(trainer, "memory://plan", "halves", SubsetPlan(rows=24), models=4)
    >>> models["subset"].shape, models["output"].values.ravel().tolist()
    ((4, 24), [12.0, 12.0, 12.0, 12.0])
    """
    models, at_once = as_whole(models, "models", 0), as_whole(at_once, "at_once", 1)
    _check_called(trainer, plan, finished)
    location = location_of(store, create=True)
    # Two runs of one name would train the same models twice, and give models equal numbers.
    with claimed(location, evaluation_path(name), "retrain"):
        parts = model_parts(location, name)
        document = {**plan.to_dict(), **description(trainer)}
        check_plan(parts, name, document)
        missing = list(_missing(parts, models, at_once))
        wanted = _wanted_targets(parts, targets)
        if missing and hasattr(trainer, "count_targets"):
            _check_targets(trainer.count_targets(), wanted)
        task, client = (trainer, location, name, plan, document, wanted), active_client()
        # Lazily, one after the other: what was trained is stored, and said, before the next begins.
        if client is None:
            counts: Iterable[int] = (_train(*task, *numbers) for numbers in missing)
        else:
            from distributed import as_completed

            begin_set(location, name)
            # Not pure: a task writes to the store, so that an earlier result cannot replace it.
            tasks = [client.submit(_train, *task, *numbers, pure=False) for numbers in missing]
            counts = (one.result() for one in as_completed(tasks))
        with nullcontext() if client is None else cluster_errors(client):
            for count in counts:
                if finished is not None:
                    finished(count)
    return retrained_models(store, name)


def add_retrained(
    store: Where | FeatureStore,
    name: str,
    subsets: NDArray[np.bool_],
    outputs: NDArray[Any],
) -> xr.Dataset:
    """Store models that were trained elsewhere, after the existing ones.

    Parameters
    ----------
    store : FeatureStore or its place
        The place may have models before it is a store.
    name : str
        Name of this set of models.
    subsets : ndarray of bool, shape (models, n)
        Train rows of each.
    outputs : ndarray, shape (models, m)
        Their outputs for the targets.

    Returns
    -------
    Dataset
        Models, as :func:`retrained_models` returns them.

    Raises
    ------
    TrakStoreError
        When shapes do not fit together, or do not fit the existing models; when subsets are anything
        but booleans or 0 and 1.
    SpecMismatchError
        When the name is that of models of a plan.
    NumericsError
        When outputs are not finite.

    Examples
    --------
    >>> subsets = np.random.default_rng(0).random((5, 24)) < 0.5
    >>> add_retrained("memory://elsewhere", "halves", subsets, np.ones((5, 6))).sizes
    Frozen({'model': 5, 'train': 24, 'target': 6})
    """
    subset = as_mask(subsets, "subsets")
    if subset.ndim != 2:
        raise TrakStoreError(f"needed subsets (models, train rows), got {subset.shape}")
    output = _checked(np.asarray(outputs), len(subset))
    plan = {"rows": int(subset.shape[1]), "targets": output.shape[1]}
    location = location_of(store, create=True)
    with claimed(location, evaluation_path(name), "add models"):
        parts = model_parts(location, name)
        check_plan(parts, name, plan)
        # After those that are there, in the order in which they are brought.
        first = max((_numbers(part).stop for part in parts), default=0)
        add_models(location, name, plan, first, subset, output)
    return retrained_models(store, name)


def retrained_models(store: Where | FeatureStore, name: str) -> xr.Dataset:
    """Read all models of a set.

    Parameters
    ----------
    store : FeatureStore or its place
        Store to which the models were added.
    name : str
        Name of the set of models.

    Returns
    -------
    Dataset
        ``subset`` ("model", "train") of bool; ``output`` ("model", "target") of float32; if there are
        classes, ``predicted`` of int64; the coordinate ``model``: numbers, ascending.

    Raises
    ------
    NotFoundError
        When there are none of that name.
    DamagedError
        When a part cannot be read.
    TrakStoreError
        When parts are of different targets or train rows.

    Examples
    --------
    >>> subsets = np.random.default_rng(0).random((5, 24)) < 0.5
    >>> models = add_retrained("memory://kept", "halves", subsets, np.ones((5, 6)))
    >>> retrained_models("memory://kept", "halves")["subset"].dims
    ('model', 'train')
    """
    location = location_of(store)
    parts = model_parts(location, name)
    if not parts:
        raise missing_set(location, name)
    shapes = {tuple(array.shape[1] for array in part.arrays[:2]) for part in parts}
    if len(shapes) > 1:
        raise TrakStoreError(
            f"models named {name!r} are of different (train rows, targets): {sorted(shapes)}; "
            f"a trainer must have the same targets at all times"
        )
    numbers = np.concatenate([_numbers(part) for part in parts])
    order = np.argsort(numbers, kind="stable")
    columns = {}
    for array in parts[0].arrays:
        values = np.concatenate([part.read(array.name) for part in parts])
        columns[array.name] = (array.dimensions, values[order])
    return xr.Dataset(columns, coords={"model": numbers[order]}, attrs=dict(parts[0].plan))


def _check_called(trainer: object, plan: object, finished: object) -> None:
    """Refuse objects that cannot be called, before anything is claimed or trained."""
    if not callable(trainer):
        raise TrakStoreError(
            f"trainer must be a function of subsets and seeds, got {shown(trainer)}"
        )
    if not all(callable(getattr(plan, name, None)) for name in ("to_dict", "masks", "seeds")):
        raise TrakStoreError(f"plan must be a SubsetPlan, or the like, got {shown(plan)}")
    if finished is not None and not callable(finished):
        raise TrakStoreError(f"finished must be a function of a number, got {shown(finished)}")


def _missing(parts: list[ModelPart], models: int, at_once: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of numbers below ``models`` that no part has, of at most ``at_once`` each."""
    there = {number for part in parts for number in _numbers(part)}
    missing = [number for number in range(models) if number not in there]
    # In a run of consecutive numbers, number less position is one value.
    for _, run in groupby(enumerate(missing), lambda pair: pair[1] - pair[0]):
        numbers = [number for _, number in run]
        for start, stop in ranges(len(numbers), at_once):
            yield numbers[start], numbers[stop - 1] + 1


def _numbers(part: ModelPart) -> range:
    return range(part.first, part.first + part.count)


def _train(
    trainer: Trainer,
    location: Location,
    name: str,
    plan: Plan,
    document: dict[str, Any],
    targets: frozenset[int] | None,
    start: int,
    stop: int,
) -> int:
    """Train models start..stop and store them; return their number."""
    subset = plan.masks(start, stop)
    with blamed_on("the trainer"):
        result = trainer(subset, plan.seeds(start, stop))
    if not isinstance(result, Retrained):
        raise TrakStoreError(
            f"a trainer gives a Retrained with outputs (models, targets), got {type(result).__name__}"
        )
    output = _checked(np.asarray(result.output), len(subset))
    _check_targets(output.shape[1], targets)
    predicted = _checked_classes(result.predicted, output.shape)
    add_models(location, name, document, start, subset, output, predicted)
    return len(subset)


def _wanted_targets(
    parts: list[ModelPart], targets: Collection[int] | None
) -> frozenset[int] | None:
    """Return the numbers of targets that new models may have: that of the models which are there.

    Raises
    ------
    TrakStoreError
        Models are there, of none of the numbers that will do.
    """
    wanted = None if targets is None else frozenset(targets)
    there = {array.shape[1] for part in parts for array in part.arrays if array.name == "output"}
    for count in there:
        _check_targets(count, wanted)
    return frozenset(there) or wanted


def _check_targets(count: int, wanted: frozenset[int] | None) -> None:
    if wanted is not None and count not in wanted:
        raise TrakStoreError(
            f"outputs of the models are of {count} targets: needed "
            f"{' or '.join(map(str, sorted(wanted)))}, as the trainer's other models or the scores have"
        )


def _checked_classes(predicted: Any, shape: tuple[int, ...]) -> NDArray[np.int64] | None:
    """Return predicted classes as they are stored, once there is a whole number for each output."""
    if predicted is None:
        return None
    classes = np.asarray(predicted)
    if classes.shape != shape or classes.dtype.kind not in "iu":
        raise TrakStoreError(
            f"needed predicted classes of shape {shape}, whole numbers, got {classes.dtype} of "
            f"{classes.shape}"
        )
    return classes.astype(np.int64)


def _checked(output: NDArray[Any], models: int) -> NDArray[np.float32]:
    """Return outputs as they are stored, after checking that they are finite numbers for each model."""
    if output.ndim != 2 or len(output) != models or output.dtype.kind not in "fiu":
        raise TrakStoreError(
            f"needed outputs of shape ({models}, targets), got {output.dtype} of {output.shape}"
        )
    if not np.isfinite(output).all():
        bad = int(np.flatnonzero(~np.isfinite(output).all(axis=1))[0])
        raise NumericsError(
            f"outputs of model {bad} of these {models} are NaN or infinite: train it otherwise"
        )
    return narrowed_column(output, np.float32, "outputs")
