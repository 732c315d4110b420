"""Import of the save directory of another program: traker 0.3 (``trak.TRAKer``).

A save directory has::

    metadata.json                    "JL dimension", "JL matrix type", "train set size"
    id_{model}.json                  {model: {"is_featurized": 0 or 1, "is_finalized": 0 or 1}}
    experiments.json                 {name: {"num_targets": ..., ...}}
    {model}/grads.mmap               (train, dim) projected gradients of the model output
    {model}/out_to_loss.mmap         (train, 1) 1 - p
    {model}/_is_featurized.mmap      (train, 1) int32
    {model}/{name}_grads.mmap        (num_targets, dim) the same of an experiment's targets

All ``.mmap`` files are in NumPy's format, float32 or float16. Features there are g·P/√p, where p is the
number of differentiated parameters and P has entries of variance 1 (normal, or ±1; never divided by
√dim): times √(p/dim) they are ours, with E[PᵀP] = I. The directory does not record p. Each model has a
P of its own, so that features of two epochs cannot be compared with each other.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import (
    DamagedError,
    IncompleteError,
    LocationError,
    NotFoundError,
    TrakStoreError,
    did_you_mean,
)
from trakstore.paths import exists, is_file
from trakstore.spec import FeatureDtype, ProjectionSpec
from trakstore.storage.backends.location import Where
from trakstore.storage.store import FeatureStore


def import_traker(
    save_dir: str | os.PathLike[str],
    store: Where,
    *,
    models: Sequence[int] | None = None,
    parameters: int | None = None,
    dtype: FeatureDtype = "float32",
) -> FeatureStore:
    """Copy the features of a finished traker 0.3 save directory into a store, block by block.

    Each model id becomes an epoch: its train samples the split ``train``, with ``out_to_loss``, the
    targets of each experiment a split of the experiment's name. The projection is recorded as
    ``external``. Finalised features (multiplied by the inverse kernel) and scores are not copied:
    they are computed from these. A copy that was stopped goes on when it is started again.

    Parameters
    ----------
    save_dir : path
        ``TRAKer(save_dir=...)``.
    store : path or URL
        Made when it is not there.
    models : sequence of int, optional
        Model ids; all by default.
    parameters : int, optional
        Number of scalar parameters that were differentiated. If it is given, features are multiplied by
        √(parameters/dim), so that their products estimate those of gradients; otherwise they are copied
        unchanged. TRAK scores are the same either way, since damping is relative.
    dtype : {"float32", "float16", "int8"}
        Stored dtype; float16 is traker's own default.

    Raises
    ------
    LocationError
        When there is no save directory.
    NotFoundError
        When a model does not exist, or its gradients were deleted (``del_grads=True``).
    IncompleteError
        When a model was not featurized completely.
    DamagedError
        When a file does not have the shape that the metadata says.
    SpecMismatchError
        When the store, or a split, holds something else.
    """
    source = _SaveDirectory.open(Path(save_dir))
    chosen = source.models if models is None else tuple(models)
    for model in chosen:
        source.require_finished(model)
    made = FeatureStore.create(
        store, projection=ProjectionSpec("external", dim=source.dim), dtype=dtype
    )
    scale = source.scale(parameters)
    # Blocks are written one by one, with the hash of some rows as the checkpoint. So a stopped copy can
    # go on, and other features under the same model id are refused.
    for model in chosen:
        q = source.array(model, "out_to_loss.mmap", (source.rows, 1))[:, 0]
        train = _Scaled(source.array(model, "grads.mmap", (source.rows, source.dim)), scale)
        made.write_split(model, "train", train, out_to_loss=q, checkpoint=train.fingerprint())
        for name, count in source.experiments.items():
            file = f"{name}_grads.mmap"
            if exists(source.path / str(model) / file):
                targets = _Scaled(source.array(model, file, (count, source.dim)), scale)
                made.write_split(model, name, targets, checkpoint=targets.fingerprint())
    return made


@dataclass(frozen=True)
class _SaveDirectory:
    """Contents of the small files of a save directory."""

    path: Path
    dim: int
    rows: int
    matrix: str
    finished: dict[int, bool]
    experiments: dict[str, int]

    @classmethod
    def open(cls, path: Path) -> _SaveDirectory:
        if not is_file(path / "metadata.json"):
            raise LocationError(f"{path} is not a traker save directory: it has no metadata.json")
        metadata = _json(path / "metadata.json")
        models: dict[int, bool] = {}
        for file in sorted(path.glob("id_*.json")):
            models |= {int(model): bool(s["is_featurized"]) for model, s in _json(file).items()}
        file = path / "experiments.json"
        experiments = _json(file) if exists(file) else {}
        try:
            size = int(metadata["JL dimension"]), int(metadata["train set size"])
            counts = {name: int(one["num_targets"]) for name, one in experiments.items()}
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedError(
                f"{path}: metadata.json or experiments.json lacks {error}"
            ) from error
        return cls(path, *size, str(metadata.get("JL matrix type")), models, counts)

    @property
    def models(self) -> tuple[int, ...]:
        """Model ids, in order."""
        return tuple(sorted(self.finished))

    def require_finished(self, model: int) -> None:
        """Refuse a model that does not exist, is not featurized, or lacks its gradients."""
        if model not in self.finished:
            raise NotFoundError(
                f"{self.path} has no model id {model}{did_you_mean(model, self.finished)}"
            )
        if not is_file(self.path / str(model) / "grads.mmap"):
            raise NotFoundError(
                f"{self.path} has no gradients of model id {model}: finalize_features was run with "
                f"del_grads=True, or they were moved; featurize again"
            )
        done = self.array(model, "_is_featurized.mmap", (self.rows, 1))
        count = int(np.count_nonzero(done == 1))
        if count < self.rows:
            raise IncompleteError(
                f"model id {model} in {self.path} has {count} of {self.rows} rows; finish it there"
            )

    def array(self, model: int, name: str, shape: tuple[int, int]) -> NDArray[Any]:
        """Open a file's array, without reading it."""
        path = self.path / str(model) / name
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DamagedError(f"{path} cannot be read: {error}") from error
        if array.shape != shape:
            raise DamagedError(f"{path} has shape {array.shape}, metadata.json says {shape}")
        return np.asarray(array)

    def scale(self, parameters: int | None) -> float:
        """Return the factor that gives features E[PᵀP] = I, if p is known."""
        if self.matrix == "na":  # no projection: P = I, so p = dim
            return math.sqrt(self.dim)
        if parameters is None:
            return 1.0
        if parameters < 1:
            raise TrakStoreError(f"parameters counts scalars (>= 1), got {parameters}")
        return math.sqrt(parameters / self.dim)


@dataclass(frozen=True)
class _Scaled:
    """Rows of an array times a number, in float32."""

    array: NDArray[Any]
    factor: float
    ndim: int = 2

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        return np.asarray(self.array[rows], dtype=np.float32) * np.float32(self.factor)

    def fingerprint(self) -> str:
        """Return a hash of the factor and at most 32 spaced rows, to recognise these features."""
        # Rows as they are in the file; the factor is hashed by itself.
        step = -(-len(self.array) // 32)
        some = hashlib.sha256(np.ascontiguousarray(self.array[::step]).tobytes())
        some.update(repr(self.factor).encode())
        return f"features:{some.hexdigest()}"


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise DamagedError(f"{path} cannot be read: {error}") from error
