"""Rows of every block beside an ordinary backward pass, and what surrounds the passes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from features.engines import plain, projector
from features.models import Samples, mlp, seeded
from torch import Tensor, nn

import trakstore as ts
from trakstore.errors import NumericsError, TrakStoreError
from trakstore.features import featurize
from trakstore.features.blockcheck import checked_rows, signs_of
from trakstore.features.factorised import FactorisedEngine
from trakstore.features.gradients import GenericEngine
from trakstore.features.outputs import as_output

IDENTITY = ts.ProjectionSpec("identity")


def features(model: nn.Module, data: Any, path: Path, **options: Any) -> Tensor:
    options = {"projector": IDENTITY, "progress": False, "batch_size": 8} | options
    featurize(model, data, path, **options)
    return torch.from_numpy(ts.open_store(path).features(0, "train").values)


def truth(model: nn.Module, data: Samples) -> Tensor:
    return plain(model, (data.x, data.y), as_output("margin")).float()


def test_rows_are_spread_and_the_same_for_every_worker() -> None:
    rows = [checked_rows(start, start + 440, 100) for start in range(0, 4400, 440)]
    assert all(len(one) == 10 and (np.diff(one) > 0).all() for one in rows)
    assert all((one // 440 == i).all() for i, one in enumerate(rows))
    assert len({tuple(one % 440) for one in rows}) == 10
    assert checked_rows(440, 880, 100).tolist() == rows[1].tolist()
    assert len(checked_rows(0, 640, 4)) == 4 and len(checked_rows(0, 1, 4)) == 1
    signs = signs_of(np.arange(1000))
    assert signs.abs().eq(1).all() and abs(float(signs.mean())) < 0.1


class Wrong:
    """An engine whose features are wrong in some rows, from the second block on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rows: slice) -> None:
        right = FactorisedEngine.rows

        def wrong(engine: FactorisedEngine, batch: Any) -> Any:
            found = right(engine, batch)
            if len(batch[0]) > 2:
                found.features[rows] *= 1.01
            return found

        monkeypatch.setattr(FactorisedEngine, "rows", wrong)


def test_a_block_that_is_wrong_is_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Wrong(monkeypatch, slice(None))
    model, data = mlp(), Samples(64)
    with caplog.at_level(logging.WARNING, logger="trakstore"):
        got = features(model, data, tmp_path / "s.zarr", block_rows=32)
    torch.testing.assert_close(got, truth(model, data))
    lines = [r.message for r in caplog.records if "computed again by the generic" in r.message]
    # From then on the generic engine computes all blocks.
    assert len(lines) == 1 and "train at epoch 0: rows 0 to 31 disagree" in lines[0]


def test_every_row_is_compared_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = mlp(), Samples(64)
    chosen = checked_rows(0, 64, 8) % 8
    one = next(i for i in range(8) if i not in chosen)
    Wrong(monkeypatch, slice(one, one + 1))
    some = features(model, data, tmp_path / "some.zarr", block_rows=64)
    every = features(model, data, tmp_path / "every.zarr", block_rows=64, check="all")
    expected = truth(model, data)
    assert not torch.allclose(some[one::8], expected[one::8], rtol=1e-3), "not among the chosen"
    torch.testing.assert_close(every, expected)
    with pytest.raises(TrakStoreError, match="check must be 'some' or 'all', got 'none'"):
        features(model, data, tmp_path / "none.zarr", check="none")


def test_both_engines_wrong_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Wrong(monkeypatch, slice(None))
    monkeypatch.setattr(GenericEngine, "rows", lambda *_: FactorisedEngine.rows(*_))
    monkeypatch.setattr(
        FactorisedEngine, "generic_rows", lambda engine, batch: FactorisedEngine.rows(engine, batch)
    )
    with pytest.raises(
        NumericsError, match=r"rows 0 to 31 are not the gradients .* by either engine"
    ):
        features(mlp(), Samples(64), tmp_path / "s.zarr", block_rows=32)
    assert ts.open_store(tmp_path / "s.zarr").split(0, "train").status().written_rows == 0


class Seen(nn.Module):
    """Samples that see one another, unless they are the first two."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(12, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.layer(x))
        out: Tensor = self.head(h - h.mean(0) if len(h) > 2 else h)
        return out


def test_samples_that_see_one_another_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(NumericsError, match=r"they see one another .*let each sample's output be"):
        features(seeded(Seen), Samples(640), tmp_path / "s.zarr", block_rows=320)


STATES: dict[str, Any] = {
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("name", STATES)
def test_what_surrounds_the_call_changes_nothing(name: str, tmp_path: Path) -> None:
    model, data = mlp(), Samples(20)
    expected = truth(model, data)
    state: AbstractContextManager[Any] = STATES[name]()
    with state:
        got = features(model, data, tmp_path / "s.zarr")
        assert torch.is_autocast_enabled("cpu") == (name == "autocast")
        assert torch.is_inference_mode_enabled() == (name == "inference mode")
    torch.testing.assert_close(got, expected)


def test_samples_that_were_made_in_inference_mode(tmp_path: Path) -> None:
    model, data = mlp(), Samples(20)
    with torch.inference_mode():
        made = Samples(20)

    def collate(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            x, y = (torch.stack(list(column)) for column in zip(*samples, strict=True))
        assert x.is_inference()
        return x, y

    got = features(model, made, tmp_path / "s.zarr", collate=collate, batch_size=20)
    torch.testing.assert_close(got, truth(model, data))


class Around(nn.Module):
    """A model whose forward turns something off, or on."""

    def __init__(self, state: Any) -> None:
        super().__init__()
        self.layer, self.state = nn.Linear(12, 3), state

    def forward(self, x: Tensor) -> Tensor:
        with self.state():
            out: Tensor = self.layer(x)
            return out


@pytest.mark.parametrize("name", ["inference mode", "no gradients"])
def test_a_forward_without_gradients_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(TrakStoreError, match="no parameter"):
        features(Around(STATES[name]), Samples(8), tmp_path / "s.zarr")
    assert not (tmp_path / "s.zarr").exists()


def test_parameters_that_the_first_samples_do_not_use_are_no_error(tmp_path: Path) -> None:
    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.expert = nn.Linear(12, 3), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.shared(x)
            chosen = x[:, 0] > 1
            return out.index_add(0, chosen.nonzero()[:, 0], self.expert(x[chosen]))

    model, data = seeded(Routed), Samples(40)
    data.x[:2, 0], data.x[5:9, 0] = 0, 2
    got = features(model, data, tmp_path / "s.zarr", parameters=["expert.*"])
    model.shared.requires_grad_(False)
    torch.testing.assert_close(got, truth(model, data))
    assert not got[:2].any() and got[5:9].any()


def test_autocast_within_the_forward_is_told_from_the_model(tmp_path: Path) -> None:
    """The store says in what precision features were computed, or they are refused."""
    model = Around(STATES["autocast"])
    with pytest.raises(TrakStoreError, match=r"turns on autocast.*autocast='bfloat16'"):
        features(model, Samples(20), tmp_path / "s.zarr")
    features(model, Samples(20), tmp_path / "t.zarr", autocast="bfloat16")
    assert ts.open_store(tmp_path / "t.zarr").spec.autocast == "bfloat16"


def test_a_forward_that_was_wrapped_for_training_is_unwrapped(tmp_path: Path) -> None:
    """As accelerate does it."""
    model, data = mlp(), Samples(20)
    expected, own = truth(model, data), model.forward

    def wrapped(*args: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return own(*args).float()

    model._original_forward, model.forward = own, wrapped  # type: ignore[assignment]
    torch.testing.assert_close(features(model, data, tmp_path / "s.zarr"), expected)
    assert model.forward is wrapped


def test_gradient_hooks_of_weights_are_applied(tmp_path: Path) -> None:
    """As autograd does, which people use to freeze rows of a weight."""
    model, data = mlp(), Samples(20)
    mask = torch.ones(10, 12)
    mask[:4] = 0
    model[0].weight.register_hook(lambda gradient: gradient * mask)  # type: ignore[index, union-attr]
    got = features(model, data, tmp_path / "s.zarr")
    torch.testing.assert_close(got, truth(model, data))
    assert not got[:, : 4 * 12].any() and got[:, 4 * 12 :].any()


def test_hooks_after_accumulation_do_not_run(tmp_path: Path) -> None:
    """Optimisers that step within backward() would train the model."""
    model, called = mlp(), []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(called.append)
    features(model, Samples(20), tmp_path / "s.zarr")
    assert not called and all(parameter.grad is None for parameter in model.parameters())


@pytest.fixture
def group() -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_models_that_were_wrapped_for_many_devices(tmp_path: Path) -> None:
    model, data = mlp(), Samples(20)
    expected = truth(model, data)
    for name, wrapper in (("d", nn.DataParallel), ("ddp", nn.parallel.DistributedDataParallel)):
        got = features(wrapper(model), data, tmp_path / f"{name}.zarr")
        torch.testing.assert_close(got, expected)
        assert ts.open_store(tmp_path / f"{name}.zarr").spec.parameters.shapes[0][0] == "0.weight"


def test_inputs_that_require_gradients_are_still_factorised(tmp_path: Path) -> None:
    """As PEFT makes them for gradient checkpointing."""

    class Asked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(12, 10), nn.Linear(10, 3)
            self.first.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.first(x).requires_grad_(True))
            return out

    model, data = seeded(Asked), Samples(20)
    torch.testing.assert_close(features(model, data, tmp_path / "s.zarr"), truth(model, data))
    selected = {n: p for n, p in model.named_parameters() if p.requires_grad}
    own = FactorisedEngine(model, as_output("margin"), selected, projector(model, IDENTITY))
    own.rows((data.x, data.y))
    assert own.generic_parameters == ()
