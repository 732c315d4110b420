"""An out-of-core, distributed feature store for data attribution.

Features are written by ``trakstore.features`` (which needs torch); everything here reads them.
"""

from __future__ import annotations

from trakstore.errors import TrakStoreError
from trakstore.kernels.solvers import Damping
from trakstore.methods.influence import influence_scores, self_scores
from trakstore.methods.kernel_report import KernelReport, kernel_report
from trakstore.methods.neighbours import neighbours
from trakstore.methods.similarity import grad_cos_scores, grad_dot_scores, whitened_cos_scores
from trakstore.methods.tracin import tracin_scores
from trakstore.methods.trak import trak_scores, trak_scores_of_arrays
from trakstore.scores.factored import Scores
from trakstore.scores.saving import drop_scores, open_scores, save_scores, sparse_scores
from trakstore.scores.sums import group_scores
from trakstore.scores.top_k import top_k
from trakstore.scores.two_pass import approximate_top_k
from trakstore.spec import ProjectionSpec
from trakstore.storage.checking.verification import verify_store
from trakstore.storage.opening import open_store
from trakstore.storage.store import FeatureStore

__version__ = "0.1.0"

__all__ = [
    "Damping",
    "FeatureStore",
    "KernelReport",
    "ProjectionSpec",
    "Scores",
    "TrakStoreError",
    "approximate_top_k",
    "drop_scores",
    "grad_cos_scores",
    "grad_dot_scores",
    "group_scores",
    "influence_scores",
    "kernel_report",
    "neighbours",
    "open_scores",
    "open_store",
    "save_scores",
    "self_scores",
    "sparse_scores",
    "top_k",
    "tracin_scores",
    "trak_scores",
    "trak_scores_of_arrays",
    "verify_store",
    "whitened_cos_scores",
]
