"""What a GPU does: features checked against the CPU's, then times beside the card's own ceilings.

    python benchmarks/gpu.py [check | projection | featurize | peers | tiles] [--small]

`check` compares features with the CPU's, and run with run. `projection` adds gradients that lie in the
card's memory: its time is compared with the larger of two, reading them once at the speed of a copy,
and, for dense signs, multiplying them at the speed of a bfloat16 matmul. `featurize` is reading,
gradients, projection and writing to a local store, beside forward and backward passes of the mean loss
in the same precision, by torch's fastest algorithms. `peers` needs traker (with fast_jl if it can be
imported) and dattri (with sjlt likewise): they run with torch's own settings, TF32 in convolutions
among them, trakstore with those that `featurize` makes. `tiles` are products for scores, whose train
features come from the CPU's memory. Without a GPU `--device cpu --small` shows that the script runs. It
is meant to take less than 8 minutes on a large card.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import logging
import math
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import peers
import torch
from card import Card
from models import Work
from torch import Tensor
from torch.backends import cudnn

import trakstore as ts
from trakstore.features import featurize
from trakstore.features.devices import working_on
from trakstore.features.projectors import Projector, make_projector
from trakstore.passes.rows import ArrayRows
from trakstore.scores.device_tiles import DeviceTiles
from trakstore.scores.factored import Scores
from trakstore.scores.parts import Part
from trakstore.spec import ParameterSpec, ProjectionKind, ProjectionSpec

KINDS: tuple[ProjectionKind, ...] = ("sjlt", "kronecker", "rademacher")
COLUMNS = 4096  # of the weight whose gradients are projected


def error(got: Tensor, expected: Tensor) -> float:
    return float((got.cpu() - expected.cpu()).norm() / expected.cpu().norm())


def need(fine: bool, what: str) -> None:
    if not fine:
        raise SystemExit(f"check failed: {what}")


def check(card: Card) -> None:
    """Projections and features: those of the CPU, and the same bits in every run."""
    for kind in KINDS:
        shape = (37, 300) if card.small else (700, 5001)
        projector = make_projector(ProjectionSpec(kind, dim=130), ParameterSpec((("w", shape),)))
        g = torch.randn(5 if card.small else 70, *shape)
        expected, *got = (added(projector, g.to(d)) for d in ("cpu", card.device, card.device))
        print(f"check {kind}: projection off by {error(got[0], expected):.1e}", flush=True)
        need(error(got[0], expected) < 2e-5, f"{kind} is another projection")
        need(torch.equal(*got), f"{kind} differs from run to run")
    for name in ("mlp", "resnet18", "transformer"):
        for kind in KINDS:
            check_features(card, name, kind)


def added(projector: Projector, tile: Tensor) -> Tensor:
    out = torch.zeros(len(tile), projector.dim, device=tile.device)
    projector.add(out, "w", tile)
    return out


def check_features(card: Card, name: str, kind: ProjectionKind) -> None:
    spec, size = ProjectionSpec(kind, dim=64 if card.small else 1024), 3 if card.small else 8
    small = card.small or name == "transformer"
    work = Work(name, small)
    there = Work(name, small, str(card.device))
    there.model.load_state_dict(work.model.state_dict())
    expected = work.engine(spec).rows(work.batch(size)).features
    engines = [there.engine(spec) for _ in range(2)]
    first, second = (engine.rows(there.batch(size)).features for engine in engines)
    generic = len(engines[0].generic_parameters)
    print(f"check {name}, {kind}: features off by {error(first, expected):.1e}, "
          f"{generic} parameters by the generic engine", flush=True)  # fmt: skip
    need(error(first, expected) < 1e-3, f"{name} has other features than on the CPU")
    need(torch.equal(first, second), f"features of {name} differ from run to run")


def projection(card: Card) -> None:
    """Time of adding gradients beside the larger of two ceilings."""
    copied, multiplied = card.copied(), card.multiplied()
    print(f"copy {copied / 1e12:.3g} TB/s, bfloat16 matmul {multiplied / 1e12:.3g} TFLOP/s")
    counts = (1e4,) if card.small else (1e6, 1e7, 1e8)
    dims = (64,) if card.small else (512, 2048, 4096, 16384)
    for kind in ("sjlt", "rademacher"):
        for count in counts:
            for dim in dims:
                for batch in (4,) if card.small else (8, 64, 256):
                    flops = 2 * batch * count * dim if kind == "rademacher" else 0
                    if flops > 3e14:
                        continue  # seconds, and nothing new
                    ceiling = max(4 * batch * count / copied, flops / multiplied)
                    taken = project(card, kind, int(count), dim, batch)
                    print(f"{kind}, {count:.0e} parameters, dim {dim}, batch {batch}: {1e3 * taken:.3g}"
                          f" ms, {ceiling / taken:.2f} of the ceiling", flush=True)  # fmt: skip


def project(card: Card, kind: Any, count: int, dim: int, batch: int) -> float:
    """Seconds for gradients of so many parameters; one tile stands for all where memory is short."""
    columns = min(count, COLUMNS)
    most = max(1, (1 << 32) // (batch * columns))
    times = math.ceil(count / columns / most)
    rows = count // columns // times
    shapes = ParameterSpec((("w", (rows * times, columns)),))
    projector = make_projector(ProjectionSpec(kind, dim=dim), shapes)
    tile = torch.randn(batch, rows, columns, device=card.device)
    out = torch.zeros(batch, dim, device=card.device)

    def run() -> None:
        for i in range(times):
            projector.add(out, "w", tile, i * rows)

    return card.seconds(run, rounds=3, warm=1)


def pipeline(card: Card) -> None:
    """All of `featurize`, beside forward and backward passes alone."""
    sizes = {"resnet18": (256, {}), "transformer": (16, {"length": 512})}
    gpt2 = {"width": 768, "layers": 12, "vocabulary": 50257, "heads": 12}
    for name, (batch, more) in sizes.items():
        size = 4 if card.small else batch
        shape = {} if card.small else {**more, **(gpt2 if name == "transformer" else {})}
        work = Work(name, card.small, str(card.device), **shape)
        print(f"featurize {name} ({work.count:,} parameters), batch {size}", flush=True)
        with cudnn.flags(enabled=True, allow_tf32=True):
            default = card.seconds(work.floor(size)) / size
            print(f"  forward and backward as torch has it, TF32 in convolutions: "
                  f"{1e3 * default:.3g} ms a sample")  # fmt: skip
        for autocast in (None, "bfloat16"):
            with cudnn.flags(enabled=True, allow_tf32=False):
                floor = card.seconds(cast(card, work.floor(size), autocast)) / size
            print(f"  forward and backward, {autocast or 'float32'}: {1e3 * floor:.3g} ms a sample")
            for kind in KINDS if autocast is None else KINDS[:2]:
                taken = featurized(card, work, kind, size, autocast)
                print(f"  {kind}, {autocast or 'float32'}: {taken / floor:.2f} x that", flush=True)


def cast(card: Card, run: Callable[[], None], autocast: str | None) -> Callable[[], None]:
    def under() -> None:
        with torch.autocast(card.device.type, torch.bfloat16, enabled=autocast is not None):
            run()

    return under


def featurized(card: Card, work: Work, kind: Any, size: int, autocast: Any) -> float:
    """Seconds a sample, without the checks before the first block."""
    inputs, labels = (one.cpu() for one in work.batch((2 if card.small else 16) * size))
    spec = ProjectionSpec(kind, dim=64 if card.small else 2048)
    options: dict[str, Any] = {"projector": spec, "batch_size": size, "autocast": autocast}
    options |= {"device": str(card.device), "output": work.output, "progress": False}
    data = list(zip(inputs, labels, strict=True))
    model = copy.deepcopy(work.model)
    with tempfile.TemporaryDirectory() as folder:
        done = [featurize(model, data, Path(folder) / f"{i}.zarr", **options) for i in range(2)]
    return done[1].seconds / done[1].rows


def beside(card: Card) -> None:
    """Other libraries on the same model, dimension and batch; traker as its users call it."""
    dim, size = (64, 4) if card.small else (2048, 64)
    work = Work("resnet18", card.small, str(card.device))
    print(f"peers on resnet18 ({work.count:,} parameters), dim {dim}, batch {size}", flush=True)
    with working_on(card.device):
        for candidate in peers.own(work, dim, size):
            tell_rate(card, candidate)
    fast = find_spec("fast_jl") is not None
    print(f"  fast_jl {'is' if fast else 'is not'} installed")
    makers: list[Callable[[], peers.Candidate]] = [
        lambda: peers.traker(work, dim, size, "rademacher", 100, compiled=fast),
        lambda: peers.dattri(work, dim, size, "rademacher"),
        lambda: peers.dattri(work, dim, size, "sjlt"),
    ]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for make in makers:
            if candidate := peers.tried(make):
                tell_rate(card, candidate)


def tell_rate(card: Card, candidate: peers.Candidate) -> None:
    label, run, samples = candidate
    taken = run.taken if isinstance(run, peers.Known) else card.seconds(run, 3, 1)
    print(f"  {label}: {samples / taken:,.0f} samples/s", flush=True)


def tiles(card: Card) -> None:
    """Products for scores, beside the same products of what is on the card already."""
    targets, trains, dim = (8, 64, 16) if card.small else (4096, 65536, 4096)
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((n, dim), np.float32) for n in (targets, trains))
    ids = ArrayRows(np.arange(targets)), ArrayRows(np.arange(trains))
    scores = Scores("plain", (Part(0, ArrayRows(left), ArrayRows(right)),), *ids)
    window = scores.window(0, targets)
    step, maker = trains // 8, DeviceTiles(window, str(card.device))
    a, b = (torch.from_numpy(one).to(card.device) for one in (left, right[:step]))
    got = maker.host_tile(0, step)
    need(error(torch.from_numpy(got), a.cpu() @ b.cpu().T) < 1e-5, "tiles differ from the CPU's")
    alone = card.seconds(lambda: a @ b.T)
    whole = card.seconds(lambda: maker.host_tile(0, step))
    moved = 4 * (step * dim + targets * step) / (whole - alone) if whole > alone else math.inf
    print(f"tile {targets} x {step}, dim {dim}: {1e3 * whole:.3g} ms, product alone "
          f"{1e3 * alone:.3g} ms ({2 * targets * step * dim / alone / 1e12:.3g} TFLOP/s), the rest is "
          f"{moved / 1e9:.3g} GB/s to and from the CPU", flush=True)  # fmt: skip


OWN_SETTINGS = ("featurize", "peers")  # parts that choose torch's settings themselves
PARTS = {
    "check": check,
    "projection": projection,
    "featurize": pipeline,
    "peers": beside,
    "tiles": tiles,
}


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--small", action="store_true", help="tiny models, to see that it runs")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    warnings.filterwarnings("ignore", module="trak")
    if options.small:
        torch.set_num_threads(1)  # which tiny models are fastest with
    card, failed = Card(torch.device(options.device), options.small), []
    print(f"{name_of(card.device)}, torch {torch.__version__}, trakstore {ts.__version__}")
    for part in options.parts or PARTS:
        began = time.perf_counter()
        try:
            with contextlib.nullcontext() if part in OWN_SETTINGS else working_on(card.device):
                PARTS[part](card)
        except Exception:  # noqa: BLE001  (a machine is lent for minutes: the other parts still count)
            traceback.print_exc()
            failed.append(part)
        print(f"{part} took {time.perf_counter() - began:.0f} s", flush=True)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
