"""Numbers of NumPy and torch wherever a number is taken; booleans, which are none, nowhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from features.models import Samples, mlp

import trakstore as ts
from trakstore.analysis import evolution, transition
from trakstore.attributors import TrainingDynamicsTracker, TRAKer
from trakstore.errors import NotFoundError, TrakStoreError
from trakstore.evaluation.training import SubsetTrainer
from trakstore.features import Job, featurize, featurize_job
from trakstore.planning import byte_count
from trakstore.quantities import as_number, as_whole, is_number, is_whole
from trakstore.sampling import SubsetPlan, sample_rows
from trakstore.spec import OutputSpec

WHOLE = [3, np.int8(3), np.uint64(3), np.array(3), torch.tensor(3)]
REAL = [0.5, np.float16(0.5), np.float64(0.5), np.array(0.5), torch.tensor(0.5)]
BOOLEAN = [True, np.True_, torch.tensor(True)]


@pytest.mark.parametrize("value", WHOLE, ids=repr)
def test_whole_numbers_of_any_library(value: Any) -> None:
    assert is_whole(value)
    assert is_number(value)
    assert type(as_whole(value, "k", 1, 3)) is int
    assert type(as_number(value, "k")) is float


@pytest.mark.parametrize("value", REAL, ids=repr)
def test_real_numbers_of_any_library(value: Any) -> None:
    assert not is_whole(value)
    assert as_number(value, "share", above=0, most=0.5) == 0.5
    with pytest.raises(TrakStoreError, match="k must be an integer, 1 or more, got "):
        as_whole(value, "k", 1)


def test_values_are_one_line_of_a_message() -> None:
    with pytest.raises(TrakStoreError, match=r"got tensor\(.*\.\.\.$") as caught:
        as_number(torch.zeros(9, 9), "c")
    assert "\n" not in str(caught.value)


NO_NUMBERS = [
    "3",
    b"3",
    None,
    [3],
    np.array([3]),
    torch.ones(1),
    1j,
    np.complex64(1),
    torch.tensor(1j),
]


@pytest.mark.parametrize("value", [*NO_NUMBERS, *BOOLEAN], ids=repr)
def test_what_is_no_number(value: Any) -> None:
    assert not is_whole(value)
    assert not is_number(value)
    with pytest.raises(TrakStoreError, match="k must be an integer from 0 to 9, got "):
        as_whole(value, "k", 0, 9)
    with pytest.raises(TrakStoreError, match="c must be a number above 0 and at most 1, got "):
        as_number(value, "c", above=0, most=1)


@pytest.mark.parametrize("value", [float("nan"), np.float32("inf")])
def test_numbers_are_finite(value: Any) -> None:
    with pytest.raises(TrakStoreError, match="c must be a finite number, got "):
        as_number(value, "c")


def test_specs_hold_numbers_that_documents_hold() -> None:
    asked = ts.ProjectionSpec(
        "sjlt", dim=np.int64(8), seed=np.uint64(2**64 - 1), s=np.int8(2), version=np.int64(1)
    )
    plain = ts.ProjectionSpec("sjlt", dim=8, seed=2**64 - 1, s=2)
    assert json.dumps(asked.to_dict()) == json.dumps(plain.to_dict())
    assert asked == plain
    output = OutputSpec("margin", (("scale", np.float32(0.5)), ("classes", np.int16(3))))
    assert json.loads(json.dumps(output.to_dict()))["options"] == {"scale": 0.5, "classes": 3}
    plan = SubsetPlan(
        rows=np.int16(300), share=np.float32(0.5), repeats=np.int8(2), seed=np.int8(9)
    )
    assert plan == SubsetPlan(rows=300, repeats=2, seed=9)
    assert json.loads(json.dumps(plan.to_dict())) == plan.to_dict()
    assert ts.Damping(np.float32(2)) == ts.Damping(2.0)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> ts.FeatureStore:
    """By numpy numbers alone, as a loop over an array of epochs has them."""
    where = tmp_path_factory.mktemp("numbers") / "a.zarr"
    spec = ts.ProjectionSpec("sjlt", dim=np.int64(8))
    options: dict[str, Any] = {"batch_size": np.int64(4), "block_rows": np.int32(8)}
    for epoch in np.arange(3, 5):
        for split, rows in (("train", 20), ("test", 6)):
            featurize(
                mlp(int(epoch)),
                Samples(rows),
                where,
                epoch=epoch,
                split=split,
                projector=spec,
                keep_bits=np.int8(12),
                learning_rate=np.float32(0.1),
                ids=np.arange(rows, dtype=np.uint8),
                memory_limit=np.int64(10**9),
                rank=np.int64(0),
                world_size=np.int64(1),
                progress=False,
                **options,
            )
    return ts.open_store(where)


def test_features_are_written_by_numbers_of_numpy(written: ts.FeatureStore) -> None:
    split = written.split(np.int64(3), "train")
    assert written.epochs == (3, 4)
    assert (split.spec.block_rows, split.spec.keep_bits) == (8, 12)
    assert split.spec.learning_rate == float(np.float32(0.1))
    assert json.dumps(split.spec.to_dict())


def test_a_job_names_epochs_by_numbers_of_numpy(tmp_path: Path) -> None:
    epochs, spec = np.arange(2), ts.ProjectionSpec("sjlt", dim=8)
    weights = {epoch: mlp(int(epoch)).state_dict() for epoch in epochs}
    rates = dict.fromkeys(epochs, np.float64(0.1))
    job = Job(
        mlp(), {"train": Samples(9)}, projector=spec, checkpoints=weights, learning_rates=rates
    )
    assert [type(epoch) for epoch in job.epochs] == [int, int]
    job.load(epochs[1])
    featurize_job(
        job, tmp_path / "a.zarr", epochs=epochs[:1], batch_size=np.int64(4), progress=False
    )
    assert ts.open_store(tmp_path / "a.zarr").epochs == (0,)
    assert ts.open_store(tmp_path / "a.zarr").split(0, "train").spec.learning_rate == 0.1
    with pytest.raises(TrakStoreError, match="checkpoints name an epoch twice: 1, '1'"):
        Job(mlp(), {}, checkpoints={1: {}, "1": {}})


def test_questions_are_asked_by_numbers_of_numpy(written: ts.FeatureStore) -> None:
    k, limit = np.int8(20), np.int32(10**9)  # ten times this k is outside of int8
    want = ts.trak_scores(written, epochs=[3, 4], damping=0.5, temperature=1.5, soft_threshold=0.0)
    got = ts.trak_scores(
        written,
        epochs=np.array([3, 4]),
        damping=np.float32(0.5),
        temperature=np.float32(1.5),
        soft_threshold=np.float32(0),
        memory_limit=limit,
    )
    np.testing.assert_array_equal(np.asarray(got), np.asarray(want))
    assert [type(epoch) for epoch in got.epochs] == [int, int]
    assert ts.trak_scores(written, epochs=np.int64(4)).epochs == (4,)
    for listed in (ts.top_k(got, k, memory_limit=limit), ts.approximate_top_k(got, k)):
        np.testing.assert_array_equal(listed["position"], ts.top_k(want, 20)["position"])
    ts.save_scores(got, written, "top", top=np.int64(5))
    assert ts.open_scores(written, "top").sizes["rank"] == 5
    assert evolution(got, k=np.int8(5)).sizes["rank"] == 5
    ends = got.epoch(np.int64(3)), got.epoch(np.int64(4))
    assert len(transition(*ends, k=np.int8(4), resamples=np.int16(20)).gained["position"]) == 4
    near = ts.neighbours(written, epoch=np.int64(3), k=np.int8(4))
    assert near.sizes["rank"] == 4
    assert type(ts.kernel_report(written, np.int64(3), "train").epoch) is int
    rates = {epoch: np.float32(1) for epoch in np.array([3, 4])}
    assert ts.tracin_scores(written, learning_rates=rates).epochs == (3, 4)
    whitened = ts.whitened_cos_scores(written, mix=np.float32(0.5))
    np.testing.assert_array_equal(
        np.asarray(whitened), np.asarray(ts.whitened_cos_scores(written, mix=0.5))
    )


def test_one_by_itself_is_some(written: ts.FeatureStore, tmp_path: Path) -> None:
    report = ts.verify_store(written, epochs=np.int64(3), splits="train", workers=np.int64(1))
    assert [(one.epoch, one.split) for one in report.splits] == [(3, "train")]
    with pytest.raises(NotFoundError, match="no split 'rain'"):
        ts.verify_store(written, splits="rain")
    assert written.mask("test", [0], epochs=np.int64(3)) == 1
    assert written.mask("test", [0], epochs=3, masked=False) == 1
    job = Job(mlp(), {"train": Samples(4), "a": Samples(4)}, parameters="2.*")
    featurize_job(job, tmp_path / "a.zarr", epochs=0, splits="train", progress=False)
    assert ts.open_store(tmp_path / "a.zarr").splits == ("train",)


CALLS: dict[str, Callable[[ts.FeatureStore, Any], Any]] = {
    "dim": lambda _, no: ts.ProjectionSpec("sjlt", dim=no),
    "seed": lambda _, no: ts.ProjectionSpec("sjlt", dim=2, seed=no),
    "s": lambda _, no: ts.ProjectionSpec("sjlt", dim=2, s=no),
    "side": lambda _, no: ts.ProjectionSpec("kronecker", dim=2, side=no),
    "keep_bits": lambda _, no: ts.FeatureStore.create(
        "memory://no", projection=ts.ProjectionSpec("sjlt", dim=2), keep_bits=no
    ),
    "epoch": lambda s, no: s.features(no, "train"),
    "epochs": lambda s, no: ts.trak_scores(s, epochs=[no]),
    "damping": lambda s, no: ts.trak_scores(s, damping=no),
    "temperature": lambda s, no: ts.trak_scores(s, temperature=no),
    "mix": lambda s, no: ts.whitened_cos_scores(s, mix=no),
    "rates": lambda s, no: ts.tracin_scores(s, learning_rates=no),
    "k": lambda s, no: ts.top_k(ts.grad_dot_scores(s), no),
    "candidates": lambda s, no: ts.approximate_top_k(ts.grad_dot_scores(s), 1, candidates=no),
    "neighbours": lambda s, no: ts.neighbours(s, epoch=3, k=no),
    "top": lambda s, no: ts.save_scores(ts.grad_dot_scores(s), s, "no", top=no),
    "threshold": lambda s, no: ts.save_scores(ts.grad_dot_scores(s), s, "no", threshold=no),
    "memory": lambda s, no: ts.top_k(ts.grad_dot_scores(s), 1, memory_limit=no),
    "rate": lambda _, no: sample_rows(10, no),
    "repeats": lambda _, no: SubsetPlan(rows=4, repeats=no),
    "share": lambda _, no: SubsetPlan(rows=4, share=no),
    "batch_size": lambda _, no: Job(mlp(), {}, batch_size=no),
    "block_rows": lambda _, no: Job(mlp(), {}, block_rows=no),
    "learning_rate": lambda _, no: Job(mlp(), {}, learning_rates={0: no}),
    "checkpoints": lambda _, no: Job(mlp(), {}, checkpoints={no: {}}),
    "rank": lambda _, no: featurize(mlp(), Samples(4), "memory://no", rank=no, world_size=2),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("boolean", BOOLEAN, ids=repr)
def test_booleans_are_refused_as_numbers(call: str, boolean: Any, written: ts.FeatureStore) -> None:
    with pytest.raises(TrakStoreError, match="True"):
        CALLS[call](written, boolean)


@pytest.mark.parametrize(
    "size", [600_000_000, np.int32(600_000_000), 6e8, np.float32(6e8), "600MB"]
)
def test_sizes(size: Any) -> None:
    assert byte_count(size) == 600_000_000


def test_front_ends_take_numbers_of_numpy(tmp_path: Path) -> None:
    model, data = mlp(), Samples(6)
    x, y = torch.stack([one for one, _ in data]), torch.stack([label for _, label in data])
    traker = TRAKer(
        model,
        "image_classification",
        train_set_size=np.int64(6),
        save_dir=tmp_path,
        device="cpu",
        proj_dim=np.int64(8),
        projector_seed=np.int64(3),
        lambda_reg=np.float32(0.1),
    )
    for model_id in np.arange(2):
        traker.load_checkpoint(model.state_dict(), model_id=model_id)
        traker.featurize((x, y), num_samples=np.int64(6))
    traker.finalize_features(np.arange(2))
    traker.start_scoring_checkpoint("q", model.state_dict(), np.int64(1), num_targets=np.int64(2))
    traker.score((x[:2], y[:2]), num_samples=np.int64(2))
    assert traker.finalize_scores("q", model_ids=np.array([1])).shape == (6, 2)
    assert traker.store.epochs == (0, 1)
    with TrainingDynamicsTracker(
        save_interval=np.int64(1), store=tmp_path / "d", rank=np.int64(1)
    ) as tracker:
        tracker.update(np.int64(2), 0, x, y, model(x), ids=np.arange(6, dtype=np.uint8))
        assert tracker.analyze().sizes["sample"] == 6
    trainer = SubsetTrainer(mlp, data, data, epochs=np.int64(1), batch_size=np.int64(3))
    assert (type(trainer.epochs), type(trainer.batch_size)) == (int, int)
