"""Every score method against its dense formula, over epochs, ragged blocks and masked rows."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import reference

import trakstore as ts
from trakstore.errors import NotFoundError, NumericsError, TrakStoreError
from trakstore.kernels.blocked_cholesky import BlockedCholesky
from trakstore.kernels.iterative import ConjugateGradients, Dual
from trakstore.kernels.row_weights import WeightedSplit
from trakstore.methods.influence import influence_scores, self_scores
from trakstore.methods.kernel_report import kernel_report
from trakstore.methods.neighbours import neighbours
from trakstore.methods.similarity import grad_cos_scores, grad_dot_scores, whitened_cos_scores
from trakstore.methods.tracin import tracin_scores
from trakstore.methods.trak import trak_scores
from trakstore.spec import OutputSpec

TRAIN, TEST, DIM = 61, 9, 12
EPOCHS: tuple[Any, ...] = (0, 4, "final")
MASKED = [3, 17, 60]
RATES = {0: 0.1, 4: 0.3, "final": 0.05}


def made(epoch: Any, split: str) -> dict[str, np.ndarray[Any, Any]]:
    rows = TRAIN if split == "train" else TEST
    rng = np.random.default_rng([EPOCHS.index(epoch), rows])
    scale = 10.0 ** -EPOCHS.index(epoch)
    return {
        "features": (scale * rng.normal(size=(rows, DIM)) + 0.3 * scale).astype(np.float32),
        "out_to_loss": rng.uniform(0.05, 1, rows).astype(np.float32),
        "labels": rng.integers(0, 3, rows),
    }


@pytest.fixture(scope="module", params=[False, True], ids=["whole", "masked"])
def store(request: Any, tmp_path_factory: Any) -> ts.FeatureStore:
    where = tmp_path_factory.mktemp("store") / "s.zarr"
    spec = ts.ProjectionSpec("sjlt", dim=DIM)
    store = ts.FeatureStore.create(where, projection=spec, output=OutputSpec("margin"))
    for epoch in EPOCHS:
        for split in ("train", "test"):
            given = made(epoch, split)
            store.write_split(epoch, split, **given, block_rows=7, learning_rate=RATES[epoch])
    if request.param:
        store.mask("train", MASKED)
    return store


def left(store: ts.FeatureStore) -> np.ndarray[Any, Any]:
    masked = store.split(0, "train").masked
    return np.setdiff1d(np.arange(TRAIN), masked)


def side(store: ts.FeatureStore, split: str, column: str) -> list[np.ndarray[Any, Any]]:
    keep = left(store) if split == "train" else np.arange(TEST)
    return [made(epoch, split)[column][keep].astype(np.float64) for epoch in EPOCHS]


def arrays(store: ts.FeatureStore) -> Any:
    names = [("test", "features"), ("train", "features"), ("test", "out_to_loss")]
    return [side(store, *name) for name in [*names, ("train", "out_to_loss")]]


def assert_close(found: Any, expected: np.ndarray[Any, Any]) -> None:
    found = np.asarray(found)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("of", ["loss", "output"])
def test_grad_dot(store: ts.FeatureStore, of: Any) -> None:
    parts = [
        (qt[:, None] * t) @ (q[:, None] * f).T if of == "loss" else t @ f.T
        for t, f, qt, q in zip(*arrays(store), strict=True)
    ]
    assert_close(grad_dot_scores(store, of=of), np.mean(parts, axis=0))


def test_grad_dot_is_symmetric(store: ts.FeatureStore) -> None:
    there = np.asarray(grad_dot_scores(store))
    back = np.asarray(grad_dot_scores(store, "train", "test"))
    np.testing.assert_allclose(there, back.T, rtol=0, atol=1e-6 * np.abs(there).max())


@pytest.mark.parametrize("of", ["loss", "output"])
def test_grad_cos(store: ts.FeatureStore, of: Any) -> None:
    parts = [reference.cosines(t, f) for t, f, _, _ in zip(*arrays(store), strict=True)]
    assert_close(grad_cos_scores(store, of=of), np.mean(parts, axis=0))


def test_grad_cos_does_not_see_the_scale_of_a_row(tmp_path: Any) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(20, 5)).astype(np.float32)
    features[7] = 0
    scale = 10.0 ** rng.integers(-3, 4, 20)[:, None]
    found = []
    for name, rows in [("a", features), ("b", (scale * features).astype(np.float32))]:
        one = ts.FeatureStore.create(tmp_path / name, projection=ts.ProjectionSpec("sjlt", dim=5))
        one.write_split(0, "train", rows)
        found.append(np.asarray(grad_cos_scores(one, "train", "train", of="output")))
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    np.testing.assert_allclose(np.delete(np.diag(found[0]), 7), 1, atol=1e-6)
    assert not found[0][7].any() and not found[0][:, 7].any()


@pytest.mark.parametrize("rates", [None, 0.5, {0: 1.0, 4: 2.0, "final": 3.0}])
def test_tracin(store: ts.FeatureStore, rates: Any) -> None:
    used = (
        RATES
        if rates is None
        else rates
        if isinstance(rates, dict)
        else dict.fromkeys(EPOCHS, rates)
    )
    parts = [
        used[epoch] * (-qt[:, None] * t) @ (-q[:, None] * f).T
        for epoch, t, f, qt, q in zip(EPOCHS, *arrays(store), strict=True)
    ]
    assert_close(tracin_scores(store, learning_rates=rates), np.sum(parts, axis=0))


@pytest.mark.parametrize("hessian", ["loss", "gauss_newton"])
@pytest.mark.parametrize(
    "solver", [None, Dual(), ConjugateGradients(tolerance=1e-12), BlockedCholesky("10MB")], ids=str
)
def test_influence(store: ts.FeatureStore, hessian: Any, solver: Any) -> None:
    parts = [
        reference.influence(t, f, qt, q, q**2 if hessian == "loss" else q * (1 - q), c=0.3)
        for t, f, qt, q in zip(*arrays(store), strict=True)
    ]
    found = influence_scores(store, damping=0.3, hessian=hessian, solver=solver)
    assert_close(found, np.mean(parts, axis=0))


@pytest.mark.parametrize("mix", [0.0, 0.4, 1.0])
def test_whitened_cosine(store: ts.FeatureStore, mix: float) -> None:
    parts = []
    for t, f, _, _ in zip(*arrays(store), strict=True):
        kernel = (1 - mix) * reference.gram(f) + mix * len(f) / len(t) * reference.gram(t)
        white = reference.root(kernel + 0.5 * np.trace(kernel) / len(f) * np.eye(DIM))
        parts.append(reference.cosines(t @ white, f @ white))
    assert_close(whitened_cos_scores(store, damping=0.5, mix=mix), np.mean(parts, axis=0))


def test_self_scores(store: ts.FeatureStore) -> None:
    _, features, _, q = arrays(store)
    whole = reference.trak(features, features, q)
    found = self_scores(store)
    assert_close(found, np.diag(whole))
    np.testing.assert_array_equal(found["position"], left(store))
    np.testing.assert_array_equal(found["train_id"], left(store))


@pytest.mark.parametrize("average", ["factors", "scores"])
@pytest.mark.parametrize("temperature", ["auto", 1, 3.5, None])
def test_trak_at_a_temperature(store: ts.FeatureStore, average: Any, temperature: Any) -> None:
    """Of the margin, 2 is the default; K and Q are those of a Newton step of logistic regression."""
    t, f, _, q = arrays(store)
    given = {"auto": 2}.get(temperature, temperature)
    dense = reference.trak(t, f, q, c=0.5, average=average, temperature=given)
    found = trak_scores(store, damping=0.5, temperature=temperature, average=average)
    assert_close(found, dense)
    again = trak_scores(store, damping=0.5, temperature=temperature, average=average)
    assert_close(again, dense)  # from the stored grams


def test_how_checkpoints_are_averaged_follows_the_formula(store: ts.FeatureStore) -> None:
    for temperature, average in (("auto", "scores"), (3, "scores"), (None, "factors")):
        heat: Any = temperature
        found = trak_scores(store, temperature=heat)
        named: Any = trak_scores(store, temperature=heat, average=average)
        np.testing.assert_array_equal(np.asarray(found), np.asarray(named))
        other: Any = "factors" if average == "scores" else "scores"
        apart = np.asarray(trak_scores(store, temperature=heat, average=other)) - np.asarray(found)
        assert np.abs(apart).max() > 0.01 * np.abs(np.asarray(found)).max()


def test_grams_of_each_temperature_are_apart(store: ts.FeatureStore) -> None:
    made = [np.asarray(trak_scores(store, temperature=one)) for one in (None, 1, 2, 2.5)]
    again = [np.asarray(trak_scores(store, temperature=one)) for one in (None, 1, 2, 2.5)]
    for one, other in zip(made, again, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len({one.tobytes() for one in made}) == 4
    assert ts.verify_store(store.location.address).ok


def test_each_temperature_has_a_name_that_no_other_has(store: ts.FeatureStore) -> None:
    near = [1.0, 2.0, float(np.nextafter(2.0, 3.0)), 1e-300, 123456789.5]
    names = [
        WeightedSplit(store.split(store.epochs[0], "train"), "logistic", one).weighting
        for one in near
    ]
    assert names[:2] == ["logistic", "logistic-2"]
    assert [float(name.removeprefix("logistic-")) for name in names[1:]] == near[1:]


def weight(weighting: str, q: Any) -> Any:
    tempered = q**0.5 / (q**0.5 + (1 - q) ** 0.5)
    known = {"none": np.ones(len(q)), "loss": q**2, "logistic": q * (1 - q)}
    return {**known, "logistic-2": tempered * (1 - tempered)}[weighting]


@pytest.mark.parametrize(
    ("weighting", "same_as"),
    [("auto", "logistic-2"), ("none", "none"), ("loss", "loss"), ("logistic", "logistic")],
)
def test_kernel_of_weighted_rows(store: ts.FeatureStore, weighting: str, same_as: str) -> None:
    _, (features, *_), _, (q, *_) = arrays(store)
    found = kernel_report(store, EPOCHS[0], damping=0.3, weighting=weighting)
    rows = np.sqrt(weight(same_as, np.asarray(q, dtype=np.float64)))[:, None] * features
    for name, expected in reference.spectrum(rows, 0.3).items():
        np.testing.assert_allclose(getattr(found, name), expected, rtol=1e-4, err_msg=name)
    assert (found.weighting or "none") == same_as
    assert found.n == len(features)


@pytest.mark.parametrize("weighting", ["losses", "logistic-", "logistic-0", "logistic-x", "loss-2"])
def test_bad_weightings(store: ts.FeatureStore, weighting: str) -> None:
    with pytest.raises(TrakStoreError, match="a weighting is 'loss', 'logistic' or"):
        kernel_report(store, EPOCHS[0], weighting=weighting)


@pytest.mark.parametrize("temperature", [0, -1, "hot", float("nan"), float("inf")])
def test_bad_temperatures(store: ts.FeatureStore, temperature: Any) -> None:
    with pytest.raises(TrakStoreError, match="temperature must be above 0"):
        trak_scores(store, temperature=temperature)


@pytest.mark.parametrize("average", ["factors", "scores"])
def test_soft_threshold(store: ts.FeatureStore, average: Any) -> None:
    t, f, _, q = arrays(store)
    dense = reference.trak(t, f, q, average=average)
    limit = float(np.quantile(np.abs(dense), 0.8))
    found = trak_scores(store, temperature=None, average=average, soft_threshold=limit)
    assert_close(found, np.sign(dense) * np.maximum(np.abs(dense) - limit, 0))
    assert 0.1 < (np.asarray(found) != 0).mean() < 0.3


@pytest.mark.parametrize("average", ["factors", "scores"])
def test_soft_threshold_of_each_target(store: ts.FeatureStore, average: Any) -> None:
    t, f, _, q = arrays(store)
    dense = reference.trak(t, f, q, average=average)
    limits = np.median(np.abs(dense), axis=1, keepdims=True) / 0.6745
    found = trak_scores(store, temperature=None, average=average, soft_threshold="auto")
    assert_close(found, np.sign(dense) * np.maximum(np.abs(dense) - limits, 0))
    assert 0.1 < (np.asarray(found) != 0).mean() < 0.5


METHODS: list[Any] = [
    trak_scores,
    lambda store: trak_scores(store, average="scores"),
    tracin_scores,
    influence_scores,
    grad_cos_scores,
]


@pytest.mark.parametrize("how", ["sum", "mean"])
@pytest.mark.parametrize("method", METHODS)
def test_group_scores_are_sums_of_scores(store: ts.FeatureStore, method: Any, how: Any) -> None:
    scores = method(store)
    dense = np.asarray(scores)
    labels = made(0, "train")["labels"][left(store)]
    names = np.array(["a", "b"])[np.arange(TEST) % 2]
    found = ts.group_scores(scores, targets=names, train="label", how=how)
    mine = [[dense[np.ix_(names == a, labels == b)] for b in range(3)] for a in ("a", "b")]
    expected = np.array([[block.sum() for block in row] for row in mine])
    if how == "mean":
        expected = np.array([[block.mean() for block in row] for row in mine])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(dense).sum())
    assert found.to_xarray()["target_id"].values.tolist() == ["a", "b"]
    assert ts.top_k(found, 1)["train"].shape == (2, 1)
    one = ts.group_scores(scores, train="label", how=how)
    assert one.shape == (TEST, 3)


def test_group_scores_refuse(store: ts.FeatureStore) -> None:
    scores = trak_scores(store)
    with pytest.raises(TrakStoreError, match="needed a group for each of 9"):
        ts.group_scores(scores, targets=[1, 2])
    with pytest.raises(TrakStoreError, match="takes 'label'"):
        ts.group_scores(scores, train="labels")
    with pytest.raises(TrakStoreError, match="soft threshold"):
        ts.group_scores(trak_scores(store, soft_threshold=1.0), train="label")
    with pytest.raises(TrakStoreError, match="not linear"):
        ts.group_scores(trak_scores(store, soft_threshold="auto"), train="label")
    with pytest.raises(TrakStoreError, match="how must be"):
        ts.group_scores(scores, train="label", how="median")  # type: ignore[arg-type]


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("k", [1, 5, 58])
def test_neighbours(store: ts.FeatureStore, metric: Any, k: int) -> None:
    t, f = (side(store, name, "features")[1] for name in ("test", "train"))
    dense = 1 - reference.cosines(t, f)
    if metric == "l2":
        dense = np.linalg.norm(t[:, None] - f[None], axis=2)
    found = neighbours(store, epoch=4, k=k, metric=metric)
    order = np.argsort(dense, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(found["position"], left(store)[order])
    np.testing.assert_allclose(found["distance"], np.take_along_axis(dense, order, 1), atol=1e-12)


def test_a_row_is_its_own_neighbour_at_distance_zero(store: ts.FeatureStore) -> None:
    found = neighbours(store, "train", "train", epoch=0, k=2)
    np.testing.assert_array_equal(found["position"][:, 0], left(store))
    assert not found["distance"][:, 0].any() and (found["distance"][:, 1] > 0).all()


def test_what_cannot_be_asked(store: ts.FeatureStore, tmp_path: Any) -> None:
    with pytest.raises(TrakStoreError, match=r"name one \(--epoch\) of 0, 4, final"):
        neighbours(store)
    with pytest.raises(TrakStoreError, match="k must be in"):
        neighbours(store, epoch=0, k=62)
    with pytest.raises(TrakStoreError, match="metric must be"):
        neighbours(store, epoch=0, metric="l1")  # type: ignore[arg-type]
    with pytest.raises(TrakStoreError, match="of must be"):
        grad_dot_scores(store, of="logit")  # type: ignore[arg-type]
    with pytest.raises(TrakStoreError, match="mix is a share"):
        whitened_cos_scores(store, mix=2)
    with pytest.raises(TrakStoreError, match="hessian must be"):
        influence_scores(store, hessian="fisher")  # type: ignore[arg-type]
    with pytest.raises(NotFoundError, match="not scored; did you mean 'final'"):
        tracin_scores(store, learning_rates={"finl": 1.0})
    with pytest.raises(TrakStoreError, match="above 0"):
        tracin_scores(store, learning_rates=-1.0)
    with pytest.raises(TrakStoreError, match="soft_threshold"):
        trak_scores(store, soft_threshold=-1)
    bare = ts.FeatureStore.create(tmp_path / "b", projection=ts.ProjectionSpec("external", dim=DIM))
    for split in ("train", "test"):
        bare.write_split(0, split, made(0, split)["features"])
    rated = partial(tracin_scores, learning_rates=1.0)
    for method in (trak_scores, rated, influence_scores, grad_dot_scores):
        with pytest.raises(NotFoundError, match="write_split takes out_to_loss="):
            method(bare)
    assert grad_dot_scores(bare, of="output").shape == (TEST, TRAIN)
    loss = np.full(TRAIN, 1.5, np.float32), np.full(TEST, 1.5, np.float32)
    bare.write_split(1, "train", made(0, "train")["features"], out_to_loss=loss[0])
    bare.write_split(1, "test", made(0, "test")["features"], out_to_loss=loss[1])
    with pytest.raises(NotFoundError, match="no learning rate for epoch 1"):
        tracin_scores(bare, epochs=1)
    with pytest.raises(TrakStoreError, match="use hessian='loss'"):
        influence_scores(bare, epochs=1)
    with pytest.raises(NumericsError, match="use hessian='loss'"):
        logistic = ts.FeatureStore.create(
            tmp_path / "l",
            projection=ts.ProjectionSpec("sjlt", dim=DIM),
            output=OutputSpec("margin"),
        )
        for at, split in enumerate(("train", "test")):
            logistic.write_split(0, split, made(0, split)["features"], out_to_loss=loss[at])
        np.asarray(influence_scores(logistic))


def test_ridge_regression_left_out_is_recovered(tmp_path: Any) -> None:
    """The change of a linear model's outputs by leaving a sample out, in closed form.

    With w = (XᵀX + λI)⁻¹ Xᵀy, the model without sample i gives a target t the output
    tᵀw − tᵀ(XᵀX + λI)⁻¹xᵢ·rᵢ/(1 − hᵢ), with residual rᵢ = yᵢ − xᵢᵀw and leverage hᵢ. The
    gradient of the output tᵀw is t; for the loss (output − y)²/2, out_to_loss is the residual: TRAK's
    score with Q = rᵢ/(1 − hᵢ) is the exact change, and with Q = rᵢ its first order.
    """
    rng = np.random.default_rng(1)
    x, t = rng.normal(size=(80, 6)), rng.normal(size=(5, 6))
    y, lam = x @ rng.normal(size=6) + rng.normal(size=80), 2.0
    kernel = np.linalg.inv(x.T @ x + lam * np.eye(6))
    weights = kernel @ x.T @ y
    residual, leverage = y - x @ weights, np.einsum("ij,jk,ik->i", x, kernel, x)
    changes = np.empty((5, 80))
    for i in range(80):
        rest = np.delete(np.arange(80), i)
        w = np.linalg.solve(x[rest].T @ x[rest] + lam * np.eye(6), x[rest].T @ y[rest])
        changes[:, i] = t @ weights - t @ w
    store = ts.FeatureStore.create(tmp_path / "s", projection=ts.ProjectionSpec("identity"))
    scale = (residual / (1 - leverage)).astype(np.float32)
    store.write_split(0, "train", x.astype(np.float32), out_to_loss=scale)
    store.write_split(0, "test", t.astype(np.float32), out_to_loss=np.ones(5, np.float32))
    found = np.asarray(trak_scores(store, damping=ts.Damping(absolute=lam)))
    np.testing.assert_allclose(found, changes, rtol=1e-3, atol=1e-5)
    store.write_split(1, "train", x.astype(np.float32), out_to_loss=residual.astype(np.float32))
    store.write_split(1, "test", t.astype(np.float32), out_to_loss=np.ones(5, np.float32))
    first = np.asarray(trak_scores(store, epochs=1, damping=ts.Damping(absolute=lam)))
    assert np.corrcoef(first.ravel(), changes.ravel())[0, 1] > 0.99
