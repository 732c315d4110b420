"""The main job on real data: digits in, features by epoch, TRAK scores and lists out."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import reference
import reference_projection
import torch
from torch.utils.data import Subset

import trakstore as ts
from trakstore.cli.demo import digits
from trakstore.features import Job, featurize_job

EVERY = 7  # of the train images are planted among the targets


@pytest.fixture(scope="module")
def job() -> Job:
    whole = digits()
    train = whole.datasets["train"]
    datasets = {
        "train": train,
        "test": Subset(whole.datasets["test"], range(61)),
        "copies": Subset(train, range(0, len(train), EVERY)),
    }
    projector = ts.ProjectionSpec("sjlt", dim=2048, seed=3)
    return dataclasses.replace(whole, datasets=datasets, projector=projector, ids={})


@pytest.fixture(scope="module")
def store(job: Job, tmp_path_factory: pytest.TempPathFactory) -> ts.FeatureStore:
    where = tmp_path_factory.mktemp("digits") / "run.zarr"
    featurize_job(job, where, progress=False)
    return ts.open_store(where)


def read(store: ts.FeatureStore, epoch: Any, split: str, column: str) -> np.ndarray[Any, Any]:
    found = store.split(epoch, split)
    return found.column(column).read(0, found.rows)


def checkpoints(store: ts.FeatureStore) -> list[tuple[Any, ...]]:
    """Of each epoch, the float64 target features, train features and Q."""
    names = (("test", "features"), ("train", "features"), ("train", "out_to_loss"))
    return [tuple(read(store, e, *name).astype(float) for name in names) for e in store.epochs]


@pytest.mark.slow
def test_some_features_equal_the_dense_reference(job: Job, store: ts.FeatureStore) -> None:
    epoch = store.epochs[-1]
    model = job.load(epoch).eval()
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    samples = [job.datasets["test"][i] for i in range(5)]
    samples = [(torch.as_tensor(x), torch.as_tensor(y)) for x, y in samples]
    g = reference_projection.gradients(model, reference_projection.stable_margin, samples)
    expected = g @ reference_projection.matrix(job.projector, shapes)
    got = read(store, epoch, "test", "features")[:5]
    assert np.abs(got - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [1, 3])
def test_scores_equal_the_dense_reference(store: ts.FeatureStore, epochs: int) -> None:
    assert len(store.epochs) == 3
    chosen = checkpoints(store)[:epochs]
    expected = reference.trak(*zip(*chosen, strict=True), c=1.0, temperature=2, average="scores")
    scores = ts.trak_scores(store, epochs=store.epochs[:epochs])
    assert scores.dims == ("target", "train") and scores.shape == expected.shape
    got = np.asarray(scores)
    assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("order", ["largest", "smallest"])
def test_lists_equal_a_full_sort(store: ts.FeatureStore, order: Any) -> None:
    scores = ts.trak_scores(store)
    dense = np.asarray(scores)
    top = ts.top_k(scores, 20, order=order)
    sign = -1 if order == "largest" else 1
    expected = np.argsort(sign * dense, axis=1, kind="stable")[:, :20]
    np.testing.assert_array_equal(top.position, expected)
    np.testing.assert_array_equal(
        top.train, read(store, store.epochs[0], "train", "sample_id")[expected]
    )


@pytest.mark.slow
@pytest.mark.parametrize(("temperature", "damping"), [(None, 0.01), ("auto", 0.003)])
def test_planted_copies_have_themselves_as_first_proponent(
    store: ts.FeatureStore, temperature: Any, damping: float
) -> None:
    """With light damping: heavy damping and Q = 1 - p favour the hard examples of a class.

    More so where each epoch keeps its Q, of which the last ones' are near 0 for most samples.
    """
    scores = ts.trak_scores(store, targets="copies", damping=damping, temperature=temperature)
    top = ts.top_k(scores, 1)
    own = np.arange(top.sizes["target"]) * EVERY
    assert (top.position.values[:, 0] == own).mean() >= 0.95


@pytest.mark.slow
def test_a_cluster_of_processes_gives_the_same_numbers(store: ts.FeatureStore) -> None:
    from distributed import Client, LocalCluster

    threads = ts.trak_scores(store)
    dense, top = np.asarray(threads), ts.top_k(threads, 10)
    with (
        LocalCluster(2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster),
    ):
        assert len(cluster.workers) == 2
        scores = ts.trak_scores(store)
        np.testing.assert_array_equal(np.asarray(scores), dense)
        assert ts.top_k(scores, 10).identical(top)
        saved = ts.save_scores(scores, store, "by-cluster")
        np.testing.assert_array_equal(saved, dense)
