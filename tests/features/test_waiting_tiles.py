"""Gradients that wait for one another and are sketched by one kernel: interpreted without a GPU."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import reference_projection as reference
import torch

from trakstore.features.projectors import SJLT, Outer, run_shares, waiting_tiles
from trakstore.features.projectors import sjlt as sjlt_file
from trakstore.spec import ParameterSpec, ProjectionSpec

pytest.importorskip("triton", reason="kernels need Triton, which there is for Linux")
from trakstore.features.projectors.triton import partial_sums, sparse

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Odd shapes; rows of several runs, that wrap around; enough items that programs share them.
SHAPES = {"a": (5, 40), "b": (3, 7), "c": (4, 110), "d": (61, 1)}
PARAMETERS = ParameterSpec(tuple(SHAPES.items()))


@pytest.fixture(autouse=True)
def kernels_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sjlt_file, "usable", lambda device, _=7: device.type == DEVICE.type)


@pytest.fixture(autouse=True)
def programs_have_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let two programs share 61 rows: each step takes the interpreter 10 milliseconds."""
    monkeypatch.setattr(run_shares, "_STEPS", 28)


def products(first_row: int = 0) -> tuple[list[Outer], torch.Tensor]:
    """Return products of 3 samples, and their gradients by the definition, one after another."""
    generator = torch.Generator().manual_seed(0)
    outers, whole = [], []
    for name, (rows, columns) in SHAPES.items():
        own = rows - first_row
        left = torch.randn(3, 4, own, generator=generator)
        right = torch.randn(3, 4, columns, generator=generator)
        gradient = torch.zeros(3, rows, columns)
        gradient[:, first_row:] = left.mT @ right
        there = right.to(DEVICE)
        outers.append(
            Outer(name, left.to(DEVICE), lambda a, b, r=there: r[a:b], 4, columns, first_row)  # type: ignore[misc]
        )
        whole.append(gradient.flatten(1))
    return outers, torch.cat(whole, 1)


def sketched(projector: SJLT, outers: list[Outer]) -> tuple[torch.Tensor, int, int]:
    """Return the sketch of a batch, and the launches that sketch, and that add their sums."""
    out, collecting = torch.zeros(3, projector.dim, device=DEVICE), projector.collecting()
    tiles, one = sparse._sketch_tiles, sparse._sketch
    with (
        mock.patch.object(sparse, "_sketch_tiles", Launches(tiles)) as many,
        mock.patch.object(sparse, "_sketch", Launches(one)) as single,
        mock.patch.object(partial_sums, "_add", Launches(partial_sums._add)) as sums,
    ):
        for outer in outers:
            collecting.add(out, outer)
        collecting.finish()
    return out.cpu(), many.count + single.count, sums.count


class Launches:
    """A kernel whose launches are counted."""

    def __init__(self, kernel: object) -> None:
        self.kernel, self.count = kernel, 0

    def __getitem__(self, grid: object) -> object:
        self.count += 1
        return self.kernel[grid]  # type: ignore[index]


@pytest.mark.parametrize(("dim", "copies", "first_row"), [(50, 1, 0), (30, 2, 2)])
def test_two_launches_sketch_all_that_wait(dim: int, copies: int, first_row: int) -> None:
    spec = ProjectionSpec("sjlt", dim=dim, s=copies, seed=2**64 - 1)
    outers, gradients = products(first_row)
    got, sketches, sums = sketched(SJLT(spec, PARAMETERS), outers)
    expected = gradients.double().numpy() @ reference.matrix(spec, SHAPES)
    assert np.abs(got.numpy() - expected).max() <= 2e-5 * np.abs(expected).max()
    assert (sketches, sums) == (1, 1)


def test_columns_in_the_middle_of_a_weight_keep_their_runs() -> None:
    spec = ProjectionSpec("sjlt", dim=16, s=2)
    whole = SJLT(spec, ParameterSpec((("c", SHAPES["c"]),)))
    left, right = torch.randn(3, 4, 4), torch.randn(3, 4, 110)
    right[:, :, :40] = 0  # what another rank has
    own = whole.of_columns({"c": (40, 110)})
    assert own.first_columns["c"] == 32
    there = right.to(DEVICE)
    outers = [
        Outer("c", left.to(DEVICE), lambda a, b, first=first: there[a:b, :, first:], 4, 110 - first)
        for first in (0, 32)
    ]
    found = [sketched(one, [outer])[0] for one, outer in zip((whole, own), outers, strict=True)]
    expected = (left.mT @ right).flatten(1).double().numpy() @ reference.matrix(
        spec, {"c": SHAPES["c"]}
    )
    for one in found:
        assert np.abs(one.numpy() - expected).max() <= 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize(("kept", "launches"), [(4, 1), (3, 2)])
def test_bits_do_not_depend_on_the_batches_before(
    kept: int, launches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    outers, gradients = products()
    sizes = [3 * rows * columns for rows, columns in SHAPES.values()]
    # Before it is formed, a gradient may be as large as one of whole tiles.
    all_but_last = sum(sizes[:3]) + 3 * 64 * 8
    most = all_but_last if kept == 4 else all_but_last - 1
    monkeypatch.setattr(waiting_tiles, "_BYTES", 4 * most)
    spec = ProjectionSpec("sjlt", dim=50)
    fresh, seen = SJLT(spec, PARAMETERS), SJLT(spec, PARAMETERS)
    first, sketches, _ = sketched(fresh, outers)
    assert sketches == launches
    expected = gradients.double().numpy() @ reference.matrix(spec, SHAPES)
    np.testing.assert_allclose(first, expected, rtol=1e-4, atol=1e-4)
    sketched(seen, outers[:1])
    for _ in range(2):
        again, sketches, _ = sketched(seen, outers)
        assert sketches == launches and torch.equal(again, first)


def test_memory_is_taken_at_once_after_the_first_batch() -> None:
    projector, (outers, _) = SJLT(ProjectionSpec("sjlt", dim=50), PARAMETERS), products()
    waiting = waiting_tiles.WaitingTiles(projector)
    out, taken = torch.zeros(3, 50, device=DEVICE), []
    for _ in range(2):
        for outer in outers:
            assert waiting.add(out, outer)
            assert waiting._memory is not None
            taken.append(len(waiting._memory))
        waiting.finish()
    needed = sum(3 * rows * columns for rows, columns in SHAPES.values())
    assert len(set(taken[:4])) > 1 and taken[4:] == [needed] * 4


def test_sums_of_programs_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    projector, (outers, _) = SJLT(ProjectionSpec("sjlt", dim=50, s=4), PARAMETERS), products()
    each = [projector.sums_of(3, *shape) for shape in SHAPES.values()]
    assert each == [600, 600, 600, 2 * 600], "of 61 rows two parts are added"
    monkeypatch.setattr(waiting_tiles, "_BYTES", 4 * 1200)
    waiting, out = waiting_tiles.WaitingTiles(projector), torch.zeros(3, 50, device=DEVICE)
    monkeypatch.setattr(projector, "add_tiles", mock.Mock())
    small = [o for o in outers if o.name == "b"] * 5
    assert all(waiting.add(out, outer) for outer in small)
    waiting.finish()
    counts = [len(call.args[2]) for call in projector.add_tiles.call_args_list]  # type: ignore[attr-defined]
    assert counts == [2, 2, 1]


def test_a_scale_is_in_none_that_wait() -> None:
    sides = {name: (torch.rand(r) + 0.5, torch.rand(c) + 0.5) for name, (r, c) in SHAPES.items()}
    spec, (outers, gradients) = ProjectionSpec("sjlt", dim=50), products()
    got, sketches, _ = sketched(SJLT(spec, PARAMETERS, sides), outers)
    factors = torch.cat([(a[:, None] * b).flatten() for a, b in sides.values()])
    expected = (gradients * factors).double().numpy() @ reference.matrix(spec, SHAPES)
    assert np.abs(got.numpy() - expected).max() <= 2e-5 * np.abs(expected).max()
    # Without a GPU they are added as on the CPU, by no kernel.
    assert sketches == (0 if DEVICE.type == "cpu" else len(SHAPES))
