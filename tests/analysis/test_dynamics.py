"""What the tracker keeps, against a plain recomputation; and what a crash leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import trakstore as ts
from trakstore.analysis.training_dynamics import dynamics_of, training_dynamics
from trakstore.attributors import TrainingDynamicsTracker, WithIds
from trakstore.errors import DamagedError, NotFoundError, TrakStoreError
from trakstore.storage.checking.verification import verify_store

N, CLASSES, EPOCHS = 23, 4, 14


def logits(epoch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(epoch)
    return torch.randn(N, CLASSES, generator=generator) * 2


LABELS = torch.arange(N) % CLASSES


def run(tracker: TrainingDynamicsTracker, epochs: Any, ids: Any, seed: int = 0) -> None:
    """A loop that shuffles."""
    for epoch in epochs:
        order = torch.randperm(N, generator=torch.Generator().manual_seed(100 * seed + epoch))
        for at, rows in enumerate(order.split(5)):
            own = [ids[row] for row in rows]
            tracker.update(epoch, at, None, LABELS[rows], logits(epoch)[rows], ids=own)


def expected() -> dict[str, np.ndarray[Any, Any]]:
    every = torch.stack([logits(epoch) for epoch in range(EPOCHS)]).double()
    p = every.softmax(2)
    own = p[:, torch.arange(N), LABELS].numpy()
    right = (every.argmax(2) == LABELS).numpy()
    masked = every.clone()
    masked[:, torch.arange(N), LABELS] = -torch.inf
    margin = every[:, torch.arange(N), LABELS] - masked.amax(2)
    y = torch.nn.functional.one_hot(LABELS, CLASSES)
    first = [np.flatnonzero(column)[0] if column.any() else -1 for column in right.T]
    return {
        "confidence": own.mean(0),
        "variability": own.std(0),
        "correctness": right.mean(0),
        "forgetting_events": (right[:-1] & ~right[1:]).sum(0),
        "first_learned": np.array(first),
        "aum": margin.numpy().mean(0),
        "el2n": (p - y).norm(dim=2)[:10].numpy().mean(0),
        "loss": -np.log(own[-1]),
        "epochs": np.full(N, EPOCHS),
    }


@pytest.mark.parametrize("interval", [1, 3, 1000])
@pytest.mark.parametrize("named", [False, True])
def test_columns_are_those_of_a_plain_recomputation(
    tmp_path: Path, interval: int, named: bool
) -> None:
    ids = [f"s{i:02}" for i in range(N)] if named else list(range(N))
    with TrainingDynamicsTracker(range(N), interval, tmp_path / "d.zarr") as tracker:
        run(tracker, range(EPOCHS), ids)
        found = tracker.analyze()
    assert found["sample_id"].values.tolist() == ids
    for name, values in expected().items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-6, err_msg=name)
    joined = dynamics_of(found, np.array(ids)[[[3, 1], [2, 2]]])
    np.testing.assert_array_equal(joined["aum"], found["aum"].values[[[3, 1], [2, 2]]])
    with pytest.raises(NotFoundError, match="was not tracked"):
        dynamics_of(found, ["nobody"] if named else [99])


def test_a_run_that_goes_on_replaces_what_it_does_again(tmp_path: Path) -> None:
    where = tmp_path / "d.zarr"
    with TrainingDynamicsTracker(None, 3, where) as tracker:
        run(tracker, range(9), list(range(N)))
    with TrainingDynamicsTracker(None, 4, where) as tracker:
        run(tracker, range(6, EPOCHS), list(range(N)), seed=1)
        found = tracker.analyze()
    for name, values in expected().items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.filterwarnings("error")
def test_samples_that_a_later_run_has_not_seen_are_left_out(tmp_path: Path) -> None:
    where, three = tmp_path / "d.zarr", torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    zeros = torch.zeros(3, dtype=torch.long)
    with TrainingDynamicsTracker(None, 1, where) as tracker:
        for epoch in (0, 1):
            tracker.update(epoch, 0, None, zeros, -three, ids=[4, 5, 6])
    with TrainingDynamicsTracker(None, 1, where) as tracker:
        tracker.update(0, 0, None, zeros[:2], three[[2, 0]], ids=[6, 4])
        found = tracker.analyze()
    assert found["sample_id"].values.tolist() == [4, 6]
    assert found["epochs"].values.tolist() == [1, 1]
    own = three.double().softmax(1)[[0, 2], 0]
    np.testing.assert_allclose(found["confidence"], own, rtol=1e-6)
    np.testing.assert_allclose(found["loss"], -own.log(), rtol=1e-6)
    assert found["first_learned"].values.tolist() == [0, -1]
    with pytest.raises(NotFoundError, match="sample 5 was not tracked"):
        dynamics_of(found, [5])


@pytest.mark.parametrize("ids", [False, True])
def test_a_run_of_another_data_set_is_refused(tmp_path: Path, ids: bool) -> None:
    where, x, y = tmp_path / "d.zarr", torch.randn(12, CLASSES), LABELS[:12]

    def seen(x: torch.Tensor, y: torch.Tensor, epoch: int = 0, **options: Any) -> Any:
        data = torch.utils.data.TensorDataset(x, y)
        with TrainingDynamicsTracker(data, 1, where, **options) as tracker:
            tracker.update(epoch, 0, x, y, x, ids=range(len(x)) if ids else None)
            return tracker.analyze()

    seen(x, y)
    for other in (slice(8), [*range(12), 0]):  # fewer samples, and more
        sizes = f"of 12 samples, and this one has {len(x[other])} samples"
        said = rf"d.zarr has .* as 'train': {sizes}; give it another place, store="
        with pytest.raises(TrakStoreError, match=said):
            seen(x[other], y[other], epoch=1)
    if not ids:  # contents are known where samples were read
        for rows, labels in ((x + 1, y), (x, y.flip(0)), (x.flip(0), y.flip(0))):
            with pytest.raises(TrakStoreError, match=r"contents have the hash .*store="):
                seen(rows, labels, epoch=1)
    assert seen(x, y, epoch=1)["epochs"].values.tolist() == [2] * 12  # goes on
    assert seen(x, y)["epochs"].values.tolist() == [1] * 12  # begins again
    assert seen(x[:8], y[:8], split="other").sizes["sample"] == 8
    # Each rank may have a data set of its own.
    rows = seen(x[:8], y[:8], epoch=3, rank=1)["epochs"].values
    assert rows.tolist() == [2] * 8 + [1] * 4


def test_records_that_do_not_tell_their_data_set_are_gone_on_with(tmp_path: Path) -> None:
    where, logits = tmp_path / "d.zarr", torch.zeros(3, 2)
    with TrainingDynamicsTracker(None, 1, where) as tracker:
        tracker.update(0, 0, None, LABELS[:3] % 2, logits, ids=[0, 1, 2])
    (document,) = (where / "dynamics/train").glob("*.*/zarr.json")
    run = json.loads(document.read_text())["attributes"]["run"]
    assert sorted(run) == ["name", "order", "rank", "started"]
    with TrainingDynamicsTracker(range(3), 1, where) as tracker:
        tracker.update(1, 0, None, LABELS[:3] % 2, logits, ids=[0, 1, 2])
        assert tracker.analyze()["epochs"].values.tolist() == [2, 2, 2]


def test_the_later_of_two_runs_counts_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, ids = tmp_path / "d.zarr", list(range(4))
    for value, hour in ((0.0, 12), (9.0, 11)):
        clock = type("Clock", (datetime,), {"now": lambda *_: datetime(2026, 1, 1, hour)})  # noqa: B023
        monkeypatch.setattr("trakstore.features.recorder.datetime", clock)
        with TrainingDynamicsTracker(None, 1, where) as tracker:
            scores = torch.tensor([[value, 0.0]] * 4)
            tracker.update(0, 0, None, torch.zeros(4, dtype=torch.long), scores, ids=ids)
    assert training_dynamics(where)["confidence"].values.min() > 0.99


def test_parts_that_were_swapped_or_lost_are_not_read(tmp_path: Path) -> None:
    where = tmp_path / "d.zarr"
    with TrainingDynamicsTracker(None, 1, where) as tracker:
        run(tracker, range(2), list(range(N)))
    first, second, *_ = sorted((where / "dynamics/train").glob("*.*/zarr.json"))
    for name in ("zarr.json", "measures/c/0/0"):
        one, other = first.parent / name, second.parent / name
        kept = one.read_bytes()
        one.write_bytes(other.read_bytes())
        with pytest.raises(DamagedError):
            training_dynamics(where)
        one.unlink()
        with pytest.raises(DamagedError, match="missing"):
            training_dynamics(where)
        one.write_bytes(kept)
    training_dynamics(where)


def test_beside_features_made_before_or_after(tmp_path: Path) -> None:
    from features.models import Samples, mlp

    from trakstore.features import featurize

    where = tmp_path / "s.zarr"
    with TrainingDynamicsTracker(None, 50, where) as tracker:
        run(tracker, range(2), list(range(N)))
    featurize(mlp(), Samples(N), where, progress=False)
    with TrainingDynamicsTracker(None, 50, ts.open_store(where), split="more") as tracker:
        run(tracker, range(2), list(range(N)))
    assert verify_store(where).ok
    np.testing.assert_array_equal(
        training_dynamics(where)["aum"], training_dynamics(ts.open_store(where), "more")["aum"]
    )
    with pytest.raises(NotFoundError, match="no training dynamics of 'test'"):
        training_dynamics(where, "test")
    chunk = next((where / "dynamics" / "train").rglob("measures/c/0/0"))
    chunk.write_bytes(chunk.read_bytes()[:-9] + b"x" * 9)
    (found,) = verify_store(where).findings
    assert found.kind == "damaged"


def test_a_killed_run_keeps_what_was_stored(tmp_path: Path) -> None:
    script = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_dynamics import run, TrainingDynamicsTracker, N
tracker = TrainingDynamicsTracker(None, 1, {str(tmp_path / "d.zarr")!r})
for epoch in range(10_000):
    run(tracker, [epoch], list(range(N)))
    print(epoch, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    last = 0
    until = time.monotonic() + 60
    while last < 12 and time.monotonic() < until:
        last = int(process.stdout.readline())
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    found = training_dynamics(tmp_path / "d.zarr")
    assert found["epochs"].values.min() >= last - 2
    np.testing.assert_array_equal(found["sample_id"], np.arange(N))


def test_with_ids() -> None:
    data = WithIds([(1.0, 2), (3.0, 4)], ids=["a", "b"])
    assert (len(data), data[1], WithIds([(5, 6)])[0]) == (2, (3.0, 4, "b"), (5, 6, 0))
    assert WithIds([{"x": 1}], ids=["a"])[0] == {"x": 1, "sample_id": "a"}
    with pytest.raises(TrakStoreError, match="as many ids"):
        WithIds([(1.0, 2)], ids=["a", "b"])


def test_rows_of_datasets_that_came_by_another_way(tmp_path: Path) -> None:
    with TrainingDynamicsTracker(None, 1, tmp_path / "d") as tracker:
        tracker.update(0, 0, None, LABELS[:3], logits(0)[:3], ids=[7, 5, 6])
        found = tracker.analyze()
    for other in (found.sortby("aum"), found.isel(sample=[2, 0, 1])):
        asked = dynamics_of(other, [[6, 5]])
        assert asked["sample_id"].values.tolist() == [[6, 5]]
        np.testing.assert_array_equal(asked["aum"], found["aum"].values[[[1, 0]]])
    with pytest.raises(NotFoundError, match="sample '6' was not tracked"):
        dynamics_of(found, ["6"])
    with pytest.raises(NotFoundError, match="sample 6 was not tracked; there are none yet"):
        dynamics_of(found.isel(sample=[]), [6])
    # As NumPy and netCDF have texts: of one width, at which a longer one would be cut.
    fixed = found.assign_coords(sample_id=("sample", np.array(["a1", "a2", "b1"])))
    with pytest.raises(NotFoundError, match="sample 'a19' was not tracked"):
        dynamics_of(fixed, ["a19"])
    assert dynamics_of(fixed, ["b1", "a1"])["sample_id"].values.tolist() == ["b1", "a1"]


def parts(where: Path) -> int:
    return len(list((where / "dynamics/train").glob("*.*/zarr.json")))


def test_the_interval_is_in_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    with TrainingDynamicsTracker(None, 3, tmp_path / "d") as tracker:
        for epoch in range(8):
            run(tracker, [epoch], list(range(N)))
            tracker._background.wait()
            counts.append(parts(tmp_path / "d"))
    # An epoch is over when the next one begins.
    assert counts == [0, 0, 0, 1, 1, 1, 2, 2] and parts(tmp_path / "d") == 3
    # Batches that take much memory are stored before the epochs are over.
    monkeypatch.setattr("trakstore.features.recorder._MOST_HELD", 2 * (5 * (8 + 4 * 5) + 1000))
    with TrainingDynamicsTracker(None, 100, tmp_path / "e") as tracker:
        run(tracker, [0], list(range(N)))
    assert parts(tmp_path / "e") == 3  # of 5 batches, two at a time


class Pairs:
    """Samples of all kinds: tuples, tuples of several inputs, dicts with a text."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.x = torch.randn(N, 3, generator=torch.Generator().manual_seed(0))
        self.x[7] = self.x[3]  # the same sample twice: labels 3 and 3
        self.x[8] = self.x[5]  # the same input with two labels

    def __len__(self) -> int:
        return N

    def __getitem__(self, at: int) -> Any:
        x, y = self.x[at], int(LABELS[at])
        if self.kind == "dict":
            return {"text": f"sample {at}", "x": x, "label": y}
        return (x, x + 1, y) if self.kind == "two" else (x, y)


@pytest.mark.parametrize("kind", ["one", "two", "dict"])
def test_samples_without_ids_are_recognised(tmp_path: Path, kind: str) -> None:
    data = Pairs(kind)
    loader = DataLoader(
        data, batch_size=5, shuffle=True, generator=torch.Generator().manual_seed(1)
    )
    with TrainingDynamicsTracker(data, store=tmp_path / "d") as tracker:
        for epoch in range(4):
            for at, batch in enumerate(loader):
                if kind == "dict":
                    inputs, targets = {"x": batch["x"], "text": batch["text"]}, batch["label"]
                else:
                    *inputs, targets = batch
                    inputs = inputs[0] if kind == "one" else inputs
                x = inputs["x"] if kind == "dict" else inputs if kind == "one" else inputs[0]
                tracker.update(
                    epoch, at, inputs, targets, torch.cat([x, x[:, :1]], 1) * (epoch + 1)
                )
        found = tracker.analyze()
    every = torch.stack([torch.cat([data.x, data.x[:, :1]], 1) * e for e in (1, 2, 3, 4)])
    own = every.softmax(2)[:, torch.arange(N), LABELS]
    np.testing.assert_allclose(found["confidence"], own.mean(0), rtol=1e-5)
    np.testing.assert_array_equal(found["epochs"], 4)


def test_samples_that_cannot_be_recognised(tmp_path: Path) -> None:
    class Noisy(Pairs):
        def __getitem__(self, at: int) -> Any:
            return self.x[at] + torch.rand(3), int(LABELS[at])

    logits = torch.zeros(2, CLASSES)
    with pytest.raises(TrakStoreError, match=r"differ each time.*wrap the data set in WithIds"):
        TrainingDynamicsTracker(Noisy("one"), store=tmp_path / "d").update(
            0, 0, torch.zeros(2, 3), LABELS[:2], logits
        )
    tracker = TrainingDynamicsTracker(data := Pairs("one"), store=tmp_path / "d")
    with pytest.raises(TrakStoreError, match=r"sample 1 of the batch is none of the 23"):
        tracker.update(0, 0, torch.stack([data.x[0], data.x[1] * 2]), LABELS[:2], logits)
    with pytest.raises(TrakStoreError, match="ids= are needed"):
        TrainingDynamicsTracker(None, store=tmp_path / "d").update(
            0, 0, data.x[:2], LABELS[:2], logits
        )


def test_refusals(tmp_path: Path) -> None:
    tracker = TrainingDynamicsTracker(range(3), 1, tmp_path / "d.zarr")
    batch: Any = (LABELS[:4], logits(0)[:4])
    with pytest.raises(TrakStoreError, match="wrap the data set in WithIds"):
        tracker.update(0, 0, None, *batch)
    with pytest.raises(TrakStoreError, match="needed logits"):
        tracker.update(0, 0, None, LABELS[:3], logits(0)[:4], ids=[0, 1, 2])
    with pytest.raises(TrakStoreError, match="4 samples came with 3 ids"):
        tracker.update(0, 0, None, *batch, ids=[0, 1, 2])
    tracker.update(0, 0, None, *batch, ids=[0, 1, 2, 3])
    with pytest.raises(TrakStoreError, match="more than 3 ids"):
        tracker.save()
    with pytest.raises(TrakStoreError, match="integers or strings"):
        tracker.update(0, 0, None, *batch, ids=[0.5, 1, 2, 3])
    with pytest.raises(TrakStoreError, match="save_interval"):
        TrainingDynamicsTracker(None, 0, tmp_path / "d.zarr")
