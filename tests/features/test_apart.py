"""Samples of a batch that see one another: rows are those of each sample alone, in any case."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from features.crowd_models import CROWDS, Branch, Row, rows
from features.models import seeded
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import default_collate

import trakstore as ts
from trakstore.features import featurize
from trakstore.features.apart import apart_by, changes_gradients
from trakstore.features.graph import reached
from trakstore.features.outputs import as_output
from trakstore.features.projectors import make_projector
from trakstore.features.selfcheck import Samples
from trakstore.spec import ParameterSpec

COUNT = 96


def alone(model: nn.Module, samples: list[Row]) -> NDArray[np.float32]:
    """Gradients of each sample by itself, by autograd and nothing of the library's but the output."""
    output, every = as_output("margin"), []
    for one in samples:
        scalar = output(model.eval(), default_collate([one])).output.sum()
        own = torch.autograd.grad(
            scalar, list(model.parameters()), allow_unused=True, materialize_grads=True
        )
        every.append(torch.cat([gradient.reshape(-1) for gradient in own]))
    return torch.stack(every).numpy()


def features(model: nn.Module, samples: Any, path: Path, **options: Any) -> NDArray[np.float32]:
    options = {"projector": ts.ProjectionSpec("identity"), "output": "margin"} | options
    featurize(model, samples, path, progress=False, **{"batch_size": 8} | options)
    return np.asarray(ts.open_store(path).features(0, "train").values)


def assert_rows(got: NDArray[np.float32], wanted: NDArray[np.float32]) -> None:
    apart = np.linalg.norm(got - wanted, axis=1)
    assert (apart <= 1e-4 * np.linalg.norm(wanted, axis=1)).all(), np.flatnonzero(apart > 1e-4)


@pytest.mark.parametrize("name", CROWDS)
@pytest.mark.filterwarnings("ignore")  # what torch says of hooks and of its own ways
def test_rows_are_those_of_each_sample_alone(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, samples = seeded(CROWDS[name]), rows(COUNT)
    with caplog.at_level(logging.WARNING, logger="trakstore"):
        got = features(model, samples, tmp_path / "s.zarr", block_rows=COUNT)
    assert_rows(got, alone(model, samples))
    assert any("generic engine" in one.message for one in caplog.records)


@pytest.mark.parametrize("check", ["some", "all"])
@pytest.mark.parametrize("name", ["Branch", "Exit", "Told equal"])
def test_where_nearly_all_batches_have_a_flagged_sample(
    name: str, check: str, tmp_path: Path
) -> None:
    """Also the batch of the rows that are compared has one, and does as they did."""
    model, samples = seeded(CROWDS[name]), rows(COUNT, every=5)
    got = features(model, samples, tmp_path / "s.zarr", block_rows=COUNT, check=check)
    assert_rows(got, alone(model, samples))


@pytest.mark.parametrize("name", ["Branch", "Clip", "Told equal", "Made full_like"])
def test_bad_rows_beside_good_ones_that_see_one_another(name: str, tmp_path: Path) -> None:
    model, samples = seeded(CROWDS[name]), rows(COUNT, every=11, bad=8)
    got = features(model, samples, tmp_path / "s.zarr", block_rows=48, skip_bad_rows=True)
    wanted = alone(model, samples)
    good = np.isfinite(wanted).all(1)
    assert 0 < (~good).sum() < COUNT / 4
    assert_rows(got[good], wanted[good])
    assert np.isnan(got[~good]).all()


def test_first_samples_that_are_bad_turn_no_check_off(tmp_path: Path) -> None:
    model, samples = seeded(Branch), rows(COUNT)
    samples[0][0][:] = torch.nan
    got = features(model, samples, tmp_path / "s.zarr", skip_bad_rows=True)
    assert_rows(got[1:], alone(model, samples)[1:])


class Rare(nn.Module):
    """Samples that see one another by a way that nothing tells of, where one is in its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor, f: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            flagged = bool(f.any())
        out: Tensor = self.layer(x) * (0.5 if flagged else 1)
        return out


def test_blocks_before_one_that_is_wrong_are_written_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, samples = seeded(Rare), rows(160, every=1000)
    samples[13][1].fill_(1)  # one batch of the first block, where no compared row is
    for i in range(80, 120):
        samples[i][1].fill_(float(i % 8 == 0))  # each batch of the third
    with caplog.at_level(logging.WARNING, logger="trakstore"):
        got = features(model, samples, tmp_path / "s.zarr", block_rows=40)
    lines = [one.message for one in caplog.records if "computed again" in one.message]
    assert len(lines) == 1 and "rows 80 to 119" in lines[0]
    assert_rows(got, alone(model, samples))


class Counted(nn.Module):
    """A model that counts its samples, pass by pass, and asks of padding as language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.sizes = nn.Linear(6, 3), list[int]()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        self.sizes.append(len(x))
        if mask.sum() == mask.numel() or mask.all():
            mask = torch.ones_like(mask)
        out: Tensor = self.layer(x * mask)
        return out


def test_samples_that_do_not_see_one_another_cost_a_few_passes_a_block(tmp_path: Path) -> None:
    samples = []
    for i, (x, _, y) in enumerate(rows(1024)):
        mask = torch.ones(6)
        mask[4:] = i % 3 != 0  # some samples of each batch are padded
        samples.append((x, mask, y))
    model = seeded(Counted)
    sizes: list[int] = model.sizes  # type: ignore[assignment]
    features(model, samples[:512], tmp_path / "one.zarr", block_rows=512)
    first = sum(sizes)
    sizes.clear()
    features(model, samples, tmp_path / "two.zarr", block_rows=512)
    # A block is 512 samples, 8 that are compared together, and alone one of those, and one that would
    # answer both of the model's questions otherwise.
    assert sum(sizes) - first == 512 + 8 + 1 + 1


def test_functions_of_packages_are_trusted() -> None:
    x = torch.ones(2, requires_grad=True)
    assert not changes_gradients(type((x * 2).grad_fn))
    clip = seeded(CROWDS["ClipByFunction"])
    out = clip(torch.ones(2, 6), torch.zeros(2))
    own = reached([out.grad_fn]).functions
    assert len(own) == 1 and changes_gradients(type(own[0]))


def test_a_sample_beside_copies_of_itself_tells_rounding() -> None:
    """A model whose products differ by the size of a batch alone has right rows."""

    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(x) * (1 + 1e-3 * (len(x) > 1))
            return out

    model = seeded(Sized)
    names = dict(model.named_parameters())
    shapes = tuple((name, tuple(one.shape)) for name, one in names.items())
    projector = make_projector(ts.ProjectionSpec("identity"), ParameterSpec(shapes))
    x, y = torch.ones(1, 6), torch.zeros(1, dtype=torch.long)
    one = Samples(model, as_output("margin"), names, (x, y))
    row = torch.from_numpy(alone(model, [(x[0], 0)])[0])  # type: ignore[list-item]
    assert apart_by(one, projector, row * 1.001, 0, 1e-4, 8) is None
    assert apart_by(one, projector, row * 1.01, 0, 1e-4, 8) == pytest.approx(0.01, rel=0.1)
    assert apart_by(one, projector, row * 1.001, 0, 1e-4, 1) == pytest.approx(0.001, rel=0.1)
