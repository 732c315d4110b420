"""The classes that people know give what the functions give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from features.models import Samples, mlp
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)

import trakstore as ts
from trakstore.attributors import (
    TracInAttributor,
    TRAKAttributor,
    compute_attribution_stability,
)
from trakstore.errors import NotFoundError, NumericsError, SpecMismatchError, TrakStoreError
from trakstore.features import featurize

TRAIN, TEST = Samples(40), Samples(9, seed=1)


def loader(data: Any, **more: Any) -> DataLoader[Any]:
    return DataLoader(data, batch_size=8, **more)


def direct(where: Path, **more: Any) -> ts.FeatureStore:
    for split, data in (("train", TRAIN), ("test", TEST)):
        spec = ts.ProjectionSpec("sjlt", dim=32)
        options = {"projector": spec, "batch_size": 8, "progress": False, **more}
        featurize(mlp(), data, where, split=split, **options)
    return ts.open_store(where)


def test_trak_is_the_functions_trak(tmp_path: Path) -> None:
    one = TRAKAttributor(mlp(), "image_classification", proj_dim=32)
    train = one.compute_train_features(loader(TRAIN))
    test = one.compute_test_features(loader(TEST))
    store = direct(tmp_path / "s")
    np.testing.assert_allclose(train, store.features(0, "train").values, rtol=1e-4, atol=1e-6)
    found = one.compute_attributions(train, test)
    assert found.shape == (9, 40) and found.dtype == torch.float32
    wanted = np.asarray(ts.trak_scores(store, temperature=None))
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())
    order = np.argsort(-wanted[3], kind="stable")[:5]
    np.testing.assert_array_equal(one.find_top_attributions(found, 3, 5), order)
    indices, scores = one.find_top_attributions(found, 3, 5, return_scores=True)
    np.testing.assert_array_equal(scores, found[3][indices])
    assert (one.total_params, one.proj_dim) == (sum(p.numel() for p in mlp().parameters()), 32)


def test_bare_features_have_q_of_one_and_say_so() -> None:
    one = TRAKAttributor(mlp(), proj_dim=16)
    rng = np.random.default_rng(0)
    train = torch.from_numpy(rng.normal(size=(20, 16)).astype(np.float32))
    with pytest.warns(UserWarning, match="Q = 1"):
        found = one.compute_attributions(train, train[:3])
    kernel = train.T @ train + train.square().sum() / 20 * torch.eye(16)
    wanted = train[:3] @ torch.linalg.inv(kernel) @ train.T
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


def test_the_projection_matrix_is_that_of_the_features() -> None:
    model = mlp().eval()
    one = TRAKAttributor(model, proj_dim=24)
    matrix = one.projection_matrix
    assert matrix.shape == (one.total_params, 24)
    x, y = TRAIN[5]
    logits = model(x[None])[0]
    margin = logits[y] - torch.cat([logits[:y], logits[y + 1 :]]).logsumexp(0)
    vector = one._compute_gradient_vector(margin)
    feature = one._project_gradient(vector)
    torch.testing.assert_close(feature, vector @ matrix[:], rtol=1e-4, atol=1e-5)
    stored = one.compute_train_features(loader(TRAIN))[5]
    torch.testing.assert_close(feature, stored, rtol=1e-3, atol=1e-5)
    assert matrix.norm().item() == pytest.approx(one.total_params**0.5, rel=1e-5)
    torch.testing.assert_close(matrix[3:9, :4], matrix[:][3:9, :4])
    torch.testing.assert_close(matrix[-1], matrix[:][-1])
    with pytest.raises(IndexError):
        matrix[one.total_params]
    with pytest.raises(TrakStoreError, match="flattened gradients of shape"):
        one._project_gradient(vector[:-1])


def test_frozen_parameters_are_left_out() -> None:
    model = mlp()
    frozen = next(model.parameters())
    frozen.requires_grad_(False)
    one = TRAKAttributor(model, proj_dim=16)
    assert one.total_params == sum(p.numel() for p in mlp().parameters()) - frozen.numel()
    assert one.compute_train_features(TRAIN, num_samples=6).shape == (6, 16)


def test_a_temporary_store_follows_the_model_and_a_given_one_refuses(tmp_path: Path) -> None:
    for store in (None, tmp_path / "s"):
        model = mlp()
        one = TRAKAttributor(model, proj_dim=16, store=store)
        before = one.compute_train_features(TRAIN)
        with torch.no_grad():
            next(model.parameters()).add_(0.5)
        if store is None:
            assert (one.compute_train_features(TRAIN) != before).any()
        else:
            with pytest.raises(SpecMismatchError, match="checkpoint"):
                one.compute_train_features(TRAIN)


def test_bad_use() -> None:
    with pytest.raises(TrakStoreError, match="device 'x' cannot be used"):
        TRAKAttributor(mlp(), device="x")
    one, train = TRAKAttributor(mlp(), proj_dim=16), torch.ones(3, 16)
    for bad, message in [
        (3, r"train features must have the shape \(samples, proj_dim\), got \(\): give what"),
        (torch.ones(16), r"got \(16,\): give what compute_train_features gave"),
        ("x", "train features must be a tensor, got 'x'"),
    ]:
        with pytest.raises(TrakStoreError, match=message):
            one.compute_attributions(bad, train)  # type: ignore[arg-type]
    with pytest.raises(TrakStoreError, match="test features must have the shape"):
        one.compute_attributions(train, torch.ones(16))
    with pytest.raises(TrakStoreError, match="test_idx must be an integer, got 'x'"):
        one.find_top_attributions(train, "x")  # type: ignore[arg-type]
    with pytest.raises(TrakStoreError, match="there are 3 targets, none at 3"):
        one.find_top_attributions(train, 3, 2)


def test_features_in_a_temporary_store_are_of_the_samples_as_they_are_now() -> None:
    """Of 100 samples 32 are compared by what they hold: none of those that change here."""
    data, one = Samples(100), TRAKAttributor(mlp(), proj_dim=16)
    before, test = one.compute_train_features(data), one.compute_test_features(TEST)
    data.y[37] = (data.y[37] + 1) % 3
    data.x[50] *= 2
    after = one.compute_train_features(data)
    changed = (after != before).any(1).nonzero()[:, 0].tolist()
    assert changed == [37, 50]
    wanted = TRAKAttributor(mlp(), proj_dim=16)
    torch.testing.assert_close(after, wanted.compute_train_features(data))
    wanted.compute_test_features(TEST)
    torch.testing.assert_close(
        one.compute_attributions(after, test), wanted.compute_attributions(after, test)
    )
    # Those before are no longer what the store has, and keep the Q that they were computed with.
    first = TRAKAttributor(mlp(), proj_dim=16)
    first.compute_train_features(Samples(100))
    torch.testing.assert_close(
        one.compute_attributions(before, test), first.compute_attributions(before, test)
    )


def test_loaders_that_lose_the_order_are_refused() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(TRAIN)

    one = TRAKAttributor(mlp(), proj_dim=16)
    for source, message in [
        (loader(TRAIN, shuffle=True), "RandomSampler"),
        (DataLoader(TRAIN, batch_sampler=[[1, 2], [3, 4]]), "by a list, .* no batch_sampler"),
        (DataLoader(TRAIN, batch_sampler=in_batches(RandomSampler(TRAIN))), "by a RandomSampler"),
        (loader(Stream()), "stream"),
        (iter([1]), "a length and indices"),
    ]:
        with pytest.raises(TrakStoreError, match=message):
            one.compute_train_features(source)
    with pytest.raises(TrakStoreError, match="num_samples must be in 1"):
        one.compute_train_features(TRAIN, num_samples=41)
    with pytest.raises(TrakStoreError, match="compute_train_features first"):
        _ = one.store
    assert len(one.compute_train_features(loader(Samples(19), drop_last=True))) == 16


def in_batches(sampler: Any) -> BatchSampler:
    return BatchSampler(sampler, 8, drop_last=True)


def test_samplers_that_keep_the_order_are_taken() -> None:
    one = TRAKAttributor(mlp(), proj_dim=16)
    wanted = one.compute_train_features(TRAIN)
    first = SequentialSampler(range(19))
    for source, count in [
        (DataLoader(TRAIN, batch_sampler=in_batches(SequentialSampler(TRAIN))), 40),
        (DataLoader(TRAIN, batch_sampler=in_batches(first)), 16),
        (loader(TRAIN, sampler=first), 19),
    ]:
        found = one.compute_train_features(source)
        torch.testing.assert_close(found, wanted[:count], rtol=1e-4, atol=1e-5)


def test_patterns() -> None:
    one = TRAKAttributor(mlp(), proj_dim=16)
    scores = torch.tensor([[1.0, -1, 3], [0, 2, 2]])
    found = one.analyze_attribution_patterns(scores, torch.tensor([0, 0, 1]), [1, 0])
    assert found["same_class_share"] == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert found["same_class_base_rate"] == pytest.approx(1 / 2)
    assert found["same_class_bias"] == pytest.approx(1 / 8)
    assert 0 < found["attribution_concentration"] < 1
    with pytest.raises(NumericsError, match="target 0 with train row 1 is nan"):
        one.analyze_attribution_patterns(scores.where(scores >= 0, torch.nan), [0, 0, 1], [1, 0])


def test_stability_over_seeds() -> None:
    one = TRAKAttributor(mlp(), proj_dim=64)
    found = compute_attribution_stability(one, loader(TRAIN), num_runs=2, top_k=5)
    assert found["num_runs"] == 2 and -1 <= found["spearman"] < 1
    exact = TRAKAttributor(mlp(), projector=ts.ProjectionSpec("identity"))
    with pytest.raises(TrakStoreError, match="no seed"):
        compute_attribution_stability(exact, TRAIN, num_runs=2)
    with pytest.raises(TrakStoreError, match="2 runs and 10 samples"):
        compute_attribution_stability(one, TRAIN, num_runs=1)


def losses(model: nn.Module, data: Any) -> np.ndarray[Any, Any]:
    """The flattened loss gradient of each sample, by plain autograd."""
    model.eval()
    rows = []
    for x, y in data:
        loss = nn.functional.cross_entropy(model(x[None]), torch.as_tensor(y)[None])
        rows.append(
            torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()))])
        )
    return torch.stack(rows).numpy()


def test_tracin_over_checkpoints() -> None:
    states = {1: mlp(1).state_dict(), 2: mlp(2).state_dict()}
    rates = {1: 0.1, 2: 0.02}
    one = TracInAttributor(mlp(), learning_rates=rates, checkpoints=states)
    found = one.compute_influences(TEST, loader(TRAIN), top_k=4)
    wanted = sum(
        rate * losses(mlp(epoch), TEST) @ losses(mlp(epoch), TRAIN).T
        for epoch, rate in rates.items()
    )
    order = np.argsort(-np.abs(wanted), axis=1, kind="stable")[:, :4]
    assert [[entry["train_index"] for entry in row] for row in found] == order.tolist()
    got = [[entry["influence"] for entry in row] for row in found]
    np.testing.assert_allclose(got, np.take_along_axis(wanted, order, 1), rtol=1e-3, atol=1e-6)


def test_tracin_of_the_last_layers() -> None:
    model = mlp()
    one = TracInAttributor(model, use_last_layers_only=True, num_last_layers=1)
    found = one.compute_influences(TEST, TRAIN, top_k=1, order="largest")
    last = sum(p.numel() for p in list(model.modules())[-1].parameters())
    wanted = losses(model, TEST)[:, -last:] @ losses(model, TRAIN)[:, -last:].T
    assert [row[0]["train_index"] for row in found] == wanted.argmax(1).tolist()
    with pytest.raises(TrakStoreError, match="num_last_layers"):
        TracInAttributor(model, use_last_layers_only=True, num_last_layers=0)


def test_tracin_sampled_says_how_much_it_saw() -> None:
    one = TracInAttributor(mlp(), projection_dim=256)
    found = one.compute_influences_sampled(TEST, TRAIN, sample_rate=0.5, top_k=3)
    whole = np.zeros((9, 40))
    for row, entries in enumerate(one.compute_influences(TEST, TRAIN, top_k=40)):
        for entry in entries:
            whole[row, entry["train_index"]] = entry["influence"]
    for row, entries in enumerate(found["influences"]):
        for entry in entries:
            assert entry["influence"] == pytest.approx(whole[row, entry["train_index"]], rel=1e-3)
    assert found["expected_recall"] == found["sampled"] / 40 < 0.7
    labels = np.array([int(y) for _, y in TRAIN])
    covered = [
        mean["low"] <= whole[row, labels == label].mean() <= mean["high"]
        for row, means in enumerate(found["mean_influence"])
        for label, mean in means.items()
    ]
    assert np.mean(covered) > 0.7
    pairs = TensorDataset(torch.randn(6, 8), torch.zeros(6, dtype=torch.long))
    with pytest.raises(TrakStoreError, match="stratify_by='colour'"):
        one.compute_influences_sampled(TEST, pairs, stratify_by="colour")


def test_features_of_two_checkpoints_are_not_multiplied() -> None:
    model = mlp()
    one = TRAKAttributor(model, proj_dim=16)
    train = one.compute_train_features(loader(TRAIN))
    with torch.no_grad():
        next(model.parameters()).add_(1)
    test = one.compute_test_features(loader(TEST))
    with pytest.raises(SpecMismatchError, match="made with the weights"):
        one.compute_attributions(train, test)
    assert one.compute_attributions(train, test, allow_other_weights=True).shape == (9, 40)


def in_chunks(one: TRAKAttributor, data: Any, size: int, **more: Any) -> list[torch.Tensor]:
    """Features of a data set by one call for each part of it, as people save memory."""
    parts = [range(at, min(at + size, len(data))) for at in range(0, len(data), size)]
    return [
        one.compute_train_features(loader(Subset(data, part)), num_samples=len(part), **more).cpu()
        for part in parts
    ]


@pytest.mark.parametrize("size", [7, 20, 40])
def test_features_that_were_computed_in_chunks_have_their_own_q(size: int) -> None:
    whole, one = (TRAKAttributor(mlp(), proj_dim=32) for _ in range(2))
    wanted = whole.compute_attributions(
        whole.compute_train_features(TRAIN), test := whole.compute_test_features(TEST)
    )
    chunks = in_chunks(one, TRAIN, size)
    one.compute_test_features(loader(TEST))
    found = one.compute_attributions(torch.cat(chunks), test)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    # Rows in another order, and a part of them, have the Q of their own rows too.
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    mixed = one.compute_attributions(torch.cat(chunks)[order], test)
    torch.testing.assert_close(mixed, wanted[:, order], rtol=1e-4, atol=1e-5)
    some = one.compute_attributions(torch.cat(chunks)[:15], test)
    q = direct_q(15)
    features = torch.cat(chunks)[:15]
    kernel = features.T @ features + features.square().sum() / 15 * torch.eye(32)
    torch.testing.assert_close(
        some, test @ torch.linalg.inv(kernel) @ features.T * q, rtol=1e-3, atol=1e-5
    )


def direct_q(rows: int) -> torch.Tensor:
    """1 - p of the first train samples."""
    with torch.no_grad():
        p = mlp().eval()(TRAIN.x[:rows]).softmax(1)
    return 1 - p[torch.arange(rows), TRAIN.y[:rows]]


def test_chunks_that_were_changed_are_refused() -> None:
    one = TRAKAttributor(mlp(), proj_dim=32)
    chunks, test = in_chunks(one, TRAIN, 20), one.compute_test_features(TEST)
    with pytest.raises(
        SpecMismatchError, match="40 of these 40 train features are not as they were"
    ):
        one.compute_attributions(torch.cat(chunks).half(), test)
    with pytest.raises(SpecMismatchError, match="1 of these 41 train features"):
        one.compute_attributions(torch.cat([*chunks, torch.ones(1, 32)]), test)


def test_chunks_of_other_weights_are_refused() -> None:
    model = mlp()
    one = TRAKAttributor(model, proj_dim=32)
    first = one.compute_train_features(loader(Subset(TRAIN, range(20))))
    with torch.no_grad():
        next(model.parameters()).add_(0.5)
    second = one.compute_train_features(loader(Subset(TRAIN, range(20, 40))))
    test = one.compute_test_features(TEST)
    with pytest.raises(SpecMismatchError, match="20 of these 40 train features"):
        one.compute_attributions(torch.cat([first, second]), test)
    assert one.compute_attributions(second, test).shape == (9, 20)


def test_a_task_that_is_none_and_no_samples_are_told() -> None:
    with pytest.raises(NotFoundError, match=r"there are margin, .*; or name a task: image_classif"):
        TRAKAttributor(mlp(), "image_clasification")
    tracin = TracInAttributor(mlp(), device="cpu")
    for test, train in ((TEST[0], []), ([], TRAIN)):
        with pytest.raises(TrakStoreError, match="there are no samples"):
            tracin.compute_influences(test, train)
