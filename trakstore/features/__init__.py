"""Features: per-sample gradients of a torch model, projected and written to a store."""

from __future__ import annotations

from trakstore.features.featurize import Featurized, featurize, featurize_job
from trakstore.features.job import Job, load_job
from trakstore.features.outputs import (
    CausalLM,
    Contrastive,
    CrossEntropy,
    FunctionOutput,
    Margin,
    MaskedLM,
    ModelOutput,
    RowOutputs,
    SquaredError,
)

__all__ = [
    "CausalLM",
    "Contrastive",
    "CrossEntropy",
    "Featurized",
    "FunctionOutput",
    "Job",
    "Margin",
    "MaskedLM",
    "ModelOutput",
    "RowOutputs",
    "SquaredError",
    "featurize",
    "featurize_job",
    "load_job",
]
