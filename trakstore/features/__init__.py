"""Features: per-sample gradients of a torch model, projected and written to a store."""

from __future__ import annotations

from trakstore.features.chat import TokenCounts, chat_rows, count_tokens
from trakstore.features.featurize import Featurized, featurize, featurize_job
from trakstore.features.job import Job
from trakstore.features.load_job import load_job
from trakstore.features.outputs import (
    DPO,
    CausalLM,
    Contrastive,
    CrossEntropy,
    FunctionOutput,
    Margin,
    MaskedLM,
    ModelOutput,
    RowOutputs,
    SquaredError,
    Weighted,
)
from trakstore.features.packs import Documents
from trakstore.features.padding import pad_tokens
from trakstore.features.streamed import Streamed

__all__ = [
    "DPO",
    "CausalLM",
    "Contrastive",
    "CrossEntropy",
    "Documents",
    "Featurized",
    "FunctionOutput",
    "Job",
    "Margin",
    "MaskedLM",
    "ModelOutput",
    "RowOutputs",
    "SquaredError",
    "Streamed",
    "TokenCounts",
    "Weighted",
    "chat_rows",
    "count_tokens",
    "featurize",
    "featurize_job",
    "load_job",
    "pad_tokens",
]
