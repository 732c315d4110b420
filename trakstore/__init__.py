"""An out-of-core, distributed feature store for data attribution.

Features are written by ``trakstore.features`` (which needs torch); everything here reads them.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trakstore.errors import TrakStoreError
    from trakstore.kernels.solvers import Damping
    from trakstore.methods.influence import influence_scores, self_scores
    from trakstore.methods.kernel_report import KernelReport, kernel_report
    from trakstore.methods.neighbours import neighbours
    from trakstore.methods.similarity import grad_cos_scores, grad_dot_scores, whitened_cos_scores
    from trakstore.methods.tracin import tracin_scores
    from trakstore.methods.trak import trak_scores, trak_scores_of_arrays
    from trakstore.scores.approximate import approximate_top_k
    from trakstore.scores.factored import Scores
    from trakstore.scores.index_build import build_index
    from trakstore.scores.saving import drop_scores, open_scores, save_scores, sparse_scores
    from trakstore.scores.sums import group_scores
    from trakstore.scores.top_k import top_k
    from trakstore.scores.train_index import open_index
    from trakstore.serve.query import Query
    from trakstore.spec import ProjectionSpec
    from trakstore.storage.checking.verification import verify_store
    from trakstore.storage.opening import open_store
    from trakstore.storage.store import FeatureStore

__version__ = "0.1.0"

# Modules of the public names. A name is imported when it is first asked for: all of them would take
# NumPy, SciPy, Zarr, Dask and xarray, and more than a second.
_MODULES = {
    "Damping": "trakstore.kernels.solvers",
    "FeatureStore": "trakstore.storage.store",
    "KernelReport": "trakstore.methods.kernel_report",
    "ProjectionSpec": "trakstore.spec",
    "Query": "trakstore.serve.query",
    "Scores": "trakstore.scores.factored",
    "TrakStoreError": "trakstore.errors",
    "approximate_top_k": "trakstore.scores.approximate",
    "build_index": "trakstore.scores.index_build",
    "drop_scores": "trakstore.scores.saving",
    "grad_cos_scores": "trakstore.methods.similarity",
    "grad_dot_scores": "trakstore.methods.similarity",
    "group_scores": "trakstore.scores.sums",
    "influence_scores": "trakstore.methods.influence",
    "kernel_report": "trakstore.methods.kernel_report",
    "neighbours": "trakstore.methods.neighbours",
    "open_index": "trakstore.scores.train_index",
    "open_scores": "trakstore.scores.saving",
    "open_store": "trakstore.storage.opening",
    "save_scores": "trakstore.scores.saving",
    "self_scores": "trakstore.methods.influence",
    "sparse_scores": "trakstore.scores.saving",
    "top_k": "trakstore.scores.top_k",
    "tracin_scores": "trakstore.methods.tracin",
    "trak_scores": "trakstore.methods.trak",
    "trak_scores_of_arrays": "trakstore.methods.trak",
    "verify_store": "trakstore.storage.checking.verification",
    "whitened_cos_scores": "trakstore.methods.similarity",
}

__all__ = [
    "Damping",
    "FeatureStore",
    "KernelReport",
    "ProjectionSpec",
    "Query",
    "Scores",
    "TrakStoreError",
    "approximate_top_k",
    "build_index",
    "drop_scores",
    "grad_cos_scores",
    "grad_dot_scores",
    "group_scores",
    "influence_scores",
    "kernel_report",
    "neighbours",
    "open_index",
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


def __getattr__(name: str) -> Any:
    """Import a public name, or a module of the package, when it is first asked for."""
    if name in _MODULES:
        value = getattr(import_module(_MODULES[name]), name)
        globals()[name] = value
        return value
    # Doctest, pickle and others ask for names like __wrapped__, which are no modules.
    if not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
