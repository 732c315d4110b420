"""Influence without projection, by conjugate gradients with a store's kernel as preconditioner."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from features.models import Samples, mlp, seeded
from features.padded_texts import Pad, Placed, Texts
from features.whole_models import Language

import trakstore as ts
from trakstore.attributors import unprojected_scores
from trakstore.attributors.gradient_rows import GradientRows
from trakstore.errors import IncompleteError, NotFoundError, SpecMismatchError, TrakStoreError
from trakstore.features import Job, featurize_job
from trakstore.features.outputs import CausalLM
from trakstore.kernels.iterative import RowsKernel
from trakstore.methods.sampled_kernel import store_sampled_gram

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


@pytest.fixture(scope="module")
def once(whole: Any) -> Any:
    """Scores of all rows at both epochs after one iteration."""
    return unprojected_scores(*whole[:2], damping=C, iterations=1)


def test_they_are_those_of_a_store_without_projection(whole: Any, once: Any) -> None:
    job, store, wanted, _ = whole
    # The preconditioner is the inverse itself then, so that no iteration is needed.
    for scores in (unprojected_scores(job, store, damping=C, iterations=0), once):
        assert scores.dims == ("target", "train")
        assert scores.shape == (TARGETS, TRAIN)
        assert apart(scores, wanted) < 1e-3


def classes() -> Job:
    data = {"train": Samples(TRAIN), "test": Samples(TARGETS, seed=1)}
    return Job(mlp(), data, output="cross_entropy", sampled=DRAWS, batch_size=7,
               projector=ts.ProjectionSpec("identity"))  # fmt: skip


@pytest.mark.parametrize("kind", ["language", "classes"])
def test_outputs_whose_loss_falls_with_them_and_outputs_that_are_the_loss(
    kind: str, tmp_path: Path
) -> None:
    projector = ts.ProjectionSpec("identity")
    job = (
        classes() if kind == "classes" else made(projector=projector, output=CausalLM(over="loss"))
    )
    store = stored(job, tmp_path / "s.zarr")
    drawn = store.split(store.epochs[0], "train~sampled")
    assert (drawn.column("out_to_loss").read(0, drawn.rows) < 0).any()
    wanted = np.asarray(ts.influence_scores(store, damping=C, kernel="sampled"))
    assert apart(unprojected_scores(job, store, damping=C, iterations=0), wanted) < 1e-5


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


def test_rows_are_chosen_and_masked_ones_left_out(whole: Any, once: Any, tmp_path: Path) -> None:
    job, store, *_ = whole
    own: dict[str, Any] = {"damping": C, "iterations": 1}
    some = unprojected_scores(job, store, rows=[3, 0], epochs=[1, 2], **own)
    np.testing.assert_allclose(some, once[[3, 0]], rtol=1e-3, atol=1e-3 * float(once.std()))
    assert some.target_id.values.tolist() == [3, 0]
    for same in (np.array([True, False, False, True, False]), slice(0, 4, 3), [-5, 3]):
        again = unprojected_scores(job, store, damping=C, rows=same, epochs=2, iterations=0)
        assert again.target_id.values.tolist() == [0, 3]
    where = tmp_path / "masked.zarr"
    shutil.copytree(Path(store.location.address), where)
    ts.open_store(where).mask("train", [4, 5])
    masked = unprojected_scores(job, ts.open_store(where), epochs=2, **own)
    wanted = np.asarray(ts.influence_scores(ts.open_store(where), epochs=2, damping=C))
    assert masked.shape == (TARGETS, TRAIN - 2)
    assert apart(masked, wanted) < 1e-3
    ts.open_store(where).mask("test", [1])
    with pytest.raises(NotFoundError, match=r"rows \[1\] of test are masked"):
        unprojected_scores(job, ts.open_store(where), rows=[0, 1])


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("output", CausalLM(reduction="sum")),
        ("parameters", ("layers.*",)),
        ("projector", ts.ProjectionSpec("sjlt", dim=64)),
        ("precision", "bfloat16"),
        ("scale", "adam"),
    ],
)
def test_a_job_of_other_features_is_refused_with_both_values(
    option: str, value: Any, whole: Any
) -> None:
    other = made(**{"projector": ts.ProjectionSpec("identity"), option: value})
    words = {
        "output": "holds output .*mean.*, this run has .*sum",
        "parameters": r"parameters .*\(\('token.*, this run has .*\(\('layers",
        "projector": "holds projection .*identity.*, this run has .*sjlt",
        "precision": "holds autocast None, this run has bfloat16",
        "scale": "has one from 'samples' as the scale of its gradients, and 'adam' is asked",
    }
    with pytest.raises(SpecMismatchError, match=words[option]):
        unprojected_scores(other, whole[1], damping=C)


def test_dropped_rows_are_told_before_any_gradient(
    whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, at_first, *_ = whole
    where = tmp_path / "s.zarr"
    shutil.copytree(Path(at_first.location.address), where)
    store = ts.open_store(where)
    store_sampled_gram(store, 2, "train")
    store.drop_rows(2, "train~sampled")  # of the last epoch alone
    monkeypatch.setattr(GradientRows, "tiles", None)
    with pytest.raises(IncompleteError, match=r"epoch 2 were dropped.*unprojected_scores needs"):
        unprojected_scores(job, ts.open_store(store.location), damping=C)


def test_passes_over_stored_rows_keep_to_the_limit(
    whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[int | None] = []

    def seen(features: Any, trace: float, limit: int | None = None) -> RowsKernel:
        limits.append(limit)
        return RowsKernel(features, trace, limit)

    monkeypatch.setattr("trakstore.attributors.unprojected.RowsKernel", seen)
    job, store, wanted, _ = whole
    scores = unprojected_scores(job, store, damping=C, iterations=0, memory_limit="300MB")
    assert limits == [300_000_000] * 2
    assert apart(scores, wanted) < 1e-3


def test_what_does_not_fit_is_refused(whole: Any, tmp_path: Path) -> None:
    job, store, *_ = whole
    with pytest.raises(NotFoundError, match="rows=5 is outside of 5 positions"):
        unprojected_scores(job, store, rows=[5])
    with pytest.raises(TrakStoreError, match="selects none of the 5 rows of test"):
        unprojected_scores(job, store, rows=[])
    for bad in ([1.9], [True, False], "1"):
        with pytest.raises(TrakStoreError, match="positions or a mask of 5"):
            unprojected_scores(job, store, rows=bad)  # type: ignore[arg-type]
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


def test_gradients_are_of_samples_as_they_are_without_padding(tmp_path: Path) -> None:
    scores = []
    for name, collate in (("none", Pad("left")), ("given", Pad("left", places=True))):
        job = Job(
            Placed(),
            {"train": Texts(range(3, 24, 4), rows=24), "test": Texts([1], rows=3)},
            projector=ts.ProjectionSpec("sjlt", dim=16),
            output="causal_lm",
            sampled=1,
            collate=collate,
            batch_size=6,
        )
        scores.append(np.asarray(unprojected_scores(job, stored(job, tmp_path / name), damping=C)))
    assert apart(scores[0], scores[1]) < 1e-3
