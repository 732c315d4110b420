"""Origin of an answer's scores, in words that name no place of this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import trakstore
from trakstore.kernels.solvers import Damping
from trakstore.methods.by_name import find_method
from trakstore.methods.epochs import EpochPair
from trakstore.storage.layout import Epoch
from trakstore.storage.store import FeatureStore


def provenance_of(
    store: FeatureStore,
    pairs: Mapping[Epoch, EpochPair],
    method: str,
    damping: float | Damping,
    state: str,
) -> dict[str, Any]:
    """Describe the origin of scores of some epochs by a method."""
    c, train = Damping.of(damping), next(iter(pairs.values())).train
    used = {"absolute": c.absolute} if c.relative is None else {"relative": c.relative}
    return {
        "store": PurePath(str(store.location)).name,
        "projection": store.spec.projection.kind,
        "dim": train.dim,
        "train": train.stored.name,
        "train_rows": train.rows,
        "state": state,
        "damping": used if "damping" in find_method(method).options else None,
        "checkpoints": {
            str(epoch): (pair.known_weights or "")[:12] for epoch, pair in pairs.items()
        },
        "trakstore": trakstore.__version__,
    }
