"""An out-of-core, distributed feature store for data attribution.

Features are written by ``trakstore.features`` (which needs torch); everything here reads them.
"""

from __future__ import annotations

from trakstore.errors import TrakStoreError
from trakstore.linalg.approximate import approximate_top_k
from trakstore.linalg.factored import Scores
from trakstore.linalg.saving import drop_scores, open_scores, save_scores, sparse_scores
from trakstore.linalg.solvers import Damping
from trakstore.linalg.sums import group_scores
from trakstore.linalg.topk import top_k
from trakstore.scores.influence import influence_scores, self_scores
from trakstore.scores.kernel import KernelReport, kernel_report
from trakstore.scores.neighbours import neighbours
from trakstore.scores.similarity import grad_cos_scores, grad_dot_scores, whitened_cos_scores
from trakstore.scores.tracin import tracin_scores
from trakstore.scores.trak import trak_scores, trak_scores_of_arrays
from trakstore.spec import ProjectionSpec
from trakstore.storage.opening import open_store
from trakstore.storage.store import FeatureStore
from trakstore.storage.verify import verify_store

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
