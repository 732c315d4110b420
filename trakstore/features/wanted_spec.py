"""The spec of the store that a job writes to, and the output that it has on a device."""

from __future__ import annotations

import torch

from trakstore.features.job import Job
from trakstore.features.outputs import ModelOutput, as_output
from trakstore.features.precision import Autocast
from trakstore.features.scale_choice import ChosenScale
from trakstore.spec import ParameterSpec, ProjectionSpec, StoreSpec
from trakstore.storage.store import FeatureStore

__all__ = ["output_on", "wanted_spec"]

_DIM = 2048
# Outputs for which a projection of each epoch's own was measured to be better.
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
    """Return the spec that this job needs; all that the job leaves open is as the store has it."""
    projection = job.projector or (store.spec.projection if store else _default(output))
    dtype = job.dtype or (store.spec.dtype if store else "float32")
    keep_bits = job.keep_bits or (store.spec.keep_bits if store else None)
    named = None if scale is None else scale.spec
    less = None if job.precision == "float32" else job.precision
    return StoreSpec(projection, output.spec, parameters, dtype, keep_bits, less, named)
