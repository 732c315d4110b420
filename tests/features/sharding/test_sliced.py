"""Parts of gradients: their projections add up to that of the whole."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import Replicate, Shard

from trakstore.features.projectors import Gathered, Outer, Piece, Rows, Sliced, make_projector
from trakstore.features.projectors.scaled import scaled
from trakstore.features.sharding import Span, part_of
from trakstore.spec import ParameterSpec, ProjectionSpec

ROWS, COLUMNS, RANKS = 7, 150, 3
PARAMETERS = ParameterSpec((("before", (4,)), ("weight", (ROWS, COLUMNS))))
MATRICES = {"before": (4, 1), "weight": (ROWS, COLUMNS)}
SPECS = [
    ProjectionSpec("sjlt", dim=64, s=2),
    ProjectionSpec("kronecker", dim=64, side=4),
    ProjectionSpec("rademacher", dim=64),
    ProjectionSpec("gaussian", dim=64),
    ProjectionSpec("identity"),
]


def spans(dim: int) -> list[Span]:
    size = (ROWS, COLUMNS)[dim]
    each = -(-size // RANKS)
    return [Span(dim, a, min(size, a + each)) for a in range(0, size, each)]


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def cut(tensor: Tensor, span: Span, dim: int) -> Tensor:
    """Return the part of a tensor whose dimension ``dim`` is the one that the span divides."""
    return tensor.narrow(dim, span.start, span.stop - span.start)


def rows(span: Span | None) -> Piece:
    tile = normal(2, ROWS, COLUMNS)
    return Rows("weight", tile if span is None else cut(tile, span, 1 + span.dim))


def outer(span: Span | None) -> Piece:
    left, right = normal(2, 5, ROWS), normal(2, 5, COLUMNS)
    if span is not None and span.dim == 0:
        left = cut(left, span, 2)
    if span is not None and span.dim == 1:
        right = cut(right, span, 2)
    return Outer("weight", left, lambda a, b: right[a:b], 5, right.shape[2])


def gathered(span: Span | None) -> Piece:
    index = torch.tensor([[0, 6, 6, 2], [1, 1, 3, 5]])
    values = normal(2, 4, COLUMNS)
    return Gathered("weight", index, values if span is None else cut(values, span, 2))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
@pytest.mark.parametrize(
    ("piece", "dim"), [(rows, 0), (rows, 1), (outer, 0), (outer, 1), (gathered, 1)]
)
def test_parts_add_up_to_the_whole(spec: ProjectionSpec, piece: Any, dim: int) -> None:
    projector = make_projector(spec, PARAMETERS)
    whole, parts = (torch.zeros(2, projector.dim) for _ in range(2))
    projector.add_piece(whole, piece(None))
    for span in spans(dim):
        Sliced(projector, {"weight": span}).add_piece(parts, piece(span))
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)
    assert float(whole.norm()) > 1


@pytest.mark.parametrize(
    ("spec", "columns", "wanted"),
    [
        (SPECS[0], (70, 100), (64, 128)),
        (SPECS[0], (0, 130), (0, 150)),
        (SPECS[0], (150, 150), (128, 150)),  # of a rank that has none
        (SPECS[1], (70, 100), (70, 100)),
        (SPECS[2], (70, 100), (0, 150)),
    ],
)
def test_columns_beside_a_part_are_as_few_as_a_projector_can_do_with(
    spec: ProjectionSpec, columns: tuple[int, int], wanted: tuple[int, int]
) -> None:
    own = make_projector(spec, PARAMETERS).of_columns({"weight": columns})
    first, (rows, width) = own.first_columns.get("weight", 0), own.matrices["weight"]
    assert (first, first + width) == wanted
    assert rows == ROWS
    assert own.matrices["before"] == (4, 1)


@pytest.mark.parametrize("spec", SPECS[:3], ids=lambda spec: spec.kind)
def test_scaled_parts_add_up_to_the_whole(spec: ProjectionSpec) -> None:
    factors = {
        name: (normal(a).exp(), normal(b, 1)[:, 0].exp()) for name, (a, b) in MATRICES.items()
    }
    projector = scaled(make_projector(spec, PARAMETERS), factors)
    whole, parts = (torch.zeros(2, projector.dim) for _ in range(2))
    for make in (rows, outer, gathered):
        projector.add_piece(whole, make(None))
        for span in spans(1):
            Sliced(projector, {"weight": span}).add_piece(parts, make(span))
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_parts_are_collected_as_wholes_are(spec: ProjectionSpec) -> None:
    projector = make_projector(spec, PARAMETERS)
    for dim in (0, 1):
        whole, parts = (torch.zeros(2, projector.dim) for _ in range(2))
        pieces = (rows, outer, gathered) if dim else (rows, outer)
        for make in pieces:
            projector.add_piece(whole, make(None))
        for span in spans(dim):
            sliced = Sliced(projector, {"weight": span})
            inner = sliced._projector.collecting()
            with (
                mock.patch.object(sliced._projector, "collecting", return_value=inner),
                mock.patch.object(inner, "add", wraps=inner.add) as added,
            ):
                collecting = sliced.collecting()
                for make in pieces:
                    collecting.add(parts, make(span))
                collecting.finish()
            assert added.call_count == len(pieces), "its own way of collecting is used"
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)


def test_a_factor_with_other_columns_beside_it_is_made_wider() -> None:
    span = Span(1, 50, 100)
    piece = outer(span)
    assert isinstance(piece, Outer)
    nothing: Any = lambda *_: pytest.fail("knows of no other columns")  # noqa: E731
    piece = piece._replace(unfolded=nothing, filtered=nothing)
    placed = Sliced(make_projector(SPECS[0], PARAMETERS), {"weight": span})._placed(piece)
    assert isinstance(placed, Outer) and placed.columns == 128  # two runs
    assert placed.unfolded is None and placed.filtered is None
    assert torch.equal(placed.make_right(0, 2)[:, :, 50:100], piece.make_right(0, 2))


def test_a_part_that_is_none_of_this_rank_is_refused() -> None:
    projector = Sliced(make_projector(SPECS[0], PARAMETERS), {"weight": Span(0, 3, 6)})
    with pytest.raises(RuntimeError, match="7 rows or columns of weight"):
        projector.add_piece(torch.zeros(2, 64), rows(None))


def test_parts_of_two_dimensions_of_ranks_are_the_whole_in_some_order() -> None:
    whole = torch.arange(70.0).reshape(7, 10)
    for placements in ([Shard(0), Shard(0)], [Shard(0), Shard(1)], [Replicate(), Shard(1)]):
        parts = []
        for at in range(6):
            place = divmod(at, 3)
            mesh = SimpleNamespace(
                ndim=2, size=(2, 3).__getitem__, get_local_rank=place.__getitem__
            )
            like: Any = SimpleNamespace(device_mesh=mesh, placements=placements)
            parts.append(whole[part_of((7, 10), like)])
        numbers = torch.cat([one.reshape(-1) for one in parts]).sort().values
        times = 2 if placements[0] == Replicate() else 1
        torch.testing.assert_close(numbers, torch.arange(70.0).repeat_interleave(times))
