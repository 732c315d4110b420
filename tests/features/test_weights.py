"""Checkpoints are values, not references; the model has its own weights again afterwards."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from features.models import ConvNet, Samples, mlp, seeded
from torch import Tensor, nn
from torch.nn.utils import weight_norm

import trakstore as ts
from trakstore.evaluation.checks import check_setup
from trakstore.features import Job, featurize_job
from trakstore.features.predictions import predicted_classes
from trakstore.features.weights import kept, own_copy, unshared

DATA = Samples(9)


class Tied(nn.Module):
    """Two layers of one weight, and a state that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 12)
        self.second.weight = self.first.weight
        self.rounds = 0

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.tanh(self.first(x)))
        return out

    def get_extra_state(self) -> Any:
        return {"rounds": self.rounds}

    def set_extra_state(self, state: Any) -> None:
        self.rounds = state["rounds"]


def trained(model: nn.Module) -> nn.Module:
    """The same model after a change of all its parameters and buffers."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(7)
        for one in (*model.parameters(), *model.buffers()):
            one.add_(torch.rand(one.shape).to(one.dtype))
    return model


def values(model: nn.Module) -> dict[str, Any]:
    return copy.deepcopy(dict(model.state_dict()))


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(one, right[name]) if isinstance(one, Tensor) else one == right[name]
        for name, one in left.items()
    )


def features(path: Path, model: nn.Module, states: dict[Any, Any]) -> dict[Any, Any]:
    spec = ts.ProjectionSpec("sjlt", dim=16)
    featurize_job(Job(model, {"train": DATA}, checkpoints=states, projector=spec), path)
    store = ts.open_store(path)
    return {epoch: store.features(epoch, "train").values for epoch in store.epochs}


@pytest.mark.parametrize("make", [mlp, lambda: seeded(ConvNet), lambda: seeded(Tied)])
@pytest.mark.parametrize("live", [[10], [5], [5, 10]])
def test_a_live_state_dict_is_a_checkpoint_of_its_own(
    tmp_path: Path, make: Any, live: list[int]
) -> None:
    model = make()
    saved = values(model)
    own = values(trained(model))
    wanted = features(tmp_path / "a", make(), {e: own if e in live else saved for e in (5, 10)})
    states = {e: model.state_dict() if e in live else saved for e in (5, 10)}
    found = features(tmp_path / "b", model, states)
    for epoch, rows in wanted.items():
        np.testing.assert_array_equal(found[epoch], rows)
    assert same(values(model), own)


def test_training_on_does_not_change_the_checkpoint_of_a_job(tmp_path: Path) -> None:
    model = mlp()
    job = Job(model, {"train": DATA}, checkpoints={1: model.state_dict()})
    before, after = values(model), values(trained(model))
    featurize_job(job, tmp_path / "s")
    assert same(values(model), after)
    assert same(values(job.load(1)), before)


def test_only_what_is_shared_is_copied() -> None:
    model, other = mlp(), mlp(1).state_dict()
    apart = {1: other, 2: "weights.pt", 3: {**other}}
    assert unshared(apart, model) is apart
    part = {**other, "0.bias": next(iter(model.parameters()))[0, :10]}  # a view into a weight
    found = unshared({**apart, 4: part}, model)
    assert found[1] is other
    assert found[4] is not part and torch.equal(found[4]["0.bias"], part["0.bias"])
    array = np.zeros((2, 3), dtype=np.float32)
    lent = nn.Module()
    lent.register_buffer("b", torch.from_numpy(array))
    (copied,) = unshared({0: {"b": torch.from_numpy(array[1])}}, lent).values()
    array[:] = 1
    assert not copied["b"].any()


def test_checkpoints_that_are_read_when_asked_for_are_not_read_before() -> None:
    class Lazy(Mapping[int, Any]):
        def __getitem__(self, epoch: int) -> Any:
            raise AssertionError(f"{epoch} was read")

        def __iter__(self) -> Iterator[int]:
            return iter([1, 2])

        def __len__(self) -> int:
            return 2

    lazy = Lazy()
    assert Job(mlp(), {}, checkpoints=lazy).checkpoints is lazy
    model = mlp()
    (found,) = unshared(MappingProxyType({1: model.state_dict()}), model).values()
    assert found["0.bias"].data_ptr() != model.get_parameter("0.bias").data_ptr()


def test_a_tied_weight_is_copied_once() -> None:
    model = seeded(Tied)
    (found,) = unshared({0: model.state_dict()}, model).values()
    assert found["first.weight"] is found["second.weight"]
    assert found["first.weight"].data_ptr() != model.get_parameter("first.weight").data_ptr()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OSError])
def test_the_model_has_its_own_weights_after_a_run_that_was_stopped(
    tmp_path: Path, error: type[BaseException]
) -> None:
    class Stopping(Samples):
        def __getitem__(self, index: int) -> Any:
            if index == 5:
                raise error("stopped")
            return super().__getitem__(index)

    model = seeded(ConvNet)
    own = values(trained(model))
    states = {1: values(seeded(ConvNet, 1))}
    job = Job(model, {"train": Stopping(9)}, checkpoints=states, batch_size=2)
    # Errors of a data set are told as such; others stop the run as they are.
    told = ts.TrakStoreError if issubclass(error, Exception) else error
    with pytest.raises(told):
        featurize_job(job, tmp_path / "s")
    assert same(values(model), own) and model.training


def test_a_checkpoint_that_fits_in_part_changes_nothing(tmp_path: Path) -> None:
    model = mlp()
    own = values(model)
    state = {**mlp(1).state_dict(), "2.bias": torch.zeros(4)}
    with pytest.raises(ts.TrakStoreError, match="not of this model"):
        featurize_job(Job(model, {"train": DATA}, checkpoints={1: state}), tmp_path / "s")
    assert same(values(model), own)


def test_all_that_loads_checkpoints_gives_the_weights_back(tmp_path: Path) -> None:
    model = mlp()
    own = values(model)
    states = {1: mlp(1).state_dict(), 2: model.state_dict()}
    spec = ts.ProjectionSpec("sjlt", dim=16)
    job = Job(model, {"train": DATA}, checkpoints=states, projector=spec)
    featurize_job(job, tmp_path / "s")
    predicted_classes(job, 1, "train", np.arange(3))
    assert same(values(model), own)
    verdicts = {check.name: check.verdict for check in check_setup(job, tmp_path / "s")}
    assert verdicts["same checkpoint"] == "pass"
    assert same(values(model), own)
    checks: Iterator[Any] = check_setup(job, tmp_path / "s")
    next(checks)
    del checks
    assert same(values(model), own)


def test_without_restore_the_last_epoch_stays(tmp_path: Path) -> None:
    model, last = mlp(), mlp(1)
    job = Job(model, {"train": DATA}, checkpoints={1: last.state_dict()})
    featurize_job(job, tmp_path / "s", restore=False)
    assert same(values(model), values(last))


def test_what_a_forward_put_in_place_of_a_tensor_is_put_back() -> None:
    model = seeded(ConvNet)
    own, mean = values(model), model.get_buffer("norm.running_mean")
    with kept(model):
        model.norm.running_mean = torch.ones(4)
        model.norm.running_var = torch.ones(7)
        model.head.weight.data = torch.ones(2, 2)
    assert same(values(model), own)
    assert mean.shape == (4,)


def test_an_expanded_parameter_is_put_back() -> None:
    model = nn.Linear(5, 3)
    model.weight = nn.Parameter(torch.randn(3, 1).expand(3, 5))
    before = model.weight.detach().clone()
    with kept(model):
        model.weight.data = torch.zeros(3, 1).expand(3, 5)
    assert torch.equal(model.weight, before) and model.weight.stride() == (1, 0)


def test_a_model_that_cannot_be_copied() -> None:
    model: Any = mlp()
    model.lock = Lock()
    with pytest.raises(ts.TrakStoreError, match=r"cannot be copied \(cannot pickle"):
        own_copy(model)


def test_sparse_buffers_are_compared_by_their_parts() -> None:
    model = nn.Module()
    model.register_buffer("graph", torch.eye(3).to_sparse())
    (found,) = unshared({1: model.state_dict()}, model).values()
    with torch.no_grad():
        model.get_buffer("graph")._values().fill_(7)
    torch.testing.assert_close(found["graph"].to_dense(), torch.eye(3))


def test_a_copy_of_a_model_with_tensors_made_of_its_parameters() -> None:
    with pytest.warns(FutureWarning, match="deprecated"):
        model = weight_norm(nn.Linear(3, 2))
    made = own_copy(model)
    x = torch.ones(1, 3)
    torch.testing.assert_close(made(x), model(x))
    trained(made)
    assert not torch.equal(made(x), model(x))
