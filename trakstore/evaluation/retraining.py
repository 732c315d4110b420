"""Models trained on parts of the data, kept in the store: made where they are missing, or brought."""

# Annotations are not postponed: a postponed one of a named tuple is a name that only this module knows.
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from trakstore.errors import NumericsError, SpecMismatchError, TrakStoreError
from trakstore.named import blamed_on
from trakstore.passes.dask_cluster import active_client, cluster_errors
from trakstore.quantities import as_whole
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

__all__ = ["Plan", "Retrained", "Trainer", "add_retrained", "retrain", "retrained_models"]


class Plan(Protocol):
    """Which rows each model is trained on, as a :class:`~trakstore.sampling.SubsetPlan` has it."""

    def to_dict(self) -> dict[str, Any]:
        """What the others follow from, in plain values: equal for equal plans."""

    def masks(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Rows of models start..stop, shape (models, n)."""

    def seeds(self, start: int, stop: int) -> NDArray[np.int64]:
        """Their seeds."""


class Retrained(NamedTuple):
    """What models gave for the targets, shapes (models, targets)."""

    output: NDArray[np.float32]
    predicted: NDArray[np.int64] | None = None


Trainer: TypeAlias = Callable[[NDArray[np.bool_], NDArray[np.int64]], Retrained]
_TRAINER = "trainer"  # in a stored plan: what the trainer told of itself


def retrain(
    trainer: Trainer,
    store: Where | FeatureStore,
    name: str,
    plan: Plan,
    models: int,
    *,
    at_once: int = 50,
    finished: Callable[[int], None] | None = None,
) -> xr.Dataset:
    """Train models on the subsets of a plan, as many as are missing of the first ``models``.

    Some at a time are trained and stored, so that a run that is stopped goes on where it was, and
    models can be added later. On a Dask cluster that is active here, its workers share them.

    Parameters
    ----------
    trainer : callable
        Of subsets (g, n) of bool and seeds (g,) of int64; gives a :class:`Retrained` with outputs
        (g, m). A :class:`SubsetTrainer`, or anything that can be pickled for a cluster. What its
        ``to_dict()`` tells, where it has one, is stored with the models: plain values for JSON, equal
        for trainers that train alike.
    store : FeatureStore or its place
        A place may have models before it is a store.
    name : str
        Of this set of models.
    plan : SubsetPlan, or the like
    models : int
        How many there shall be.
    at_once : int
        Trained together, and lost together when the run is stopped.
    finished : callable, optional
        Told how many models were added.

    Returns
    -------
    Dataset
        As :func:`retrained_models` gives it.

    Raises
    ------
    SpecMismatchError
        The name is that of models of another plan, or that another trainer made.
    TrakStoreError
        The trainer gave something else than (g, m) numbers, or tells what JSON has no values for.
    NumericsError
        A model's outputs are not finite.
    LocationError
        Another process trains models of that name just now.
    """
    models, at_once = as_whole(models, "models", 0), as_whole(at_once, "at_once", 1)
    location = location_of(store, create=True)
    with claimed(location, evaluation_path(name), "retrain"):
        parts = model_parts(location, name)
        told = {**plan.to_dict(), **_told(trainer)}
        _check_plan(parts, name, told)
        missing = list(_missing(parts, models, at_once))
        what, client = (trainer, location, name, plan, told), active_client()
        if client is None:
            counts: Iterable[int] = (_train(*what, *at) for at in missing)
        else:
            from distributed import as_completed

            begin_set(location, name)
            tasks = [client.submit(_train, *what, *at, pure=False) for at in missing]
            counts = (task.result() for task in as_completed(tasks))
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
    """Store models that were trained elsewhere, after those that are there.

    Parameters
    ----------
    store : FeatureStore or its place
    name : str
        Of this set of models.
    subsets : ndarray of bool, shape (models, n)
        Train rows of each.
    outputs : ndarray, shape (models, m)
        Their outputs for the targets.

    Returns
    -------
    Dataset
        As :func:`retrained_models` gives it.

    Raises
    ------
    TrakStoreError
        Shapes that do not go together, or with those that are there.
    SpecMismatchError
        The name is that of models of a plan.
    NumericsError
        Outputs that are not finite.
    """
    location, subset = location_of(store, create=True), np.asarray(subsets, dtype=bool)
    output = _checked(np.asarray(outputs), len(subset))
    plan = {"rows": int(subset.shape[-1]), "targets": output.shape[1]}
    if subset.ndim != 2:
        raise TrakStoreError(f"needed subsets (models, train rows), got {subset.shape}")
    with claimed(location, evaluation_path(name), "add models"):
        parts = model_parts(location, name)
        _check_plan(parts, name, plan)
        first = max((part.first + part.count for part in parts), default=0)
        add_models(location, name, plan, first, subset, output)
    return retrained_models(store, name)


def retrained_models(store: Where | FeatureStore, name: str) -> xr.Dataset:
    """Models that were trained again, read whole.

    Returns
    -------
    Dataset
        ``subset`` ("model", "train") of bool; ``output`` ("model", "target") of float32; where
        there are classes, ``predicted`` of int64; the coordinate ``model``: numbers, ascending.

    Raises
    ------
    NotFoundError
        When there are none of that name.
    DamagedError
        When a part cannot be read.
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
    numbers = np.concatenate([np.arange(part.first, part.first + part.count) for part in parts])
    order = np.argsort(numbers, kind="stable")
    columns = {
        array.name: (
            array.dimensions,
            np.concatenate([part.read(array.name) for part in parts])[order],
        )
        for array in parts[0].arrays
    }
    return xr.Dataset(columns, coords={"model": numbers[order]}, attrs=dict(parts[0].plan))


def _check_plan(parts: list[ModelPart], name: str, plan: dict[str, Any]) -> None:
    """That a set goes on as it began; some parts may tell of no trainer, and so may the plan."""
    for part in parts:
        stored, wanted = dict(part.plan), dict(plan)
        by, wanted_by = stored.pop(_TRAINER, None), wanted.pop(_TRAINER, None)
        if stored != wanted:
            raise SpecMismatchError(
                f"models named {name!r} are of {stored}, not of {wanted}: choose another name"
            )
        if None not in (by, wanted_by) and by != wanted_by:
            raise SpecMismatchError(
                f"models named {name!r} were made by another trainer: "
                f"{'; '.join(_differences(by, wanted_by))}; choose another name"
            )


def _told(trainer: Trainer) -> dict[str, Any]:
    """What a trainer tells of itself, as it is read back; nothing where it cannot tell."""
    to_dict = getattr(trainer, "to_dict", None)
    if to_dict is None:
        return {}
    try:
        return {_TRAINER: json.loads(json.dumps(to_dict(), allow_nan=False))}
    except (TypeError, ValueError) as error:
        raise TrakStoreError(
            f"to_dict() of a trainer gives plain values for JSON, without NaN: {error}"
        ) from error


def _differences(stored: Any, wanted: Any, where: str = "") -> Iterator[str]:
    """Each value that differs, by its place: ``optimizer.lr: theirs is 0.1, this one's 0.2``."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for key in {**stored, **wanted}:
            at = f"{where}.{key}" if where else str(key)
            yield from _differences(stored.get(key), wanted.get(key), at)
    elif stored != wanted:
        yield f"{where}: theirs has {stored!r}, this one {wanted!r}"


def _missing(parts: list[ModelPart], models: int, at_once: int) -> Iterator[tuple[int, int]]:
    """Ranges of numbers below ``models`` that no part has, each of ``at_once`` at most."""
    there = {q for part in parts for q in range(part.first, part.first + part.count)}
    start = 0
    while start < models:
        stop = start
        while stop < min(models, start + at_once) and stop not in there:
            stop += 1
        if stop > start:
            yield start, stop
        start = max(stop, start + 1)


def _train(
    trainer: Trainer,
    location: Location,
    name: str,
    plan: Plan,
    told: dict[str, Any],
    start: int,
    stop: int,
) -> int:
    """Train models start..stop and store them; how many they are."""
    subset = plan.masks(start, stop)
    with blamed_on("the trainer"):
        made = trainer(subset, plan.seeds(start, stop))
    if not isinstance(made, Retrained):
        raise TrakStoreError(
            f"a trainer gives a Retrained with outputs (models, targets), got {type(made).__name__}"
        )
    output = _checked(np.asarray(made.output), len(subset))
    add_models(location, name, told, start, subset, output, made.predicted)
    return len(subset)


def _checked(output: NDArray[Any], models: int) -> NDArray[np.float32]:
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
