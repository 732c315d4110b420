"""Kernels against the definition of P: interpreted where there is no GPU, on it where there is one."""

from __future__ import annotations

import logging
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_projection as reference
import torch

from trakstore.features.projectors import (
    SJLT,
    Gathered,
    Rademacher,
    make_projector,
    run_shares,
    triton,
)
from trakstore.features.projectors import rademacher as rademacher_file
from trakstore.features.projectors import sjlt as sjlt_file
from trakstore.features.projectors.run_shares import share_count
from trakstore.spec import ParameterSpec, ProjectionKind, ProjectionSpec

pytest.importorskip("triton", reason="kernels need Triton, which there is for Linux")
from trakstore.features.projectors.triton import signs
from trakstore.features.projectors.triton.words import signed

# of Triton 3.9 about its next version; products with signs are exact either way
pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
# rows, rest, dim: runs that wrap around, several of them, shorter than dim, of one position
SHAPES = [(5, 40, 16), (3, 150, 130), (20, 1, 40), (3, 5, 8), (2, 50, 7), (1, 1, 1)]


@pytest.fixture(autouse=True)
def kernels_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for file in (sjlt_file, rademacher_file):
        monkeypatch.setattr(file, "usable", lambda device, _=7: device.type == DEVICE.type)


def tile(batch: int, rows: int, rest: int) -> torch.Tensor:
    return torch.randn(batch, rows, rest, generator=torch.Generator().manual_seed(0))


def projected(projector: Any, g: torch.Tensor, first_row: int = 0) -> np.ndarray[Any, Any]:
    out = torch.zeros(len(g), projector.dim, device=DEVICE)
    projector.add(out, "w", g.to(DEVICE), first_row)
    return out.cpu().numpy()


def close(got: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> None:
    assert np.abs(got - expected).max() <= 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["sjlt", "rademacher"])
@pytest.mark.parametrize(("rows", "rest", "dim"), SHAPES)
def test_products_are_those_of_the_definition(
    kind: ProjectionKind, rows: int, rest: int, dim: int
) -> None:
    spec, shape = ProjectionSpec(kind, dim=dim, seed=2**64 - 1), (rows + 2, rest)
    g = tile(9, *shape)
    got = projected(make_projector(spec, ParameterSpec((("w", shape),))), g[:, 2:], 2)
    p = reference.matrix(spec, {"w": shape})
    close(got, g[:, 2:].reshape(9, -1).double().numpy() @ p[2 * rest :])


@pytest.mark.parametrize("kind", ["sjlt", "rademacher"])
def test_signs_are_those_of_the_definition_bit_for_bit(kind: ProjectionKind) -> None:
    spec = ProjectionSpec(kind, dim=70, seed=3)
    units = torch.eye(24).reshape(24, 3, 8)
    got = projected(make_projector(spec, ParameterSpec((("w", (3, 8)),))), units)
    np.testing.assert_array_equal(np.sign(got), np.sign(reference.matrix(spec, {"w": (3, 8)})))


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("rest", [40, 43])
def test_runs_in_the_middle_of_a_row_are_those_of_the_whole(rest: int, scaled: bool) -> None:
    shape = (5, rest)
    factors = {"w": (torch.rand(5) + 0.5, torch.rand(rest) + 0.5)} if scaled else None
    projector = SJLT(ProjectionSpec("sjlt", dim=16), ParameterSpec((("w", shape),)), factors)
    g, index = tile(3, *shape), torch.randint(0, 5, (3, 4))
    g[:, :, :20] = 0
    own = projector.of_columns({"w": (20, rest)})
    assert own.first_columns["w"] == 16
    close(projected(own, g[:, :, 16:]), projected(projector, g))
    values = tile(3, 4, rest)
    values[:, :, :20] = 0
    outs = [torch.zeros(3, 16, device=DEVICE) for _ in range(2)]
    projector.add_gathered(outs[0], Gathered("w", index.to(DEVICE), values.to(DEVICE)))
    own.add_gathered(outs[1], Gathered("w", index.to(DEVICE), values[:, :, 16:].to(DEVICE)))
    close(outs[1].cpu().numpy(), outs[0].cpu().numpy())


def test_copies_of_a_sketch() -> None:
    spec, shape = ProjectionSpec("sjlt", dim=16, s=3), (4, 20)
    g = tile(2, *shape)
    got = projected(SJLT(spec, ParameterSpec((("w", shape),))), g)
    close(got, g.reshape(2, -1).double().numpy() @ reference.matrix(spec, {"w": shape}))


@pytest.mark.parametrize("kind", ["sjlt", "rademacher"])
def test_gathered_rows_are_those_of_whole_gradients(kind: ProjectionKind) -> None:
    spec = ProjectionSpec(kind, dim=20)
    projector = make_projector(spec, ParameterSpec((("w", (30, 24)),)))
    index = torch.randint(0, 30, (9, 3), generator=torch.Generator().manual_seed(0))
    values, whole = tile(9, 3, 24), torch.zeros(9, 30, 24)
    for b in range(9):
        whole[b].index_add_(0, index[b], values[b])
    out = torch.zeros(9, 20, device=DEVICE)
    projector.add_gathered(out, Gathered("w", index.to(DEVICE), values.to(DEVICE)))
    expected = whole.reshape(9, -1).double().numpy() @ reference.matrix(spec, {"w": (30, 24)})
    close(out.cpu().numpy(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiles_and_gathered_rows_are_scaled(dtype: torch.dtype) -> None:
    """Factors of a scale are in the kernel; tiles in 16 bits, or that are a part of another, too."""
    spec, shape = ProjectionSpec("sjlt", dim=20, s=2), (12, 30)
    generator = torch.Generator().manual_seed(0)
    sides = torch.rand(12, generator=generator) + 0.5, torch.rand(30, generator=generator) + 0.5
    projector = SJLT(spec, ParameterSpec((("w", shape),)), {"w": sides})
    p = reference.matrix(spec, {"w": shape})
    factors = (sides[0][:, None] * sides[1]).double()
    g = tile(3, 12, 40).to(dtype)[:, :, :30]
    expected = (g[:, 4:].double() * factors[4:]).flatten(1).numpy() @ p[120:]
    close(projected(projector, g[:, 4:], 4), expected)
    index = torch.randint(0, 12, (3, 5), generator=generator)
    values, whole = tile(3, 5, 30).to(dtype), torch.zeros(3, 12, 30, dtype=torch.float64)
    for b in range(3):
        whole[b].index_add_(0, index[b], values[b].double())
    out = torch.zeros(3, 20, device=DEVICE)
    projector.add_gathered(out, Gathered("w", index.to(DEVICE), values.to(DEVICE)))
    close(out.cpu().numpy(), (whole * factors).flatten(1).numpy() @ p)


@pytest.mark.parametrize("kind", ["sjlt", "rademacher"])
def test_many_programs_add_their_parts(
    kind: ProjectionKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Enough entries that they are shared out, where a program should have fewer of them."""
    monkeypatch.setattr(signs, "_STEPS", 4)
    monkeypatch.setattr(signs, "_PAIRS", 128)
    monkeypatch.setattr(run_shares, "_STEPS", 28)
    shape = (2, 150) if kind == "rademacher" else (61, 1)
    count = signs._shares(8, 300) if kind == "rademacher" else share_count(3, *shape, 8)
    assert count == 2
    spec = ProjectionSpec(kind, dim=8)
    parameters = ParameterSpec((("w", shape),))
    g = tile(3, *shape)
    got = projected(make_projector(spec, parameters), g)
    close(got, g.reshape(3, -1).double().numpy() @ reference.matrix(spec, {"w": shape}))


def test_chains_of_entries_are_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of a program are written after each chain, and the next one's are added to them."""
    monkeypatch.setattr(signs, "_CHAIN", 2)
    spec, shape = ProjectionSpec("rademacher", dim=40), (1, 170)
    g = tile(3, *shape)
    got = projected(Rademacher(spec, ParameterSpec((("w", shape),))), g)
    close(got, g.reshape(3, -1).double().numpy() @ reference.matrix(spec, {"w": shape}))


def cut(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Numbers of float32, not rounded but cut toward zero, as sums of tensor cores are."""
    near = x.astype(np.float32)
    beyond = np.abs(near.astype(np.float64)) > np.abs(x)
    return np.where(beyond, np.nextafter(near, np.float32(0)), near)


def summed_by_a_core(g: torch.Tensor, chain: int) -> np.ndarray[Any, Any]:
    """Sums of float32 numbers by halves of 16 bits, 16 at once, with a rounded sum for each chain."""
    high = g.to(torch.bfloat16).float()
    low = (g - high).to(torch.bfloat16).float()
    blocks = [one.double().numpy().reshape(len(g), -1, 16).sum(2) for one in (high, low)]
    total = np.zeros(len(g), np.float32)
    inner = total.copy()
    for at in range(blocks[0].shape[1]):
        for block in blocks:
            inner = cut(inner + block[:, at])
        if (at + 1) * 16 % chain == 0:
            total, inner = total + inner, np.zeros_like(inner)
    return total + inner


def test_a_tensor_core_sums_few_enough_entries() -> None:
    """Why dense signs were off by 1.3e-4, and that chains are short enough for 2e-5."""
    g = torch.randn(64, 16 * 6500, generator=torch.Generator().manual_seed(0))
    exact = g.double().sum(1).numpy()

    def error(chain: int) -> float:
        return float(np.linalg.norm(summed_by_a_core(g, chain) - exact) / np.linalg.norm(exact))

    assert error(g.shape[1]) > 1e-4
    assert error(signs._CHAIN * signs._ENTRIES) < 1e-5


def test_a_projector_gives_the_published_vector_by_its_kernel() -> None:
    for kind in (SJLT, Rademacher):
        spec = ProjectionSpec("sjlt" if kind is SJLT else "rademacher", dim=8)
        g = torch.arange(1.0, 16.0).reshape(1, 3, 5)
        out = torch.zeros(1, 8, device=DEVICE)
        kind(spec, ParameterSpec((("weight", (3, 5)),))).add(out, "weight", g.to(DEVICE))
        np.testing.assert_allclose(out.cpu()[0], spec.test_vector, rtol=1e-5, atol=1e-5)


def test_keys_keep_their_bits() -> None:
    for word in (0, 1, 2**31 - 1, 2**31, 2**32 - 1):
        assert np.int32(signed(word)).view(np.uint32) == word


def test_a_gpu_without_triton_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(triton, "find_spec", lambda _: None)
    triton.usable.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert [triton.usable(torch.device("cuda:0")) for _ in range(2)] == [False, False]
    triton.usable.cache_clear()
    assert [record.message for record in caplog.records] == [
        "Triton is not installed: projections on cuda:0 are plain torch, which is right but slow; "
        "pip install triton"
    ]


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="Triton has its assembler in that wheel")
def test_kernels_compile_for_a_gpu_that_is_not_there() -> None:
    """What the interpreter allows and the compiler does not; and loads that are coalesced."""
    script = Path(__file__).parent / "compile_kernels.py"
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-W", "ignore", str(script), "80", "90", "100"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    told = dict(line.split(": ") for line in done.stdout.splitlines())
    sketches = [
        "sketch",
        *(f"sketch of {one}" for one in ("one run", "gathered rows", "scaled rows", "many tiles")),
    ]
    for kind in sketches:
        assert told[f"sm_90 {kind}"].endswith("order 1, 0"), (
            "threads side by side read side by side"
        )
    for target, core in (("80", "mma.sync"), ("90", "wgmma"), ("100", "tcgen05.mma")):
        for kind in ("products", "sheared products, groups of 64"):
            assert f"product {core}," in told[f"sm_{target} {kind}"], (
                "tensor cores of the newest kind"
            )
    assert "sm_90 pairs" in told and "sm_90 pairs of listed rows" in told
    spilled = {name: int(re.search(r"(\d+) bytes spilled", line)[1]) for name, line in told.items()}  # type: ignore[index]
    # Dense signs have twice as many where sums are written, outside of the loop over entries.
    assert max(n for name, n in spilled.items() if " products" not in name) <= 512


@pytest.mark.skipif(not GPU, reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["sjlt", "rademacher"])
def test_on_a_gpu_each_run_gives_the_same_bits(kind: ProjectionKind) -> None:
    spec = ProjectionSpec(kind, dim=2048)
    projector = make_projector(spec, ParameterSpec((("w", (512, 1000)),)))
    g = tile(40, 512, 1000)
    first = projected(projector, g)
    for _ in range(5):
        np.testing.assert_array_equal(projected(projector, g), first)
