"""Forward passes that change the model are refused, or what they change is put back."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from features.models import Samples, mlp, seeded
from torch import Tensor, nn

import trakstore as ts
from trakstore.errors import TrakStoreError
from trakstore.features import Job, featurize, featurize_job

DATA = Samples(16)


class Words(nn.Module):
    """Rows of an embedding, by the first 6 values as tokens."""

    def __init__(self, **how: Any) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(40, 8, **how), nn.Linear(48, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = (x[:, :6] * 10).long().remainder(40)
        out: Tensor = self.head(self.embed(tokens).flatten(1))
        return out


class Stateful(nn.Module):
    """A network whose forward does something besides."""

    def __init__(self, what: Any) -> None:
        super().__init__()
        self.net, self.what, self.calls = mlp(), what, 0
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("cache", torch.zeros(3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.what(self, x)
        return out


def counts(model: Any, x: Tensor) -> Any:
    model.count += 1
    return model.net(x)


def exchanges(model: Any, x: Tensor) -> Any:
    model.count, model.cache = model.count + 1, torch.ones(len(x))
    return model.net(x)


def decays(model: Any, x: Tensor) -> Any:
    model.count += 1
    return model.net(x) * 0.999**model.count


def remembers(model: Any, x: Tensor) -> Any:
    out = model.net(x) + model.cache
    model.cache = model.cache * 0.9 + 0.1 * out.detach().mean(0)
    return out


def python_counter(model: Any, x: Tensor) -> Any:
    model.calls += 1
    return model.net(x) * 0.99**model.calls


def random(model: Any, x: Tensor) -> Any:
    return F.dropout(model.net(x), 0.5)


def scales(model: Any, x: Tensor) -> Any:
    with torch.no_grad():
        model.net[2].weight.mul_(0.99)
    return model.net(x)


def scales_by_data(model: Any, x: Tensor) -> Any:
    model.net[2].weight.data.mul_(0.99)
    return model.net(x)


def exchanges_weights(model: Any, x: Tensor) -> Any:
    model.net[2].weight.data = model.net[2].weight.data * 0.99
    return model.net(x)


def late(model: Any, x: Tensor) -> Any:
    """Changes a weight where one of the last samples comes."""
    if (x == DATA.x[14]).all(1).any():
        model.net[2].weight.data.mul_(0.99)
    return model.net(x)


def late_in_place(model: Any, x: Tensor) -> Any:
    if (x == DATA.x[14]).all(1).any():
        with torch.no_grad():
            model.net[2].weight.mul_(0.99)
    return model.net(x)


def clamps(model: Any, x: Tensor) -> Any:
    """Changes no value, though torch cannot know."""
    with torch.no_grad():
        model.net[2].weight.clamp_(-100, 100)
    return model.net(x)


def plain(model: Any, x: Tensor) -> Any:
    return model.net(x)


def run(model: nn.Module, where: Path, **more: Any) -> ts.FeatureStore:
    spec = ts.ProjectionSpec("sjlt", dim=16)
    options = {"projector": spec, "batch_size": 4, "block_rows": 4, "progress": False, **more}
    featurize(model, DATA, where, **options)
    return ts.open_store(where)


def same(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(one, before[name]) for name, one in model.state_dict().items())


@pytest.fixture(params=["small", "large"])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Small models are copied; all are large here, or none."""
    if request.param == "large":
        monkeypatch.setattr("trakstore.features.watch._SMALL", 0)
    return str(request.param)


@pytest.mark.usefixtures("size")
@pytest.mark.parametrize("norm", [1.0, 0.1])
def test_an_embedding_that_is_cut_to_its_norm_is_refused(tmp_path: Path, norm: float) -> None:
    model = seeded(lambda: Words(max_norm=norm))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(TrakStoreError, match=r"changed the parameter embed\.weight .*max_norm"):
        run(model, tmp_path / "s")
    assert same(model, before) and not (tmp_path / "s").exists()


def test_after_it_was_cut_once_it_has_the_features_of_a_plain_one(tmp_path: Path) -> None:
    model: Any = seeded(lambda: Words(max_norm=1.0))
    model.embed.weight.data.renorm_(2, 0, 1.0)
    model.embed.weight.data.mul_(0.99)  # so that nothing is cut any more
    uncut: Any = seeded(Words)
    uncut.load_state_dict(model.state_dict())
    found, wanted = run(model, tmp_path / "s"), run(uncut, tmp_path / "p")
    rows = wanted.features(0, "train").values
    np.testing.assert_allclose(found.features(0, "train"), rows, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("what", [counts, exchanges])
def test_counters_that_nothing_reads_are_put_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, what: Any
) -> None:
    model = Stateful(what)
    before = copy.deepcopy(model.state_dict())
    wanted = run(Stateful(plain), tmp_path / "p").split(0, "train")
    with caplog.at_level(logging.WARNING, "trakstore"):
        run(model, tmp_path / "s")
        featurize(model, DATA, tmp_path / "s", split="test", progress=False)
    told = [record.getMessage() for record in caplog.records]
    told = [one for one in told if "forward passes change" in one]
    assert len(told) == 2 and all("count" in one for one in told)  # one for each split
    assert same(model, before) and not model.cache.any()
    store = ts.open_store(tmp_path / "s")
    np.testing.assert_array_equal(
        store.features(0, "train"), wanted.column("features").read(0, len(DATA))
    )
    assert store.split(0, "train").spec.checkpoint == wanted.spec.checkpoint
    assert ts.trak_scores(store).shape == (16, 16)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (decays, "changed the buffer count of the model, and its outputs"),
        (remembers, "changed the buffer cache of the model, and its outputs"),
        (python_counter, "other outputs when the model is asked again"),
        (random, "other outputs when the model is asked again"),
        (scales, r"changed the parameter net\.2\.weight"),
        (exchanges_weights, r"changed the parameter net\.2\.weight"),
        (scales_by_data, "changed the parameter|other outputs"),
    ],
)
def test_states_that_matter_are_refused(tmp_path: Path, what: Any, said: str, size: str) -> None:
    torch.manual_seed(0)  # dropout may make two rows look alike at first, or see one another
    model = Stateful(what)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(TrakStoreError, match=said):
        run(model, tmp_path / "s")
    assert not (tmp_path / "s").exists()
    assert size == "large" or same(model, before)


@pytest.mark.usefixtures("size")
@pytest.mark.parametrize("what", [late, late_in_place])
def test_a_change_in_a_later_block_is_seen(tmp_path: Path, what: Any) -> None:
    with pytest.raises(TrakStoreError, match=r"changed the parameter|other outputs"):
        run(Stateful(what), tmp_path / "s", block_rows=2, batch_size=2)
    split = ts.open_store(tmp_path / "s").split(0, "train")
    assert split.status().written_blocks == 7  # the rows that are compared show it in this block


@pytest.mark.usefixtures("size")
def test_an_operation_that_changes_no_value_is_no_change(tmp_path: Path) -> None:
    found = run(Stateful(clamps), tmp_path / "s")
    wanted = run(Stateful(plain), tmp_path / "p")
    np.testing.assert_array_equal(found.features(0, "train"), wanted.features(0, "train"))


def test_checkpoints_are_hashed_as_they_were_given(tmp_path: Path) -> None:
    model = Stateful(counts)
    states = {
        1: copy.deepcopy(model.state_dict()),
        2: {**model.state_dict(), "count": torch.ones(())},
    }
    job = Job(model, {"train": DATA, "test": DATA}, checkpoints=states)
    featurize_job(job, tmp_path / "s", progress=False)
    store = ts.open_store(tmp_path / "s")
    hashes = {e: {store.split(e, s).spec.checkpoint for s in ("train", "test")} for e in (1, 2)}
    assert len(hashes[1]) == len(hashes[2]) == 1 and hashes[1] != hashes[2]
