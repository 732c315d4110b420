"""A store under any sequence of operations is what a dictionary of arrays says it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import trakstore as ts
from trakstore.errors import IncompleteError, NotFoundError
from trakstore.spec import SplitSpec
from trakstore.storage.columns import stored_rows
from trakstore.storage.writer import BlockWriter

DIM, BLOCK = 4, 3
COLUMNS = (("features", "float32"), ("norm", "float32"), ("sample_id", "int64"))
names = st.sampled_from([(0, "train"), (0, "test"), (1, "train")])


def rows_of(seed: int, count: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)


class Died(Exception):
    """The writer is gone, in the middle of its work."""


class Model:
    """A split as it should be: rows, which are written, which are masked."""

    def __init__(self, rows: np.ndarray[Any, Any]) -> None:
        self.rows, self.masked = rows, set[int]()
        self.written = np.zeros(len(rows), dtype=bool)

    def block(self, number: int) -> slice:
        return slice(number * BLOCK, min(len(self.rows), (number + 1) * BLOCK))

    @property
    def complete(self) -> bool:
        return bool(self.written.all())


class StoreMachine(RuleBasedStateMachine):
    """Creates, writes blocks in any order, dies between columns, appends, masks, drops, reopens."""

    def __init__(self) -> None:
        super().__init__()
        self.place = zarr.storage.MemoryStore()
        self.store = ts.FeatureStore.create(self.place, projection=ts.ProjectionSpec("sjlt", DIM))
        self.model: dict[tuple[int, str], Model] = {}

    def split(self, name: tuple[int, str]) -> Any:
        return self.store.split(*name)

    @rule(name=names, count=st.integers(1, 10), seed=st.integers(0, 9))
    def create(self, name: tuple[int, str], count: int, seed: int) -> None:
        if name not in self.model:
            self.store.create_split(*name, SplitSpec(count, DIM, COLUMNS, block_rows=BLOCK))
            self.model[name] = Model(rows_of(seed, count))

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def write(self, data: Any) -> None:
        name, number = self.draw_block(data)
        BlockWriter(self.split(name)).write(number, self.columns(name, number))
        self.model[name].written[self.model[name].block(number)] = True

    @precondition(lambda self: self.model)
    @rule(data=st.data(), after=st.integers(0, 3))
    def die_while_writing(self, data: Any, after: int) -> None:
        """Chunks come one by one; the writer dies after some of them, before the marker."""
        name, number = self.draw_block(data)
        if self.model[name].written[self.model[name].block(number)].all():
            return  # a writer passes over blocks that are there
        writer, left = BlockWriter(self.split(name)), iter(range(after))
        whole = self.place.set

        async def dying(key: str, value: Any) -> None:
            if next(left, None) is None:
                raise Died
            await whole(key, value)

        self.place.set = dying  # type: ignore[method-assign]
        try:
            with pytest.raises(Died):
                writer.write(number, self.columns(name, number))
        finally:
            self.place.set = whole  # type: ignore[method-assign]

    @precondition(lambda self: self.model)
    @rule(data=st.data(), count=st.integers(1, 5), seed=st.integers(10, 19))
    def append(self, data: Any, count: int, seed: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.model)))
        model, more = self.model[name], rows_of(seed, count)
        if not model.complete:
            with pytest.raises(IncompleteError):
                self.store.append(*name, more)
            return
        self.store.append(*name, more)
        model.rows = np.concatenate([model.rows, more])
        model.written = np.ones(len(model.rows), dtype=bool)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), masked=st.booleans())
    def mask(self, data: Any, masked: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.model)))
        model = self.model[name]
        if not model.complete:
            return
        ids = data.draw(st.sets(st.integers(0, len(model.rows) - 1), min_size=1))
        self.store.mask(name[1], sorted(ids), epochs=[name[0]], masked=masked)
        model.masked = model.masked | ids if masked else model.masked - ids

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def drop(self, data: Any) -> None:
        name = data.draw(st.sampled_from(sorted(self.model)))
        self.store.drop(*name)
        del self.model[name]
        with pytest.raises(NotFoundError):
            self.split(name)

    @rule()
    def reopen(self) -> None:
        self.store = ts.open_store(self.place)

    def draw_block(self, data: Any) -> tuple[tuple[int, str], int]:
        name = data.draw(st.sampled_from(sorted(self.model)))
        blocks = -(-len(self.model[name].rows) // BLOCK)
        return name, data.draw(st.integers(0, blocks - 1))

    def columns(self, name: tuple[int, str], number: int) -> dict[str, Any]:
        here = self.model[name].block(number)
        rows = stored_rows(self.model[name].rows[here], "float32", here.start)
        return rows | {"sample_id": np.arange(here.start, here.stop)}

    @invariant()
    def the_store_is_what_the_model_says(self) -> None:
        found = {(s.epoch, s.split): s for s in self.store.status()}
        assert found.keys() == self.model.keys()
        for name, model in self.model.items():
            assert found[name].written_rows == model.written.sum()
            expected = np.where(model.written[:, None], model.rows, np.nan)
            got = self.store.features(*name, allow_missing=True)
            np.testing.assert_array_equal(got, expected)
            assert self.split(name).masked.tolist() == sorted(model.masked)


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=15, stateful_step_count=15, deadline=None)
