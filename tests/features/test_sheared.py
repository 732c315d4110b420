"""Products of factors that are sketched on the chip, against the definition of P."""

from __future__ import annotations

from math import prod
from typing import Any
from unittest import mock

import numpy as np
import pytest
import reference_projection as reference
import torch
import torch.nn.functional as F
from torch import nn

from trakstore.features.layers import Call, convolution
from trakstore.features.projectors import SJLT, Outer, waiting_windows
from trakstore.features.projectors import sjlt as sjlt_file
from trakstore.features.projectors.pieces import Unfolded
from trakstore.features.projectors.sheared import (
    COLUMNS,
    FEATURES,
    ROWS,
    WINDOW,
    Sheared,
    Windows,
    pays,
)
from trakstore.spec import ParameterSpec, ProjectionSpec

pytest.importorskip("triton", reason="kernels need Triton, which there is for Linux")
from trakstore.features.projectors.triton.shear import formed
from trakstore.features.projectors.waiting_windows import WaitingWindows, WindowLists

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
CPU = torch.device("cpu")
# positions, rows, columns, dim, copies: odd ones, runs that wrap around, several of them, merged rows
SHAPES = [
    (5, 9, 33, 256, 1),
    (70, 40, 300, 257, 1),
    (1, 300, 129, 256, 2),
    (3, 7, 700, 300, 1),
]


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype)


def of_rows(
    projector: SJLT, first: int, last: int, device: torch.device = DEVICE, in_turn: int = 1
) -> Sheared:
    return projector._sheared_rows_of("w", first, last, device, in_turn)


def added(
    projector: SJLT,
    left: torch.Tensor,
    right: torch.Tensor,
    first: int,
    dtype: torch.dtype,
    in_turn: int = 1,
) -> np.ndarray[Any, Any]:
    left, right = left.to(DEVICE), right.to(DEVICE)
    outer = Outer("w", left, lambda a, b: right[a:b], right.shape[1], right.shape[2], first)
    out = torch.ones(len(left), projector.dim, device=DEVICE)
    table = of_rows(projector, first, first + left.shape[2], DEVICE, in_turn)
    waiting = WaitingWindows(WindowLists(projector.dim, projector.spec.s**-0.5))
    waiting.add(out, outer, table, dtype)
    waiting.finish()
    return out.cpu().numpy() - 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("positions", "rows", "columns", "dim", "copies"), SHAPES)
def test_a_product_is_sketched_as_its_definition_says(
    positions: int,
    rows: int,
    columns: int,
    dim: int,
    copies: int,
    turned: bool,
    dtype: torch.dtype,
) -> None:
    spec, shape = ProjectionSpec("sjlt", dim=dim, seed=5, s=copies), (rows + 3, columns)
    left = draw(3, positions, rows, dtype=dtype)
    right = draw(3, positions, columns, dtype=dtype)
    if turned:  # as of a convolution
        left, right = (one.mT.contiguous().mT for one in (left, right))
    got = added(SJLT(spec, ParameterSpec((("w", shape),))), left, right, 2, dtype)
    g = (left.double().mT @ right.double()).flatten(1).numpy()
    expected = g @ reference.matrix(spec, {"w": shape})[2 * columns : (2 + rows) * columns]
    # On a GPU rows in 16 bits that are the sum of others are rounded once more, as every operand is.
    allowed = 1e-5 if dtype == torch.float32 or not GPU else float(torch.finfo(dtype).eps)
    assert np.abs(got - expected).max() <= allowed * np.abs(expected).max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("in_turn", [2, 3, 4])
def test_tiles_in_turn_write_each_feature_once(in_turn: int, dtype: torch.dtype) -> None:
    """Of a run of five tiles, the last of which is not whole, and one of two."""
    spec, shape = ProjectionSpec("sjlt", dim=600), (30, 800)
    left, right = draw(2, 4, 30, dtype=dtype), draw(2, 4, 800, dtype=dtype)
    projector = SJLT(spec, ParameterSpec((("w", shape),)))
    got = added(projector, left, right, 0, dtype, in_turn)
    g = (left.double().mT @ right.double()).flatten(1).numpy()
    expected = g @ reference.matrix(spec, {"w": shape})
    allowed = 1e-5 if dtype == torch.float32 or not GPU else float(torch.finfo(dtype).eps)
    assert np.abs(got - expected).max() <= allowed * np.abs(expected).max()
    alone, starts = (of_rows(projector, 0, 30, CPU, n).starts >= 0 for n in (1, in_turn))
    # Two halves for each tile alone; in turn one for each, and one more for each program.
    five, two = alone[4].sum(), alone[0].sum() - alone[4].sum()
    assert alone.sum() == 10 * five + 4 * two
    assert starts.sum() == five * (5 + -(-5 // in_turn)) + two * (2 + -(-2 // in_turn))


def test_few_positions_are_done_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    projector = SJLT(ProjectionSpec("sjlt", dim=512), ParameterSpec((("w", (4096, 640)),)))
    for own, positions, tiles in ((9, 16, 4), (9, 512, 1), (8, 16, 1)):
        monkeypatch.setattr(sjlt_file, "usable", lambda _, least=7, own=own: least <= own)
        left, right = (
            torch.empty(2, positions, n, dtype=torch.bfloat16, device="meta") for n in (4096, 640)
        )
        outer = Outer("w", left, lambda a, b, r=right: r[a:b], positions, 640)  # type: ignore[misc]
        chosen = projector.sheared(torch.zeros(2, 512, device="meta"), outer)
        assert chosen and chosen[0].tiles == tiles


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_factors_of_16_bits_are_rounded_and_nothing_else(dtype: torch.dtype) -> None:
    spec, shape = ProjectionSpec("sjlt", dim=300), (50, 200)
    left, right = draw(2, 17, 50, dtype=dtype), draw(2, 17, 200, dtype=dtype)
    projector = SJLT(spec, ParameterSpec((("w", shape),)))
    got = added(projector, left, right, 0, dtype)
    exact = (left.double().mT @ right.double()).flatten(1).numpy() @ reference.matrix(
        spec, {"w": shape}
    )
    # On a GPU a row that is the sum of others is rounded once more, as every operand is.
    allowed = float(torch.finfo(dtype).eps) if GPU else 1e-5
    assert np.linalg.norm(got - exact) <= allowed * np.linalg.norm(exact)


# channels, size, groups and options of a convolution: windows that overlap, or do not; rows apart
CONVOLUTIONS: list[tuple[int, tuple[int, ...], dict[str, Any]]] = [
    (3, (7, 6), {"kernel_size": 3, "padding": 1}),
    (4, (9, 8), {"kernel_size": (2, 3), "stride": 2, "groups": 2}),
    (2, (11,), {"kernel_size": 3, "dilation": 2, "padding": "same"}),
    (2, (12,), {"kernel_size": 32, "padding": 16}),  # as many bits as a narrow number has
    (2, (9, 8), {"kernel_size": 7, "padding": 3, "stride": 2}),  # as many as need a wide one
]


def outers_of_convolution(channels: int, size: tuple[int, ...], options: Any) -> list[Outer]:
    """Pieces of 3 samples, each of which has 2 entries."""
    make = nn.Conv1d if len(size) == 1 else nn.Conv2d
    layer = make(channels, 6, bias=False, **options)
    x = draw(6, channels, *size)
    positional = x, layer.weight, None, layer.stride, layer.padding, layer.dilation, layer.groups
    call = Call(positional, {}, {id(layer.weight): "w"})
    matched = convolution.MATCHERS[F.conv1d if len(size) == 1 else F.conv2d](call)
    assert matched
    gradient = torch.randn_like(layer(x)).detach()
    ready = [one.unflatten(0, (3, 2)).to(DEVICE) for one in (x, gradient)]
    return [one for one in matched.pieces((ready[0],), ready[1]) if isinstance(one, Outer)]


def entries_of(unfolded: Unfolded, b: int) -> torch.Tensor:
    """Return the right factor of a sample, entry by entry."""
    places = unfolded.positions[:, None] + unfolded.columns
    known = torch.ones_like(places, dtype=torch.bool)
    if unfolded.inside is not None and unfolded.taps is not None:
        known = unfolded.inside[:, None] & unfolded.taps != 0
    sample = unfolded.input[b]
    whole = sample.as_strided((int(places[known].max()) + 1,), (1,))
    assert int(places[known].min()) >= 0
    return torch.where(known, whole[places.long().clamp(0, len(whole) - 1)], 0)


@pytest.mark.parametrize(("channels", "size", "options"), CONVOLUTIONS)
def test_an_input_is_unfolded_where_it_lies(
    channels: int, size: tuple[int, ...], options: dict[str, Any]
) -> None:
    outers = outers_of_convolution(channels, size, options)
    columns, rows = outers[0].columns, sum(outer.rows for outer in outers)
    projector = SJLT(ProjectionSpec("sjlt", dim=256), ParameterSpec((("w", (rows, columns)),)))
    waiting, got = WaitingWindows(projector.windows), torch.zeros(3, 256, device=DEVICE)
    expected, given = torch.zeros(3, 256), 4 * 6 * channels * prod(size)
    for outer in outers:
        right, unfolded = outer.make_right(0, 3), outer.unfolded and outer.unfolded(0, 3)
        assert unfolded
        assert unfolded.input.untyped_storage().nbytes() == given, "no padded copy is made"
        for b in range(3):
            assert torch.equal(entries_of(unfolded, b), right[b])
        tile = formed(outer.left, unfolded, torch.float32)
        torch.testing.assert_close(tile, outer.left.mT @ right, rtol=1e-5, atol=1e-5)
        projector.add(expected, "w", tile.cpu(), outer.first_row)
        last_row = outer.first_row + outer.rows
        table = of_rows(projector, outer.first_row, last_row)
        # In 16 bits the input is not unfolded; the interpreter multiplies what it is given.
        waiting.add(got, outer, table, torch.float32 if GPU else torch.bfloat16)
    waiting.finish()
    torch.testing.assert_close(got.cpu(), expected, rtol=1e-5, atol=1e-5)


def test_an_input_of_large_windows_is_padded() -> None:
    (outer,) = outers_of_convolution(1, (6, 6), {"kernel_size": 9, "padding": 4})
    assert outer.unfolded
    unfolded = outer.unfolded(0, 3)
    assert unfolded.inside is None and unfolded.input.shape[-2:] == (14, 14)
    for b in range(3):
        assert torch.equal(entries_of(unfolded, b), outer.make_right(0, 3)[b])
    tile = formed(outer.left, unfolded, torch.float32)
    torch.testing.assert_close(tile, outer.left.mT @ outer.make_right(0, 3), rtol=1e-5, atol=1e-5)


def test_factors_of_a_scale_are_in_the_tables() -> None:
    spec, shape = ProjectionSpec("sjlt", dim=256), (30, 140)
    left, right = draw(2, 4, 30), draw(2, 4, 140)
    sides = draw(30).abs(), draw(140).abs()
    projector = SJLT(spec, ParameterSpec((("w", shape),)), {"w": sides})
    got = added(projector, left, right, 0, torch.float32)
    g = left.double().mT @ right.double() * sides[0][:, None] * sides[1]
    expected = g.flatten(1).numpy() @ reference.matrix(spec, {"w": shape})
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("in_turn", [1, 4])
@pytest.mark.parametrize(
    ("rows", "columns", "dim"), [(2000, 50, 512), (300, 1000, 700), (1, 5, 256)]
)
def test_every_row_has_one_slot_in_a_group_within_its_window(
    rows: int, columns: int, dim: int, in_turn: int
) -> None:
    projector = SJLT(ProjectionSpec("sjlt", dim=dim, s=2), ParameterSpec((("w", (rows, columns)),)))
    table, runs = of_rows(projector, 0, rows, CPU, in_turn), -(-columns // dim)
    assert table.slots % ROWS == 0 and len(table.runs) == table.slots // ROWS
    assert int(table.shifts.max()) <= WINDOW - COLUMNS and int(table.shifts.min()) >= 0
    counts = table.first.diff()
    slot = torch.repeat_interleave(torch.arange(table.slots), counts)
    run, copy = table.runs[slot // ROWS, 0] // dim, table.runs[slot // ROWS, 2] // columns
    seen = set(zip(table.rows.tolist(), run.tolist(), copy.tolist(), strict=True))
    assert len(seen) == len(table.rows) == rows * runs * 2
    offset = torch.from_numpy(table.starts[0])[slot // table.group] + table.shifts[slot]
    for which, own in enumerate(projector._tables_of("w")):
        mine = copy == which
        expected = own.offsets[table.rows[mine], run[mine]]
        np.testing.assert_array_equal(offset[mine] % dim, expected)
        np.testing.assert_array_equal(
            table.signs[mine], own.signs[table.rows[mine].long(), run[mine].long()]
        )


@pytest.mark.parametrize("k", [256, 300, 1000, 1025])
def test_windows_are_listed_for_every_tile_that_they_fall_on(k: int) -> None:
    projector = SJLT(ProjectionSpec("sjlt", dim=k), ParameterSpec((("w", (200, 500)),)))
    tables = [
        of_rows(projector, *rows, CPU, in_turn)
        for rows, in_turn in (((0, 150), 1), ((150, 200), 3))
    ]
    lists = Windows.of(tables, k, CPU)
    starts = np.concatenate([table.starts.ravel() for table in tables])
    for tile in range(-(-k // FEATURES)):
        features = range(tile * FEATURES, min(k, (tile + 1) * FEATURES))
        hit = [
            i
            for i, start in enumerate(starts)
            if start >= 0 and any((m - start) % k < FEATURES for m in features)
        ]
        own = slice(int(lists.first[tile]), int(lists.first[tile + 1]))
        assert lists.windows[own].tolist() == hit
        assert lists.starts[own].tolist() == starts[hit].tolist()


def test_windows_of_many_products_wait_for_one_another() -> None:
    shapes = {f"w{i}": (20 + i, 40) for i in range(3)}
    parameters = ParameterSpec(tuple(shapes.items()))
    projector = SJLT(ProjectionSpec("sjlt", dim=256), parameters)
    pieces, expected = [], torch.zeros(2, 256)
    for name, (rows, columns) in shapes.items():
        left, right = draw(2, 3, rows), draw(2, 3, columns)
        projector.add(expected, name, left.mT @ right)
        there = right.to(DEVICE)
        pieces.append(Outer(name, left.to(DEVICE), lambda a, b, r=there: r[a:b], 3, columns))  # type: ignore[misc]
    folded, taken = [], []
    for _ in range(2):
        waiting, out = WaitingWindows(projector.windows), torch.zeros(2, 256, device=DEVICE)
        for outer in pieces:
            table = projector._sheared_rows_of(outer.name, 0, outer.rows, DEVICE, 1)
            waiting.add(out, outer, table, torch.float32)
            assert waiting._windows is not None
            taken.append(waiting._windows.shape[1])
        folded.append(len(waiting._tables))
        waiting.finish()
        torch.testing.assert_close(out.cpu(), expected, rtol=1e-5, atol=1e-5)
    assert folded == [3, 3], "all are folded at once, in the first batch too"
    needed = sum(
        projector._sheared_rows_of(n, 0, r, CPU, 1).starts.size for n, (r, _) in shapes.items()
    )
    assert taken[3:] == [needed] * 3, "the second batch copies no windows to more memory"


def sketched(projector: SJLT, pieces: list[Outer]) -> tuple[torch.Tensor, list[int]]:
    """Return the sketch of a batch by windows, and how many tables each fold had."""
    waiting, out = WaitingWindows(projector.windows), torch.zeros(2, projector.dim, device=DEVICE)
    with mock.patch.object(projector.windows, "of", wraps=projector.windows.of) as of:
        for outer in pieces:
            table = projector._sheared_rows_of(outer.name, 0, outer.rows, DEVICE, 1)
            waiting.add(out, outer, table, torch.float32)
        waiting.finish()
    return out.cpu(), [len(call.args[0]) for call in of.call_args_list]


@pytest.mark.parametrize(("tables", "folds"), [(4, [4]), (3, [3, 1]), (0, [1, 1, 1, 1])])
def test_bits_do_not_depend_on_the_batches_before(
    tables: int, folds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = {"a": (40, 300), "b": (30, 200), "c": (50, 280), "d": (20, 260)}
    spec, parameters = ProjectionSpec("sjlt", dim=300), ParameterSpec(tuple(shapes.items()))
    fresh, seen = SJLT(spec, parameters), SJLT(spec, parameters)
    pieces, expected, sizes = [], torch.zeros(2, 300), []
    for name, (rows, columns) in shapes.items():
        left, right = draw(2, 8, rows), draw(2, 8, columns)
        fresh.add(expected, name, left.mT @ right)
        there = right.to(DEVICE)
        pieces.append(Outer(name, left.to(DEVICE), lambda a, b, r=there: r[a:b], 8, columns))  # type: ignore[misc]
        sizes.append(fresh._sheared_rows_of(name, 0, rows, CPU, 1).starts.size)
    monkeypatch.setattr(waiting_windows, "_TOGETHER", sum(sizes[:tables]))
    first, own = sketched(fresh, pieces)
    assert own == folds
    torch.testing.assert_close(first, expected, rtol=1e-5, atol=1e-5)
    sketched(seen, pieces[:1])
    for _ in range(2):
        again, own = sketched(seen, pieces)
        assert own == folds and torch.equal(again, first)


@pytest.mark.parametrize("bytes_", [1, 3 * 4 * FEATURES, 1 << 12])
def test_large_batches_are_done_in_parts(bytes_: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting_windows, "_BYTES", bytes_)
    spec, shape = ProjectionSpec("sjlt", dim=256), (5, 40)
    left, right = draw(5, 3, 5), draw(5, 3, 40)
    projector = SJLT(spec, ParameterSpec((("w", shape),)))
    got = added(projector, left, right, 0, torch.float32)
    expected = torch.zeros(5, 256)
    projector.add(expected, "w", left.mT @ right)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (torch.float16, torch.float32, torch.float32),
        (torch.float16, torch.float16, torch.float16),
        (torch.float32, torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.float32, torch.float32),
    ],
)
@pytest.mark.parametrize("in_place", [False, True])
def test_both_factors_decide_in_which_dtype_they_are_multiplied(
    left: torch.dtype,
    right: torch.dtype,
    expected: torch.dtype,
    in_place: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sjlt_file, "usable", lambda *_: True)
    rows, columns = 4096, 640
    projector = SJLT(ProjectionSpec("sjlt", dim=512), ParameterSpec((("w", (rows, columns)),)))
    out = torch.zeros(2, 512, device="meta")
    one = torch.empty(2, 300, rows, dtype=left, device="meta")
    other = torch.empty(2, 300, columns, dtype=right, device="meta")
    outer = Outer("w", one, lambda a, b: other[a:b], 300, columns)
    if in_place:
        places = torch.empty(0, dtype=torch.int32, device="meta")
        never: Any = lambda *_: pytest.fail("it is not unfolded to see its dtype")  # noqa: E731
        unfolded = lambda a, b: Unfolded(other[a:b], places, places)  # noqa: E731
        outer = outer._replace(make_right=never, unfolded=unfolded)
    chosen = projector.sheared(out, outer)
    assert chosen and chosen[1] == expected


def test_it_pays_where_tiles_are_full_and_rows_are_merged() -> None:
    def chosen(positions: int, rows: int, columns: int, dim: int, low: bool = True) -> bool:
        projector = SJLT(ProjectionSpec("sjlt", dim=dim), ParameterSpec((("w", (rows, columns)),)))
        return pays(of_rows(projector, 0, rows, CPU), positions, rows, columns, low)

    assert chosen(512, 5632, 2048, 4096) and chosen(512, 2048, 5632, 4096)
    assert chosen(512, 32000, 2048, 4096)
    assert chosen(512, 50257, 768, 2048, low=False) and not chosen(512, 768, 768, 8192, low=False)
    assert not chosen(512, 256, 2048, 4096), "groups would be nearly empty"
    assert not chosen(512, 2048, 2048, 1 << 20), "offsets are far from one another"


@pytest.mark.skipif(not GPU, reason="needs a CUDA device")
def test_on_a_gpu_each_run_gives_the_same_bits() -> None:
    projector = SJLT(ProjectionSpec("sjlt", dim=2048), ParameterSpec((("w", (3000, 2500)),)))
    left = draw(9, 300, 3000, dtype=torch.bfloat16)
    right = draw(9, 300, 2500, dtype=torch.bfloat16)
    first = added(projector, left, right, 0, torch.bfloat16)
    for _ in range(5):
        np.testing.assert_array_equal(added(projector, left, right, 0, torch.bfloat16), first)
