"""The spec of the store that a job writes to, and the job's output on a device."""

from __future__ import annotations

import torch

from trakstore.features.job import Job
from trakstore.features.outputs import ModelOutput, as_output
from trakstore.features.parameters import parameter_spec, select_parameters
from trakstore.features.precision import Autocast
from trakstore.features.scale_choice import ChosenScale, scale_of_store
from trakstore.spec import ParameterSpec, ProjectionSpec, StoreSpec, check_equal
from trakstore.storage.store import FeatureStore

__all__ = ["check_job", "output_on", "wanted_spec"]

_DIM = 2048
# Outputs for which measurements favour a projection of each epoch's own.
_PER_EPOCH = ("causal_lm", "masked_lm")


def _default(output: ModelOutput) -> ProjectionSpec:
    """Return the projection of a new store whose job leaves it open."""
    spec = output.spec
    # A weighted output names the one that it weights.
    names = {spec.name, dict(spec.options).get("output")}
    return ProjectionSpec("sjlt", dim=_DIM, per_epoch=not names.isdisjoint(_PER_EPOCH))


def output_on(job: Job, device: torch.device) -> ModelOutput:
    """Return the output of a job, under autocast where the job says so."""
    output = as_output(job.output)
    return Autocast(output, device) if job.precision == "bfloat16" else output


def wanted_spec(
    job: Job,
    store: FeatureStore | None,
    output: ModelOutput,
    parameters: ParameterSpec,
    scale: ChosenScale | None,
) -> StoreSpec:
    """Return the spec that a job needs; what the job leaves open is taken from the store."""
    projection = job.projector or (store.spec.projection if store else _default(output))
    dtype = job.dtype or (store.spec.dtype if store else "float32")
    keep_bits = job.keep_bits or (store.spec.keep_bits if store else None)
    named = None if scale is None else scale.spec
    less = None if job.precision == "float32" else job.precision
    return StoreSpec(projection, output.spec, parameters, dtype, keep_bits, less, named)


def check_job(job: Job, store: FeatureStore, device: torch.device, remedy: str) -> None:
    """Refuse a job whose features would not be of the kind that a store holds.

    Parameters
    ----------
    job : Job
        Job whose model may have any weights.
    store : FeatureStore
        Store whose features are to be used with those of the job.
    device : torch.device
        Device that the job runs on.
    remedy : str
        Last words of the message: what to do about it.

    Raises
    ------
    SpecMismatchError
        When output, parameters, projection, scale, precision or dtype differ; both values are shown.
    """
    parameters = parameter_spec(select_parameters(job.model, job.parameters), job.parameters)
    scale = scale_of_store(store, job, parameters)
    wanted = wanted_spec(job, store, output_on(job, device), parameters, scale)
    check_equal(store.spec, wanted, str(store.location), remedy)
