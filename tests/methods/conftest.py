"""A store in memory that has what the methods ask of one."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
from zarr.storage import MemoryStore

from trakstore.errors import IncompleteError, NotFoundError, did_you_mean
from trakstore.passes.rows import ArrayRows
from trakstore.storage.backends.location import Location


@dataclass
class FakeSplit:
    epoch: int | str
    name: str
    columns: dict[str, np.ndarray]
    complete: bool = True
    reads: list[str] = field(default_factory=list)

    spec = SimpleNamespace(nonce=1, checkpoint=None)
    state = "as it was"
    masked = ()

    @property
    def location(self):
        """A place of its own each time: nothing that is stored there is found again."""
        return Location("memory", MemoryStore(), reopens=False)

    @property
    def rows(self):
        return len(self.columns["features"])

    @property
    def dim(self):
        return self.columns["features"].shape[1]

    def column(self, name):
        if name not in self.columns:
            raise NotFoundError(f"no column {name!r}")
        self.reads.append(name)
        return ArrayRows(self.columns[name], 8)

    def require_complete(self):
        if not self.complete:
            raise IncompleteError(f"{self.name} lacks rows")


@dataclass
class FakeStore:
    splits: dict[tuple[int | str, str], FakeSplit]
    spec: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(output=None))

    @property
    def epochs(self):
        return tuple(dict.fromkeys(epoch for epoch, _ in self.splits))

    def split(self, epoch, name):
        if epoch not in self.epochs:
            raise NotFoundError(f"no epoch {epoch!r}{did_you_mean(epoch, self.epochs)}")
        if (epoch, name) not in self.splits:
            raise NotFoundError(f"no split {name!r}")
        return self.splits[epoch, name]

    def open_splits(self, epochs, names):
        chosen = self.epochs_of(*names) if epochs is None else epochs
        return {e: tuple(self.split(e, name) for name in names) for e in chosen}

    def epochs_of(self, *splits):
        return tuple(e for e in self.epochs if all((e, name) in self.splits for name in splits))

    def splits_of(self, epoch):
        return tuple(name for e, name in self.splits if e == epoch)

    def arrays(self, name, column):
        return [s.columns[column] for (_, split), s in self.splits.items() if split == name]


@pytest.fixture
def store():
    """Two epochs of 7 targets and 60 train rows in 12 dimensions, and an epoch without targets."""
    rng = np.random.default_rng(3)

    def split(epoch, name, rows, scale):
        columns = {
            "features": (scale * rng.standard_normal((rows, 12))).astype(np.float32),
            "out_to_loss": rng.uniform(size=rows).astype(np.float32),
            "sample_id": np.arange(rows) + (1000 if name == "test" else 0),
        }
        return FakeSplit(epoch, name, columns)

    keys = [(0, "test", 7, 1.0), (0, "train", 60, 1.0), ("final", "test", 7, 0.1)]
    keys += [("final", "train", 60, 0.1)]
    return FakeStore({(epoch, name): split(epoch, name, *rest) for epoch, name, *rest in keys})


@pytest.fixture
def split_of():
    return FakeSplit
