"""Operations on scores whose tiles are on a device; torch's own CPU stands for it."""

from __future__ import annotations

import weakref
from dataclasses import replace

import dask
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from zarr.storage import MemoryStore

import trakstore as ts
from trakstore.errors import MemoryLimitError, NumericsError
from trakstore.passes import memory, pinned
from trakstore.passes.pinned import OneAfterTheOther
from trakstore.passes.rows import ArrayRows
from trakstore.scores.device_tiles import DeviceTiles
from trakstore.scores.entries import _AbovePass, _Most
from trakstore.scores.moments import row_moments
from trakstore.scores.running_lists import device_list_bytes
from trakstore.scores.streaming import for_each_tile
from trakstore.scores.top_k import SelectPass, top_k
from trakstore.scores.window_plans import plan_windows

DEVICE = "cpu:0"


@pytest.mark.parametrize("average", ["factors", "scores"])
@pytest.mark.parametrize("threshold", [0.3, "auto"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_tiles_are_those_of_the_cpu(make_scores, average, dtype, threshold):
    scores, _ = make_scores(average=average, dtype=dtype, soft_threshold=threshold)
    window = scores.window(0, 9)
    tiles = DeviceTiles(window, DEVICE)
    for start, stop in ((0, 8), (96, 101), (8, 16)):
        expected = window.tile(start, stop)
        np.testing.assert_allclose(tiles.tile(start, stop), expected, rtol=1e-4, atol=1e-5)
        out = np.zeros((9, 20), np.float32)
        tiles.host_tile(start, stop, out[:, : stop - start])
        np.testing.assert_allclose(out[:, : stop - start], expected, rtol=1e-4, atol=1e-5)
        assert not out[:, stop - start :].any()
    np.testing.assert_allclose(
        scores.to(DEVICE).block(2, 7, 3, 60), scores.block(2, 7, 3, 60), rtol=1e-4, atol=1e-5
    )


def test_operations_give_the_same(make_scores):
    scores, _ = make_scores(n=333)
    there = scores.to(DEVICE)
    matrix = np.asarray(scores)
    np.testing.assert_allclose(np.asarray(there), matrix, rtol=1e-4, atol=1e-5)
    lazy = there.to_xarray().data.compute(scheduler="sync")
    np.testing.assert_allclose(lazy, matrix, rtol=1e-4, atol=1e-5)
    for one, other in zip(row_moments(there), row_moments(scores), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4)
    written = np.full(scores.shape, np.nan)

    def write(t0, t1, n0, n1, tile):
        assert type(tile) is np.ndarray
        written[t0:t1, n0:n1] = tile

    for_each_tile(there, write)
    np.testing.assert_allclose(written, matrix, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("k", [1, 12, 333])
@pytest.mark.parametrize("how", [{}, {"order": "smallest"}, {"order": "magnitude"}])
def test_lists_are_the_same(make_scores, k, how):
    scores, _ = make_scores(n=333)
    expected, found = top_k(scores, k, **how), top_k(scores.to(DEVICE), k, **how)
    np.testing.assert_array_equal(found.position, expected.position)
    np.testing.assert_array_equal(found.train, expected.train)
    np.testing.assert_allclose(found.score, expected.score, rtol=1e-4, atol=1e-5)


def test_lists_of_chosen_rows_and_of_classes_are_the_same(make_scores):
    scores, _ = make_scores(n=333)
    labels = ArrayRows(np.arange(333) % 3, 50)
    scores = replace(scores, train_labels=labels)
    for how in ({"where": np.arange(333) % 7 == 2}, {"per_class": True}):
        expected, found = top_k(scores, 5, **how), top_k(scores.to(DEVICE), 5, **how)
        np.testing.assert_array_equal(found.position, expected.position)
        np.testing.assert_allclose(found.score, expected.score, rtol=1e-4, atol=1e-5)


def test_entries_above_a_threshold_are_the_same(make_scores):
    scores, _ = make_scores(n=333, soft_threshold=0.5)
    passes = [
        _AbovePass(8, one.window(0, 9), 0, _Most(1.0, 9, 10**9))
        for one in (scores, scores.to(DEVICE))
    ]
    expected, found = (one.over(0, 333).entries for one in passes)
    assert len(expected) > 100
    for name in ("row", "column"):
        np.testing.assert_array_equal(found[name], expected[name])
    np.testing.assert_allclose(found["score"], expected["score"], rtol=1e-4, atol=1e-5)


def test_a_score_that_is_not_finite_is_named_as_on_the_cpu(make_scores):
    scores, arrays = make_scores(scaled=False, epochs=(1,))
    arrays[0][1][50, 2] = np.inf
    for one in (scores, scores.to(DEVICE)):
        # In this thread: others would still be at work in the next test.
        with (
            dask.config.set(scheduler="sync"),
            pytest.raises(NumericsError, match="train row 50 is"),
        ):
            top_k(one, 3)


class Recorded(OneAfterTheOther):
    """What is asked of the streams, and for what the host waits."""

    def __init__(self) -> None:
        self.log: list[tuple[str, object]] = []

    def computed(self):
        self.log.append(("computed", None))

    def copy(self, there, here, after):
        self.log.append(("copy", here.data_ptr()))
        super().copy(there, here, after)
        return len([one for one in self.log if one[0] == "copy"])

    def wait(self, copied):
        self.log.append(("wait", copied))


def test_the_next_rows_are_on_their_way_before_anything_comes_back(make_scores, monkeypatch):
    streams, fetched = Recorded(), pinned._fetched
    monkeypatch.setattr(pinned, "streams_of", lambda _: streams)

    def counted(part):
        streams.log.append(("back", part.numel() * part.element_size()))
        return fetched(part)

    monkeypatch.setattr(pinned, "_fetched", counted)
    scores, _ = make_scores(scaled=False, epochs=(1,))
    one = SelectPass(8, scores.to(DEVICE).window(0, 9), 0, k=4, order="largest", groups=None)
    one.over(0, 101)
    named = [name for name, _ in streams.log]
    # The left operand, and thirteen tiles, each with its features and its positions.
    assert named.count("copy") == 1 + 26
    last = max(at for at, name in enumerate(named) if name == "copy")
    assert "back" not in named[:last], "results come back after the last tile was sent"
    back = [size for name, size in streams.log if name == "back"]
    assert sum(back) == 9 * 4 * (4 + 4 + 8) + 4
    # Each copy waits for the one that had its buffer before, and for nothing that is computed.
    assert [event for name, event in streams.log if name == "wait"] == list(range(2, 24))
    features = [at for name, at in streams.log if name == "copy"][1::2]
    assert len(set(features)) == 2 and features[::2] == features[:1] * 7


class Live(TorchDispatchMode):
    """The most bytes of tensors that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.users: dict[int, int] = {}
        self.now = self.most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple | list) else (result,):
            if isinstance(one, torch.Tensor):
                self.hold(one)
        return result

    def hold(self, tensor):
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if not self.users.get(place):
            self.now += size
            self.most = max(self.most, self.now)
        self.users[place] = self.users.get(place, 0) + 1
        weakref.finalize(tensor, self.leave, place, size)

    def leave(self, place, size):
        self.users[place] -= 1
        if not self.users[place]:
            self.now -= size


@pytest.mark.parametrize(
    ("m", "n", "dim", "k"), [(200, 2048, 16, 20), (8, 2048, 256, 50), (300, 2048, 4, 1)]
)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("order", ["largest", "smallest", "magnitude"])
def test_a_device_has_no_more_than_was_planned(make_scores, m, n, dim, k, dtype, order):
    scores, _ = make_scores(m, n, dim, chunk=512, dtype=dtype)
    sizes, targets = scores.sizes, scores.shape[0]
    task = 2 * sizes.tile_bytes + targets * (device_list_bytes(k, 512) + 4 * 512)
    planned = task + targets * 4 * sizes.columns
    one = SelectPass(512, scores.to(DEVICE).window(0, m), 0, k=k, order=order, groups=None)
    with Live() as live:
        one.over(0, n)
    assert 0.3 * planned < live.most <= planned


def test_windows_fit_the_device(make_scores, monkeypatch):
    scores, _ = make_scores(m=60, n=400, k=8, chunk=50)
    sizes = scores.to("cuda").sizes
    assert sizes.device == "cuda"
    with dask.config.set(num_workers=16):
        monkeypatch.setattr(memory, "free_bytes", lambda _: None)
        free = plan_windows(sizes, "lists", "1GB")
        assert (free.targets, free.workers) == (60, 16)
        monkeypatch.setattr(memory, "free_bytes", lambda _: 10**9)
        assert plan_windows(sizes, "lists", "1GB").workers == 8
        monkeypatch.setattr(memory, "free_bytes", lambda _: 80_000)
        few = plan_windows(sizes, "lists", "1GB", device_bytes=500)
        assert 0 < few.targets < 60 and few.workers == 1
        tile = 2 * sizes.tile_bytes
        taken = tile + few.targets * (4 * sizes.columns + 500 + 4 * sizes.tile_rows)
        assert taken < 40_000 < taken * 1.2
        monkeypatch.setattr(memory, "free_bytes", lambda _: 10_000)
        with pytest.raises(MemoryLimitError, match=r"lists on cuda needs at least .*device='cpu'"):
            plan_windows(sizes, "lists", "1GB")


def test_the_worker_whose_gpu_has_least_decides(monkeypatch):
    class Client:
        status = "running"

        def run(self, function, device):
            assert function is memory.free_bytes and device == "cuda"
            return {"a": 10**9, "b": None, "c": 10**8}

    monkeypatch.setattr(memory, "active_client", Client)
    assert memory.device_budget("cuda") == 10**8 // 2
    monkeypatch.setattr(Client, "run", lambda *_: {"a": None})
    assert memory.device_budget("cuda") is None
    assert memory.device_budget("cpu") is None


def test_rows_in_8_bits_travel_as_such(draw, monkeypatch):
    store = ts.FeatureStore.create(
        MemoryStore(), projection=ts.ProjectionSpec("identity"), dtype="int8"
    )
    for split, rows in (("train", 200), ("test", 5)):
        store.write_split(0, split, draw(rows, 24), block_rows=16)
    store.mask("train", [3, 50, 51])
    kept = [0, 7, 60, 61, 62, 150, 190]
    sent, send = [], pinned.Upload.sent

    def seen(upload, array):
        sent.append(array.dtype)
        return send(upload, array)

    monkeypatch.setattr(pinned.Upload, "sent", seen)
    for scores in (
        ts.grad_dot_scores(store, of="output"),
        ts.grad_dot_scores(store, of="output").isel(train=kept),
    ):
        expected, found = top_k(scores, 4), top_k(scores.to(DEVICE), 4)
        np.testing.assert_array_equal(found.position, expected.position)
        np.testing.assert_allclose(found.score, expected.score, rtol=1e-4)
        # The left operand, numbers and scales in float32; positions.
        assert {np.dtype("int8"), np.dtype("float32"), np.dtype("int64")} == set(sent)
        assert sent.count(np.dtype("float32")) == 1 + sent.count(np.dtype("int8"))
        sent.clear()


def test_torch_with_another_default_dtype_gives_the_same(make_scores):
    scores, _ = make_scores(n=333)
    expected = top_k(scores, 7)
    torch.set_default_dtype(torch.float64)
    try:
        found = top_k(scores.to(DEVICE), 7)
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_array_equal(found.position, expected.position)
    assert found.score.dtype == np.float32


def test_left_operands_are_sent_once_for_a_window(make_scores):
    scores, _ = make_scores()
    window = scores.to(DEVICE).window(0, 9)
    one, other = DeviceTiles(window, DEVICE), DeviceTiles(window, DEVICE)
    assert all(a is b for a, b in zip(one._lefts, other._lefts, strict=True))
