"""Lists on a device are those of the CPU, ties included; torch's own CPU stands for the device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trakstore.passes import pinned
from trakstore.passes.gpu import NotFiniteError
from trakstore.scores.device_lists import DeviceLists, entries_above
from trakstore.scores.running_lists import Running, group_size


def both(tiles, k, order="largest"):
    """Lists of the tiles, which follow one another, by both ways."""
    rows, wide = len(tiles[0]), max(tile.shape[1] for tile in tiles)
    host, device = Running(rows, k, np.dtype(np.float32), wide), DeviceLists(rows, k, "cpu:0")
    low = 0
    for tile in tiles:
        positions = np.arange(low, low + tile.shape[1]) * 3
        host.offer(tile, 0, positions, order)
        device.offer(torch.from_numpy(tile), 0, positions, order)
        low += tile.shape[1]
    return host.lists(), device.lists()


def check_same(expected, found):
    np.testing.assert_array_equal(found.position, expected.position)
    np.testing.assert_array_equal(found.score, expected.score)
    np.testing.assert_array_equal(found.key, expected.key)
    assert [one.dtype for one in (found.key, found.score, found.position)] == [
        np.float32,
        np.float32,
        np.int64,
    ]


@pytest.mark.parametrize("order", ["largest", "smallest", "magnitude"])
@pytest.mark.parametrize("k", [1, 3, 20, 64, 300])
def test_lists_are_those_of_the_cpu(k, order):
    rng = np.random.default_rng(k)
    tiles = [rng.standard_normal((5, width)).astype(np.float32) for width in (130, 64, 7, 101)]
    check_same(*both(tiles, k, order))


@pytest.mark.parametrize("order", ["largest", "smallest", "magnitude"])
@pytest.mark.parametrize("k", [2, 9, 40])
def test_equal_scores_are_ordered_by_position(k, order):
    rng = np.random.default_rng(k)
    tiles = [rng.integers(-1, 2, (6, width)).astype(np.float32) for width in (200, 33, 128)]
    # Zeros of either sign are equal.
    tiles.append(np.where(rng.random((6, 90)) < 0.5, -0.0, 0.0).astype(np.float32))
    tiles.reverse()
    check_same(*both(tiles, k, order))


def test_lists_that_are_longer_than_what_was_offered_end_in_free_places():
    tile = np.array([[2.0, -1.0, 3.0]], np.float32)
    expected, found = both([tile], 5)
    check_same(expected, found)
    assert found.position[0, :3].tolist() == [6, 0, 3] and (found.key[0, 3:] == -np.inf).all()


@pytest.mark.parametrize("scale", [1e-42, 1e38])
def test_scores_at_the_ends_of_float32(scale):
    tile = (np.random.default_rng(0).standard_normal((3, 50)) * scale).astype(np.float32)
    for order in ("largest", "smallest", "magnitude"):
        check_same(*both([tile], 7, order))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_told_at_the_end(bad):
    lists = DeviceLists(2, 3, "cpu:0")
    tile = torch.ones(2, 6)
    tile[1, 4] = bad
    lists.offer(tile, 0, np.arange(6), "largest")
    lists.offer(torch.ones(2, 6), 0, np.arange(6, 12), "largest")
    with pytest.raises(NotFiniteError):
        lists.lists()


@pytest.mark.parametrize("k", [4, 200])
def test_nothing_waits_for_a_number_while_tiles_are_looked_at(k):
    # Tensors on "meta" have no numbers: to ask for one is an error.
    lists = DeviceLists(8, k, "meta")
    for low in (0, 256):
        lists.offer(torch.empty(8, 256, device="meta"), 0, np.arange(low, low + 256), "magnitude")
    assert lists._position.shape == (8, k)
    with pytest.raises(NotImplementedError):
        lists.lists()


def test_only_lists_come_back(monkeypatch):
    back, fetched = [], pinned._fetched

    def counted(part):
        back.append(part.numel() * part.element_size())
        return fetched(part)

    monkeypatch.setattr(pinned, "_fetched", counted)
    both([np.ones((5, 900), np.float32)] * 3, 7)
    assert sum(back) == 5 * 7 * (4 + 4 + 8) + 4


@pytest.mark.parametrize("columns", [1, 100, 8192])
@pytest.mark.parametrize("k", [1, 20, 100, 10_000])
def test_groups_are_enough_for_a_list(k, columns):
    size = group_size(k, columns)
    assert size == 1 or columns // size >= k
    assert size >= 1 and size & (size - 1) == 0


def test_entries_above_a_threshold():
    tile = torch.tensor([[0.5, -2.0, 1.0], [0.0, -1.0, 0.99]])
    row, column, score = entries_above(tile, 1.0)
    assert list(zip(row, column, score, strict=True)) == [(0, 1, -2.0), (0, 2, 1.0), (1, 1, -1.0)]
    tile[1, 1] = np.nan
    with pytest.raises(NotFiniteError):
        entries_above(tile, 1.0)
