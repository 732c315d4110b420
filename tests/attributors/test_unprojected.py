"""Influence without projection, by conjugate gradients with a store's kernel as preconditioner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from features.models import seeded
from features.whole_models import Language

import trakstore as ts
from trakstore.attributors import unprojected_scores
from trakstore.errors import NotFoundError, SpecMismatchError, TrakStoreError
from trakstore.features import Job, featurize_job

TRAIN, TARGETS, DRAWS, C = 24, 5, 3, 0.05


def made(**options: Any) -> Job:
    model = seeded(Language)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 11, (TRAIN + TARGETS, 6), generator=generator)
    later = seeded(Language, 1).state_dict()
    data = {"train": list(ids[:TRAIN]), "test": list(ids[TRAIN:])}
    options = {"scale": "samples", "sampled": DRAWS, "output": "causal_lm"} | options
    states = {1: dict(model.state_dict()), 2: later}
    return Job(model.eval(), data, checkpoints=states, batch_size=7, **options)


def stored(job: Job, where: Path) -> ts.FeatureStore:
    featurize_job(job, where, progress=False)
    return ts.open_store(where)


def apart(scores: Any, wanted: Any) -> float:
    return float(np.linalg.norm(np.asarray(scores) - wanted) / np.linalg.norm(wanted))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Scores of whole gradients, by the dense formula of a store without projection."""
    job = made(projector=ts.ProjectionSpec("identity"))
    store = stored(job, tmp_path_factory.mktemp("whole") / "s.zarr")
    lam = {}
    for epoch in store.epochs:
        split = store.split(epoch, "train~sampled")
        q = split.column("out_to_loss").read(0, split.rows)[:, None]
        g = split.column("features").read(0, split.rows).astype(np.float64) * q
        lam[epoch] = C * (g**2).sum() / DRAWS / TRAIN
    return job, store, np.asarray(ts.influence_scores(store, damping=C)), lam


def test_they_are_those_of_a_store_without_projection(whole: Any) -> None:
    job, store, wanted, _ = whole
    # The preconditioner is the inverse itself then, so that no iteration is needed.
    for iterations in (0, 1):
        scores = unprojected_scores(job, store, damping=C, iterations=iterations)
        assert scores.dims == ("target", "train")
        assert scores.shape == (TARGETS, TRAIN)
        assert apart(scores, wanted) < 1e-3


def test_a_few_iterations_take_the_noise_of_the_projection_out(whole: Any, tmp_path: Path) -> None:
    lam = whole[3]
    job = made(projector=ts.ProjectionSpec("sjlt", dim=512))
    store = stored(job, tmp_path / "s.zarr")
    # λ follows from the trace of projected rows, which is not quite that of whole ones: it is given.
    own = {"epochs": 2, "damping": ts.Damping(absolute=lam[2])}
    wanted = np.asarray(ts.influence_scores(whole[1], **own))
    scores = [ts.influence_scores(store, **own)]
    scores += [unprojected_scores(job, store, iterations=steps, **own) for steps in (0, 2, 12)]
    errors = [apart(one, wanted) for one in scores]
    assert min(errors[:2]) > 4 * errors[2] > 4 * errors[3]
    assert errors[-1] < 1e-3


def test_rows_are_chosen_and_masked_ones_left_out(whole: Any, tmp_path: Path) -> None:
    job, store, *_ = whole
    every = unprojected_scores(job, store, damping=C)
    some = unprojected_scores(job, store, damping=C, rows=[3, 0], epochs=[1, 2])
    np.testing.assert_allclose(some, every[[3, 0]], rtol=1e-3, atol=1e-3 * float(every.std()))
    assert some.target_id.values.tolist() == [3, 0]
    own = stored(made(projector=ts.ProjectionSpec("identity")), tmp_path / "masked.zarr")
    own.mask("train", [4, 5])
    masked = unprojected_scores(job, ts.open_store(own.location), damping=C)
    wanted = np.asarray(ts.influence_scores(ts.open_store(own.location), damping=C))
    assert masked.shape == (TARGETS, TRAIN - 2)
    assert apart(masked, wanted) < 1e-3


def test_what_does_not_fit_is_refused(whole: Any, tmp_path: Path) -> None:
    job, store, *_ = whole
    with pytest.raises(NotFoundError, match=r"not all in 0\.\.4"):
        unprojected_scores(job, store, rows=[5])
    with pytest.raises(TrakStoreError, match="iterations"):
        unprojected_scores(job, store, iterations=-1)
    other = made(projector=ts.ProjectionSpec("identity"))
    states: Any = other.checkpoints
    other.checkpoints = {1: states[2], 2: states[1]}
    with pytest.raises(SpecMismatchError, match="weights"):
        unprojected_scores(other, store)
    data = made(projector=ts.ProjectionSpec("identity"))
    data.datasets = {"train": data.datasets["train"][::-1], "test": data.datasets["test"]}
    with pytest.raises(SpecMismatchError, match="data"):
        unprojected_scores(data, store)
    plain = stored(made(sampled=0), tmp_path / "plain.zarr")
    with pytest.raises(NotFoundError, match="sampled"):
        unprojected_scores(job, plain)
