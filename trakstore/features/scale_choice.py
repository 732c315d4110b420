"""The scale of a store's gradients: the one that it has, or for a new store the job's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trakstore.errors import SpecMismatchError
from trakstore.features.job import Job
from trakstore.features.optimizer_moments import adam_moments, optimizer_file
from trakstore.features.outputs import ModelOutput
from trakstore.features.parameters import parameter_spec, select_parameters
from trakstore.features.projectors import Projector
from trakstore.features.projectors.scaled import scaled
from trakstore.features.sampled_moments import sampled_moments
from trakstore.features.second_moments import Moments, factored, scale_factors
from trakstore.features.sharding import WHOLE, Sharding
from trakstore.spec import ParameterSpec, ScaleSource, ScaleSpec, StoreSpec
from trakstore.storage.backends.location import Location
from trakstore.storage.store import FeatureStore
from trakstore.storage.tables.scale_factors import Factors, factors_digest, read_factors

__all__ = ["ChosenScale", "new_scale", "scale_of_store"]


@dataclass(frozen=True)
class ChosenScale:
    """Factors of all parameters, and their description in the store's spec."""

    spec: ScaleSpec
    factors: Factors

    def scaled(self, projector: Projector) -> Projector:
        """Return the projector of scaled gradients."""
        sides: dict[str, tuple[Tensor, Tensor]] = {}
        at, across = 0, 0
        for name, (rows, columns) in projector.matrices.items():
            own = self.factors.rows[at : at + rows], self.factors.columns[across : across + columns]
            sides[name] = torch.from_numpy(own[0].copy()), torch.from_numpy(own[1].copy())
            at, across = at + rows, across + columns
        return scaled(projector, sides)


def scale_of_store(store: FeatureStore, job: Job, parameters: ParameterSpec) -> ChosenScale | None:
    """Read a store's scale, if the job asks for the same one, or leaves it open.

    Raises
    ------
    SpecMismatchError
        When the job asks for another.
    """
    there, asked = store.spec.scale, _source(job)
    if asked is not None and (there is None or there.source != asked):
        got = "none" if there is None else f"one from {there.source!r}"
        raise SpecMismatchError(
            f"{store.location} has {got} as the scale of its gradients, and {asked!r} is asked: leave "
            f"scale= out to take the store's, or write to another store"
        )
    if there is None:
        return None
    if asked == "given":
        made = _of_moments("given", _given(job, parameters), parameters)
        if made.spec != there:
            raise SpecMismatchError(
                f"{store.location} has gradients scaled by factors {there.digest[:12]}, those that are "
                f"given are {made.spec.digest[:12]}: leave scale= out to take the store's"
            )
    return stored_scale(store.location, store.spec)


def stored_scale(location: Location, spec: StoreSpec) -> ChosenScale | None:
    """Read the scale that a store's spec names; None where it names none."""
    if spec.scale is None or spec.parameters is None:
        return None
    return ChosenScale(spec.scale, read_factors(location, spec.scale.digest, spec.parameters))


def new_scale(
    job: Job,
    output: ModelOutput,
    split: str,
    device: torch.device,
    sharding: Sharding = WHOLE,
) -> ChosenScale | None:
    """Make the scale that a job asks for, at the model's present weights; None without one.

    Parameters
    ----------
    split : str
        Data set from which samples are taken, if the scale is estimated.
    sharding : Sharding
        Spread of the model over ranks.
    """
    source = _source(job)
    if source is None:
        return None
    parameters = parameter_spec(select_parameters(job.model, job.parameters), job.parameters)
    if source == "samples":
        moments = sampled_moments(job, output, split, device, sharding)
        return _of_moments(source, moments, parameters)
    return _of_moments(source, _given(job, parameters), parameters)


def _source(job: Job) -> ScaleSource | None:
    if job.scale is None:
        return None
    if isinstance(job.scale, Path):
        return "adam"
    if isinstance(job.scale, Mapping):
        return "given"
    return "samples" if job.scale == "samples" else "adam"


def _given(job: Job, parameters: ParameterSpec) -> dict[str, Moments]:
    if isinstance(job.scale, Mapping):
        return factored(job.scale, parameters)
    path = job.scale if isinstance(job.scale, Path) else optimizer_file(job.last_checkpoint)
    return factored(adam_moments(path, job.model), parameters)


def _of_moments(
    source: ScaleSource, moments: Mapping[str, Moments], parameters: ParameterSpec
) -> ChosenScale:
    made = scale_factors(moments)
    sides = zip(*(made[name] for name, _ in parameters.shapes), strict=True)
    factors = Factors(*(np.concatenate([one.numpy() for one in side]) for side in sides))
    return ChosenScale(ScaleSpec(source, factors_digest(factors, parameters)), factors)
