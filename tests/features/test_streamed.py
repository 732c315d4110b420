"""Samples that can only be iterated: one pass, which goes on behind what is there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from features.models import Samples, mlp
from features.stopped import stopped_after
from torch.utils.data import IterableDataset

import trakstore as ts
from trakstore.errors import SpecMismatchError, TrakStoreError
from trakstore.features import Streamed, featurize

ROWS = 120
OPTIONS: dict[str, Any] = {"projector": ts.ProjectionSpec("sjlt", dim=8), "progress": False}
OPTIONS |= {"batch_size": 8, "block_rows": 16}


class Stream(IterableDataset[Any]):
    """Samples of a list, by iteration alone; it counts how many were made."""

    def __init__(self, seed: int = 0) -> None:
        self.samples, self.made = Samples(ROWS, seed), 0

    def __iter__(self) -> Iterator[Any]:
        for i in range(ROWS):
            self.made += 1
            yield self.samples[i]


def features(where: Path) -> Any:
    split = ts.open_store(where).split(0, "train")
    return split.column("features").read(0, split.rows)


def test_features_are_those_of_a_list_by_one_pass(tmp_path: Path) -> None:
    stream = Stream()
    featurize(mlp(), Streamed(stream, rows=ROWS), tmp_path / "s", **OPTIONS)
    featurize(mlp(), Samples(ROWS), tmp_path / "t", **OPTIONS)
    np.testing.assert_array_equal(features(tmp_path / "s"), features(tmp_path / "t"))
    # The first 32 are read twice for the fingerprint, then all once, also those that are compared.
    assert stream.made <= 2 * 32 + ROWS


def test_a_run_that_was_stopped_goes_on_behind_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stopped_after(3, monkeypatch):
        featurize(mlp(), Streamed(Stream(), rows=ROWS), tmp_path / "s", **OPTIONS)
    again = featurize(mlp(), Streamed(Stream(), rows=ROWS), tmp_path / "s", **OPTIONS)
    assert again.rows == ROWS - 3 * 16
    featurize(mlp(), Samples(ROWS), tmp_path / "t", **OPTIONS)
    np.testing.assert_array_equal(features(tmp_path / "s"), features(tmp_path / "t"))
    with pytest.raises(SpecMismatchError, match="dataset"):
        featurize(mlp(), Streamed(Stream(seed=1), rows=ROWS), tmp_path / "s", **OPTIONS)


def test_any_sample_can_be_read_and_few_are_held() -> None:
    stream = Stream()
    data = Streamed(stream, rows=100)
    data.held = 10
    for index in (0, 5, 50, 45, 41, 7, 99, 90, 3):
        torch.testing.assert_close(data[index], stream.samples[index])
        assert len(data._last) <= 10
    assert len(data) == 100
    with pytest.raises(IndexError):
        data[100]
    before = stream.made
    assert data[3] is data[3] and stream.made == before


def test_threads_that_read_at_once_get_their_own_samples() -> None:
    data, stream, wrong = Streamed(Stream(), rows=ROWS), Stream(), list[int]()

    def read(own: range) -> None:
        for index in own:
            if not torch.equal(data[index][0], stream.samples[index][0]):
                wrong.append(index)

    readers = [threading.Thread(target=read, args=(range(at, ROWS, 3),)) for at in range(3)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert not wrong


def test_what_is_no_stream(tmp_path: Path) -> None:
    with pytest.raises(
        TrakStoreError, match="a generator cannot be: give an object whose __iter__"
    ):
        Streamed(i for i in range(3))
    with pytest.raises(TrakStoreError, match=r"a Stream has no length: .* Streamed"):
        Streamed(Stream())
    with pytest.raises(TrakStoreError, match=r"ended after 120 samples, and 130 .* give rows=120"):
        featurize(mlp(), Streamed(Stream(), rows=130), tmp_path / "s", **OPTIONS)
    with pytest.raises(
        TrakStoreError, match=r"needs __len__ and __getitem__, got Stream; .*Streamed"
    ):
        featurize(mlp(), Stream(), tmp_path / "t", **OPTIONS)

    class Shuffled(Stream):
        def __iter__(self) -> Iterator[Any]:
            return (self.samples[i] for i in torch.randperm(ROWS).tolist())

    with pytest.raises(TrakStoreError, match="differs when it is read twice"):
        featurize(mlp(), Streamed(Shuffled(), rows=ROWS), tmp_path / "t", **OPTIONS)
