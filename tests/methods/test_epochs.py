"""Epochs that are put together: of the same samples in the same order, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from zarr.storage import MemoryStore

import trakstore as ts
from trakstore.errors import SpecMismatchError
from trakstore.features import featurize
from trakstore.methods.by_name import scores_by_name
from trakstore.report.write import write_report

N, M, DIM = 40, 5, 6
RNG = np.random.default_rng(8)
EPOCHS = [RNG.normal(size=(N, DIM)).astype(np.float32) for _ in range(2)]
TARGETS = RNG.normal(size=(M, DIM)).astype(np.float32)
ORDER = np.roll(np.arange(N), 7)

ASKED: dict[str, Callable[[ts.FeatureStore], Any]] = {
    "trak": ts.trak_scores,
    "influence": lambda store: ts.influence_scores(store, hessian="loss"),
    "grad-dot": ts.grad_dot_scores,
    "grad-cos": ts.grad_cos_scores,
    "tracin": ts.tracin_scores,
    "whitened-cos": ts.whitened_cos_scores,
    "self-scores": ts.self_scores,
    "query": ts.Query,
    "index": lambda store: ts.build_index(ts.trak_scores(store)),
    "by-name": lambda store: scores_by_name("trak", store, "test", "train"),
    "report": lambda store: write_report(store, "never.html"),
}


def store_with(
    train_ids: Any, target_ids: Any = None, rows: Any = slice(None), targets: Any = slice(None)
) -> ts.FeatureStore:
    """Write two epochs; the second has its train rows, and its targets, in the order that is given."""
    store = ts.FeatureStore.create(MemoryStore(), projection=ts.ProjectionSpec("sjlt", dim=DIM))
    for epoch, features in enumerate(EPOCHS):
        own, other = (train_ids, target_ids) if epoch else (None, None)
        here, there = (rows, targets) if epoch else (slice(None), slice(None))
        written: dict[str, Any] = {"learning_rate": 0.5, "block_rows": 16}
        half = np.full(N, 0.5, np.float32)
        store.write_split(epoch, "train", features[here], ids=own, out_to_loss=half, **written)
        few = np.full(M, 0.5, np.float32)
        store.write_split(epoch, "test", TARGETS[there], ids=other, out_to_loss=few, **written)
    return store


@pytest.mark.parametrize("name", ASKED)
def test_train_rows_in_another_order_are_refused(name: str) -> None:
    store = store_with(ORDER, rows=ORDER)
    with pytest.raises(SpecMismatchError) as caught:
        ASKED[name](store)
    said = "split 'train' of epoch 1 has sample 33 in row 0, where split 'train' of epoch 0 has 0: "
    assert said in str(caught.value)


@pytest.mark.parametrize("name", [name for name in ASKED if name != "self-scores"])
def test_targets_in_another_order_are_refused(name: str) -> None:
    order = np.array([0, 1, 4, 3, 2])
    with pytest.raises(SpecMismatchError) as caught:
        ASKED[name](store_with(None, order, targets=order))
    said = "split 'test' of epoch 1 has sample 4 in row 2, where split 'test' of epoch 0 has 2: "
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("ids", "row", "own"),
    [
        (np.arange(N) + 1000, 0, "1000"),
        ([*range(20), 21, 20, *range(22, N)], 20, "21"),
        ([str(i) for i in range(N)], 0, "'0'"),
    ],
    ids=["others", "two exchanged", "texts"],
)
def test_other_ids_are_refused(ids: Any, row: int, own: str) -> None:
    with pytest.raises(
        SpecMismatchError, match=rf"has sample {own} in row {row}, where .* has {row}:"
    ):
        ts.grad_dot_scores(store_with(ids))


def test_one_of_such_epochs_can_be_asked() -> None:
    store = store_with(ORDER, rows=ORDER)
    own = ts.grad_dot_scores(store, epochs=1, of="output")
    np.testing.assert_allclose(np.asarray(own), TARGETS @ EPOCHS[1][ORDER].T, rtol=1e-5, atol=1e-5)
    assert own.to_xarray().train_id.values.tolist() == ORDER.tolist()


def test_the_same_ids_in_order_are_added_up() -> None:
    both = ts.grad_dot_scores(store_with(np.arange(N), np.arange(M)), of="output")
    dense = TARGETS @ (EPOCHS[0] + EPOCHS[1]).T / 2
    np.testing.assert_allclose(np.asarray(both), dense, rtol=1e-5, atol=1e-5)


def test_masking_by_id_is_no_dead_end() -> None:
    store = store_with(ORDER, rows=ORDER)
    assert store.mask("train", [3, 4]) == 4
    # The masked rows lie elsewhere: that epochs have other orders is what is said.
    with pytest.raises(SpecMismatchError, match="has sample 33 in row 0"):
        ts.trak_scores(store)
    alike = store_with(None)
    alike.mask("train", [3, 4])
    assert ts.trak_scores(alike).shape == (M, N - 2)
    alike.mask("train", [9], epochs=[1])
    with pytest.raises(SpecMismatchError, match="other rows masked, first that of sample 9 "):
        ts.trak_scores(alike)


def test_features_of_other_data_are_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, spec = nn.Linear(4, 3), ts.ProjectionSpec("sjlt", dim=8)
    samples = [(torch.randn(4), i % 3) for i in range(20)]
    others = [(torch.randn(4), i % 3) for i in range(20)]

    def write(epoch: int, train: Any, ids: Any = None) -> None:
        for split, rows, names in (("train", train, ids), ("test", samples[:3], None)):
            place: dict[str, Any] = {"epoch": epoch, "split": split, "ids": names}
            featurize(model, rows, tmp_path / "s", projector=spec, progress=False, **place)

    write(0, samples)
    write(1, samples)
    store = ts.open_store(tmp_path / "s")
    assert ts.trak_scores(store).shape == (3, 20)
    write(2, others)
    with pytest.raises(SpecMismatchError) as caught:
        ts.trak_scores(store)
    said = "split 'train' of epoch 2 was made from another data set than split 'train' of epoch 0"
    assert said in str(caught.value)
    assert str(store.split(2, "train").spec.dataset)[:15] in str(caught.value)
    write(3, samples[::-1], list(range(20))[::-1])
    with pytest.raises(SpecMismatchError, match=r"has sample 19 in row 0, where .* epoch 0 has 0:"):
        ts.trak_scores(store, epochs=[0, 3])
    # Features that were given have no fingerprint: their ids alone say what they are of.
    given = np.asarray(store.features(0, "train"))
    half = np.full(20, 0.5)
    store.write_split(4, "train", given, out_to_loss=half, checkpoint="x", labels=np.arange(20) % 3)
    test = np.asarray(store.features(0, "test"))
    store.write_split(4, "test", test, out_to_loss=half[:3], checkpoint="x", labels=[0, 1, 2])
    assert ts.trak_scores(store, epochs=[0, 4], temperature=None).shape == (3, 20)
