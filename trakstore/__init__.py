"""An out-of-core, distributed feature store for data attribution."""

from __future__ import annotations

from trakstore.spec import ProjectionSpec
from trakstore.storage.store import FeatureStore, open_store

__version__ = "0.1.0"

__all__ = ["FeatureStore", "ProjectionSpec", "open_store"]
