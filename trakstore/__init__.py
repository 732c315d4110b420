"""An out-of-core, distributed feature store for data attribution.

Features are written by ``trakstore.features`` (which needs torch); everything here reads them.
"""

from __future__ import annotations

from trakstore.errors import TrakStoreError
from trakstore.linalg.factored import Scores
from trakstore.linalg.saving import open_scores, save_scores, sparse_scores
from trakstore.linalg.solvers import Damping
from trakstore.linalg.topk import top_k
from trakstore.scores.kernel import KernelReport, kernel_report
from trakstore.scores.trak import trak_scores, trak_scores_of_arrays
from trakstore.spec import ProjectionSpec
from trakstore.storage.store import FeatureStore, open_store

__version__ = "0.1.0"

__all__ = [
    "Damping",
    "FeatureStore",
    "KernelReport",
    "ProjectionSpec",
    "Scores",
    "TrakStoreError",
    "kernel_report",
    "open_scores",
    "open_store",
    "save_scores",
    "sparse_scores",
    "top_k",
    "trak_scores",
    "trak_scores_of_arrays",
]
