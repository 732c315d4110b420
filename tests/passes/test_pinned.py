"""Copies to and from a device, in the order that events give them, where nothing is done early."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from zarr.storage import MemoryStore

import trakstore as ts
from trakstore.passes import pinned
from trakstore.passes.pinned import Upload, to_device, to_host
from trakstore.passes.rows import ArrayRows, TakenRows

CPU = torch.device("cpu")


class LazyStreams:
    """A stream of copies and one of computations that run only as far as somebody waits for them.

    What is written over before it was used shows in what is computed.
    """

    def __init__(self) -> None:
        self.queues: dict[str, list[Callable[[], object]]] = {"copies": [], "computations": []}
        self.done = {"copies": 0, "computations": 0}
        self.waited: list[tuple[str, int]] = []

    def run(self, event: tuple[str, int]) -> None:
        queue, until = event
        while self.done[queue] < until:
            self.done[queue] += 1
            self.queues[queue][self.done[queue] - 1]()

    def ask(self, queue: str, work: Callable[[], object]) -> tuple[str, int]:
        self.queues[queue].append(work)
        return self.now(queue)

    def now(self, queue: str) -> tuple[str, int]:
        return queue, len(self.queues[queue])

    def computed(self) -> tuple[str, int]:
        return self.now("computations")

    def copy(self, there: Any, here: Any, after: tuple[str, int]) -> tuple[str, int]:
        return self.ask("copies", lambda: (self.run(after), there.copy_(here)))

    def arrive(self, copied: tuple[str, int]) -> None:
        self.ask("computations", lambda: self.run(copied))

    def wait(self, copied: tuple[str, int]) -> None:
        self.waited.append(copied)
        self.run(copied)


@pytest.mark.parametrize("first", ["copies", "computations"])
def test_each_computation_has_its_own_array_however_late_it_runs(first):
    streams, results = LazyStreams(), []
    upload = Upload(CPU, streams)
    arrays = [np.full((3, 2), at, np.float32) for at in range(7)]
    for array in arrays:
        with upload.sent(array) as there:
            streams.ask("computations", lambda there=there: results.append(there.clone()))
    for queue in (first, "copies", "computations"):
        streams.run(streams.now(queue))
    np.testing.assert_array_equal(np.stack(results), np.stack(arrays))


def test_a_copy_begins_before_what_was_asked_of_the_one_before_has_run():
    streams, ran = LazyStreams(), []
    upload, started = Upload(CPU, streams), []
    for at in range(5):
        with upload.sent(np.full(4, at, np.float32)):
            started.append((len(streams.queues["copies"]), len(ran)))
            streams.ask("computations", lambda at=at: ran.append(at))
    # The host waits for copies alone: for that of the array before the last one, each time. Such a
    # copy waits on the device for what was computed with the buffer that it writes over.
    assert streams.waited == [("copies", 1), ("copies", 2), ("copies", 3)]
    assert started == [(1, 0), (2, 0), (3, 0), (4, 0), (5, 1)]


def test_two_buffers_are_used_in_turn(monkeypatch):
    made, empty = [], torch.empty

    def counted(*size, **how):
        made.append(size[0])
        return empty(*size, **how)

    monkeypatch.setattr(torch, "empty", counted)
    upload, places = Upload(CPU), []
    for _ in range(6):
        with upload.sent(np.ones(8, np.float64)) as there:
            places.append(there.data_ptr())
    assert places[::2] == places[:1] * 3 and places[1::2] == places[1:2] * 3
    assert len(set(places)) == 2 and made.count(64) == 4  # two here, two there


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "int64", ">f4"])
def test_arrays_travel_as_they_are(dtype):
    upload, rng = Upload(CPU), np.random.default_rng(0)
    for shape in ((5, 3), (2, 3), (0, 3), (70,), (9, 4)):  # some larger than the buffers
        array = (rng.standard_normal(shape) * 50).astype(dtype)
        with upload.sent(array[::-1]) as there:
            assert there.element_size() == array.itemsize
            np.testing.assert_array_equal(there, array[::-1])


def test_rows_are_widened_on_the_device():
    sent = []

    class Seen(Upload):
        def sent(self, array):
            sent.append(array.dtype)
            return super().sent(array)

    rows = ArrayRows(np.arange(12, dtype=np.float16).reshape(4, 3))
    with Seen(CPU).widened(rows, 1, 3) as there:
        assert there.dtype == torch.float32 and there.tolist() == [[3, 4, 5], [6, 7, 8]]
    assert sent == [np.float16]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_in_8_bits_are_multiplied_in_float32(dtype):
    rows = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
    store = ts.FeatureStore.create(
        MemoryStore(), projection=ts.ProjectionSpec("identity"), dtype="int8"
    )
    store.write_split(0, "train", rows, block_rows=8)
    features = TakenRows(store.split(0, "train").column("features"), range(3, 39))
    upload = Upload(CPU)
    for start, stop in ((0, 8), (8, 16), (30, 36)):
        with upload.widened(features, start, stop, dtype) as there:
            assert there.dtype == dtype
            np.testing.assert_array_equal(there, features.read(start, stop))


def test_results_come_back_in_pieces(monkeypatch):
    monkeypatch.setattr(pinned, "PIECE_BYTES", 32)
    pieces, fetched = [], pinned._fetched

    def counted(part):
        pieces.append(part.numel() * part.element_size())
        return fetched(part)

    monkeypatch.setattr(pinned, "_fetched", counted)
    result = torch.arange(21).reshape(7, 3)
    np.testing.assert_array_equal(to_host(result), result)
    assert pieces == [24] * 7
    out = np.zeros((7, 5), np.int64)
    to_host(result, out[:, 1:4])
    np.testing.assert_array_equal(out[:, 1:4], result)
    assert not out[:, [0, 4]].any()
    assert to_host(torch.tensor(True)) and to_host(torch.empty(0, 4)).shape == (0, 4)


def test_a_large_array_goes_in_pieces(monkeypatch):
    monkeypatch.setattr(pinned, "PIECE_BYTES", 32)
    array = np.arange(21, dtype=np.float32).reshape(7, 3)
    array.flags.writeable = False  # as those are that a message brought
    sent = []

    class Seen(Upload):
        def sent(self, array):
            sent.append(array.nbytes)
            return super().sent(array)

    monkeypatch.setattr(pinned, "Upload", Seen)
    there = to_device(array, CPU)
    np.testing.assert_array_equal(there, array)
    assert sent == [24, 24, 24, 12] and not np.shares_memory(there.numpy(), array)
