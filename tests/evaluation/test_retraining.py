from __future__ import annotations

from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import pytest
from distributed import Client, LocalCluster

import trakstore as ts
from trakstore.errors import (
    DamagedError,
    LocationError,
    NotFoundError,
    NumericsError,
    SpecMismatchError,
    TrakStoreError,
)
from trakstore.evaluation.retraining import Retrained, add_retrained, retrain, retrained_models
from trakstore.sampling import SubsetPlan

ROWS, TARGETS = 20, 3
WEIGHTS = np.random.default_rng(0).normal(size=(ROWS, TARGETS))
PLAN = SubsetPlan(ROWS, share=0.4, repeats=2, seed=7)


def linear(subsets: Any, seeds: Any) -> Retrained:
    noise = np.stack([np.random.default_rng(seed).normal(size=TARGETS) for seed in seeds])
    output = (subsets @ WEIGHTS + noise).astype(np.float32)
    return Retrained(output, (output > 0).astype(np.int64))


class Stopping:
    """Is interrupted after some calls."""

    def __init__(self, calls: int) -> None:
        self.calls, self.models = calls, 0

    def __call__(self, subsets: Any, seeds: Any) -> Retrained:
        if not self.calls:
            raise KeyboardInterrupt
        self.calls, self.models = self.calls - 1, self.models + len(seeds)
        return linear(subsets, seeds)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    ts.FeatureStore.create(tmp_path / "s.zarr", projection=ts.ProjectionSpec("identity"))
    return tmp_path / "s.zarr"


def test_what_a_plan_says() -> None:
    masks = PLAN.masks(0, 40)
    assert (masks.sum(1) == 8).all()
    np.testing.assert_array_equal(masks[::2], masks[1::2])  # two models of each subset,
    assert len(set(PLAN.seeds(0, 40).tolist())) == 40  # which are not the same,
    assert len(np.unique(masks, axis=0)) == 20
    np.testing.assert_array_equal(PLAN.masks(11, 13), masks[11:13])  # and depend on numbers alone
    np.testing.assert_array_equal(PLAN.seeds(11, 13), PLAN.seeds(0, 40)[11:13])
    assert (SubsetPlan(ROWS, share=0.4, seed=8).masks(0, 20) != masks[::2]).any()
    share = SubsetPlan(ROWS, share=0.4).masks(0, 2000).mean(0)  # each row in 0.4 of them
    assert np.abs(share - 0.4).max() < 5 * np.sqrt(0.24 / 2000)


def test_rows_that_are_left_out_are_in_no_subset() -> None:
    plan = SubsetPlan(10, without=[7, 0])
    masks = plan.masks(0, 500)
    assert not masks[:, [0, 7]].any()
    assert (masks.sum(1) == 4).all()
    others = np.delete(masks, [0, 7], axis=1).mean(0)
    assert np.abs(others - 0.5).max() < 5 * np.sqrt(0.25 / 500)
    assert plan == SubsetPlan(10, without=(0, 7))
    documents = [SubsetPlan(10, without=rows).to_dict() for rows in ([0, 7], [0, 8], [])]
    assert documents[0] != documents[1]
    assert documents[2] == {"rows": 10, "share": 0.5, "repeats": 1, "seed": 0}  # that of old sets
    for rows in ([10], [-1]):
        with pytest.raises(TrakStoreError, match=r"positions in 0\.\.9"):
            SubsetPlan(10, without=rows)
    with pytest.raises(TrakStoreError, match=r"of 1$"):
        SubsetPlan(10, without=range(9))


def test_a_subset_has_the_rows_that_its_share_says() -> None:
    """0.29 of 100 is 28.999999999999996 in floating point, and so are many others."""
    for hundredths in range(1, 101):
        for rows in (100, 1000, 10**8):
            assert SubsetPlan(rows, share=hundredths / 100).size == hundredths * rows // 100
    assert SubsetPlan(300, share=1 / 3).size == 100
    assert SubsetPlan(7, share=0.5).size == 3
    # A set of before, of 28 rows, does not go on with 29.
    assert SubsetPlan(100, share=0.29).to_dict() == {
        "rows": 100, "share": 0.29, "repeats": 1, "seed": 0, "size": 29
    }  # fmt: skip
    assert "size" not in SubsetPlan(100, share=0.3).to_dict()


class Counted:
    """Knows its number of targets before it trains."""

    def count_targets(self) -> int:
        return 6

    def __call__(self, subsets: Any, _seeds: Any) -> Retrained:
        raise AssertionError(f"{len(subsets)} models should not be trained")


def test_other_targets_are_refused_before_they_are_stored(place: Path) -> None:
    with pytest.raises(TrakStoreError, match="of 6 targets: needed 3 or 5"):
        retrain(Counted(), place, "x", PLAN, 4, targets=(5, 3))
    retrain(linear, place, "x", PLAN, 2, targets=[TARGETS])
    for trainer in (Counted(), lambda s, _: Retrained(np.zeros((len(s), 6), np.float32))):
        with pytest.raises(TrakStoreError, match=f"of 6 targets: needed {TARGETS}"):
            retrain(trainer, place, "x", PLAN, 4)
    with pytest.raises(TrakStoreError, match=f"of {TARGETS} targets: needed 6"):
        retrain(linear, place, "x", PLAN, 4, targets=[6])
    assert retrained_models(place, "x").sizes["model"] == 2


@pytest.mark.parametrize("classes", [np.zeros((4, 1), int), np.zeros((4, 3))])
def test_classes_that_do_not_fit_are_refused_before_they_are_stored(
    place: Path, classes: Any
) -> None:
    with pytest.raises(TrakStoreError, match=r"predicted classes of shape \(4, 3\)"):
        retrain(
            lambda s, _: Retrained(np.zeros((len(s), 3), np.float32), classes), place, "x", PLAN, 4
        )
    with pytest.raises(NotFoundError, match="no models"):
        retrained_models(place, "x")


def test_a_stopped_run_goes_on_and_models_are_added(place: Path) -> None:
    stopped, told = Stopping(2), []
    with pytest.raises(KeyboardInterrupt):
        retrain(stopped, place, "halves", PLAN, 10, at_once=4)
    assert len(retrained_models(place, "halves")["model"]) == stopped.models == 8
    again = Stopping(9)
    found = retrain(again, place, "halves", PLAN, 13, at_once=3, finished=told.append)
    assert (again.models, told) == (5, [3, 2])
    whole = linear(PLAN.masks(0, 13), PLAN.seeds(0, 13))
    np.testing.assert_array_equal(found["model"], range(13))
    np.testing.assert_array_equal(found["subset"], PLAN.masks(0, 13))
    np.testing.assert_array_equal(found["output"], whole.output)
    np.testing.assert_array_equal(found["predicted"], whole.predicted)
    retrain(Stopping(0), place, "halves", PLAN, 13)  # nothing is missing
    assert ts.verify_store(place).ok


def test_holes_are_filled(place: Path) -> None:
    retrain(linear, place, "a", PLAN, 12, at_once=3)
    rmtree(place / "evaluation/a/models.3")
    counted = Stopping(9)
    found = retrain(counted, place, "a", PLAN, 12, at_once=50)
    assert counted.models == 3
    np.testing.assert_array_equal(found["subset"], PLAN.masks(0, 12))


def test_a_set_that_lost_or_swapped_something_is_not_read(place: Path) -> None:
    retrain(linear, place, "a", PLAN, 6, at_once=3)
    parts = place / "evaluation/a"
    for name in ("zarr.json", "output/c/0/0"):
        one, other = parts / "models.0" / name, parts / "models.3" / name
        kept = one.read_bytes()
        for content in (None, other.read_bytes(), b""):
            one.unlink() if content is None else one.write_bytes(content)
            with pytest.raises(DamagedError):
                retrained_models(place, "a")
            assert not ts.verify_store(place).ok
            one.write_bytes(kept)
    assert len(retrained_models(place, "a")["model"]) == 6


def test_of_two_who_train_one_set_the_second_is_refused(place: Path) -> None:
    def meanwhile(subsets: Any, seeds: Any) -> Retrained:
        with pytest.raises(LocationError, match="evaluation/a is being changed"):
            retrain(linear, place, "a", PLAN, 6)
        return linear(subsets, seeds)

    assert len(retrain(meanwhile, place, "a", PLAN, 6)["model"]) == 6


def test_another_plan_is_refused(place: Path) -> None:
    retrain(linear, place, "halves", PLAN, 2)
    with pytest.raises(SpecMismatchError, match=r"'seed': 7.*'seed': 8"):
        retrain(linear, place, "halves", SubsetPlan(ROWS, share=0.4, repeats=2, seed=8), 2)
    with pytest.raises(NotFoundError, match="did you mean 'halves'"):
        retrained_models(place, "halfs")


class Telling:
    """Tells how it trains."""

    def __init__(self, epochs: Any = 5, **more: Any) -> None:
        self.told = {"epochs": epochs, "optimizer": {"name": "SGD", "lr": 0.1, **more}}

    def __call__(self, subsets: Any, seeds: Any) -> Retrained:
        return linear(subsets, seeds)

    def to_dict(self) -> Any:
        return self.told


def test_another_trainer_is_refused(place: Path) -> None:
    retrain(Telling(betas=(0.9, 0.99)), place, "halves", PLAN, 2)
    found = retrain(Telling(betas=(0.9, 0.99)), place, "halves", PLAN, 4)  # the same one goes on
    assert found.sizes["model"] == 4
    with pytest.raises(SpecMismatchError) as error:
        retrain(Telling(6, lr=0.2, betas=(0.9, 0.99)), place, "halves", PLAN, 4)
    said = str(error.value)
    assert "epochs: theirs has 5, this one 6" in said
    assert "optimizer.lr: theirs has 0.1, this one 0.2" in said
    assert "betas" not in said and "name:" not in said
    assert retrain(linear, place, "halves", PLAN, 6).sizes["model"] == 6  # it cannot tell
    with pytest.raises(TrakStoreError, match="plain values for JSON"):
        retrain(Telling(epochs=object()), place, "other", PLAN, 2)


def test_sets_that_know_no_trainer_are_added_to(place: Path) -> None:
    retrain(linear, place, "old", PLAN, 2)
    retrain(Telling(), place, "old", PLAN, 5)
    with pytest.raises(SpecMismatchError, match="epochs: theirs has 5, this one 7"):
        retrain(Telling(7), place, "old", PLAN, 6)
    found = retrain(Telling(), place, "old", PLAN, 7)
    np.testing.assert_array_equal(found["subset"], PLAN.masks(0, 7))
    assert ts.verify_store(place).ok


def test_on_a_cluster_in_a_new_place(tmp_path: Path) -> None:
    place = tmp_path / "new.zarr"
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster),
    ):
        found = retrain(linear, place, "far", PLAN, 12, at_once=5)
    np.testing.assert_array_equal(
        found["output"], linear(PLAN.masks(0, 12), PLAN.seeds(0, 12)).output
    )


def test_models_from_elsewhere(place: Path) -> None:
    rng = np.random.default_rng(1)
    masks, outputs = PLAN.masks(0, 6), rng.normal(size=(6, 4)).astype(np.float32)
    add_retrained(place, "mine", masks[:4], outputs[:4])
    found = add_retrained(place, "mine", masks[4:], outputs[4:])
    np.testing.assert_array_equal(found["output"], outputs)
    np.testing.assert_array_equal(found["subset"], masks)
    with pytest.raises(SpecMismatchError):
        add_retrained(place, "mine", masks, outputs[:, :3])
    with pytest.raises(NumericsError, match="model 2"):
        add_retrained(place, "bad", masks[:3], np.array([[1.0], [2], [np.nan]]))
    with pytest.raises(TrakStoreError, match="shape"):
        add_retrained(place, "bad", masks, outputs[:3])
    assert ts.verify_store(place).ok


def test_a_trainer_that_gives_something_else(place: Path) -> None:
    with pytest.raises(TrakStoreError, match=r"needed outputs of shape \(4, targets\)"):
        retrain(lambda s, _: Retrained(np.zeros(len(s))), place, "x", PLAN, 4)
    with pytest.raises(NotFoundError, match="no models"):
        retrained_models(place, "x")


def test_damage_is_found(place: Path) -> None:
    retrain(linear, place, "halves", PLAN, 4)
    chunk = place / "evaluation/halves/models.0/output/c/0/0"
    content = bytearray(chunk.read_bytes())
    content[3] ^= 1
    chunk.write_bytes(content)
    assert [finding.kind for finding in ts.verify_store(place).findings] == ["damaged"]
