"""What a GPU does: features checked against the CPU's, then times beside the card's own ceilings.

    python benchmarks/gpu.py [check | llm | scores | projection | pipeline | peers] [--small]
    bash benchmarks/gpu.sh WHEELS        # all of it in one call, on a bare machine with torch

`check` compares features with the CPU's, and run with run. `llm` are features of a Llama-like model by
the engine alone, beside a plain pass in the same dtype, and bergson where it can be imported. `scores`
are products, lists and grams whose train rows come from the CPU's memory or a disk, beside the larger
of the product and the copy of a tile. `projection` adds gradients that lie in the card's memory: its
time is compared with the larger of two, reading them once at the speed of a copy, and, for dense signs,
multiplying them at the speed of a bfloat16 matmul. `pipeline` is all of featurize: reading, gradients,
projection and writing to a local store, beside forward and backward passes of the mean loss in the same
precision, by torch's fastest algorithms. `peers` needs traker (with fast_jl if it can be imported) and
dattri (with sjlt likewise): they run with torch's own settings, TF32 in convolutions among them,
trakstore with those that `featurize` makes. Without a GPU `--device cpu --small` shows that the script
runs. It ends within seven minutes on a large card: what does not fit is passed over and said.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import itertools
import json
import logging
import math
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import peers
import torch
from card import Card
from gpu_llm import llm
from gpu_scores import scores
from models import Work
from torch import Tensor
from torch.backends import cudnn

import trakstore as ts
from trakstore.features import Featurized, featurize
from trakstore.features.devices import working_on
from trakstore.features.projectors import Projector, make_projector
from trakstore.spec import ParameterSpec, Precision, ProjectionKind, ProjectionSpec

KINDS: tuple[ProjectionKind, ...] = ("sjlt", "kronecker", "rademacher")
# How many of these kinds are run in each precision.
PRECISIONS: dict[Precision, int] = {"float32": 3, "tf32": 2, "bfloat16": 2}
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
        off = error(got[0], expected)
        card.tell(f"{kind}: projection off by {off:.1e}", kind=kind, off=off)
        need(off < 2e-5, f"{kind} is another projection")
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
    off = error(first, expected)
    text = f"{name}, {kind}: features off by {off:.1e}"
    card.tell(f"{text}, {generic} parameters by the generic engine", model=name, kind=kind, off=off)
    need(off < 1e-3, f"{name} has other features than on the CPU")
    need(torch.equal(first, second), f"features of {name} differ from run to run")


def projection(card: Card) -> None:
    """Time of adding gradients beside the larger of two ceilings."""
    card.ceilings()
    counts = (1e4,) if card.small else (1e6, 1e7, 1e8)
    dims = (64,) if card.small else (512, 2048, 4096, 16384)
    batches = (4,) if card.small else (8, 64, 256)
    cases = itertools.product(("sjlt", "rademacher"), counts, dims, batches)
    for kind, count, dim, batch in card.in_time(cases):
        flops = 2 * batch * count * dim if kind == "rademacher" else 0
        if flops > 3e14:
            continue  # seconds, and nothing new
        ceiling = max(4 * batch * count / card.copied, flops / card.multiplied)
        taken = project(card, kind, int(count), dim, batch)
        card.tell(
            f"{kind}, {count:.0e} parameters, dim {dim}, batch {batch}: {1e3 * taken:.3g} ms, "
            f"{ceiling / taken:.2f} of the ceiling",
            kind=kind,
            parameters=count,
            dim=dim,
            batch=batch,
            seconds=taken,
            share=ceiling / taken,
        )


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
    card.ceilings()
    sizes = {"resnet18": (256, {}), "transformer": (16, {"length": 512})}
    gpt2 = {"width": 768, "layers": 12, "vocabulary": 50257, "heads": 12}
    for name, (batch, more) in card.in_time(sizes.items()):
        size = 4 if card.small else batch
        shape = {} if card.small else {**more, **(gpt2 if name == "transformer" else {})}
        work = Work(name, card.small, str(card.device), **shape)
        default = card.seconds(work.floor(size)) / size
        card.tell(
            f"{name} ({work.count:,} parameters), batch {size}: forward and backward as torch has it, "
            f"TF32 in convolutions alone: {1e3 * default:.3g} ms a sample",
            model=name,
            seconds=default,
        )
        floors: dict[Precision, float] = {}
        cases = [(one, kind) for one, few in PRECISIONS.items() for kind in KINDS[:few]]
        for precision, kind in card.in_time(cases):
            if precision not in floors:
                floors[precision] = plain_seconds(card, work, size, precision)
            whole(card, work, kind, size, precision, floors[precision])


def plain_seconds(card: Card, work: Work, size: int, precision: Precision) -> float:
    with in_precision(card, precision):
        floor = card.seconds(work.floor(size)) / size
    text = f"forward and backward, {precision}: {1e3 * floor:.3g} ms a sample"
    card.tell(text, model=work.name, precision=precision, seconds=floor)
    return floor


@contextlib.contextmanager
def in_precision(card: Card, precision: Precision) -> Iterator[None]:
    """Compute as torch does in a precision, by its fastest algorithms."""
    before, mixed = torch.get_float32_matmul_precision(), precision == "bfloat16"
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    convolutions = cudnn.flags(enabled=True, allow_tf32=precision == "tf32")
    try:
        with convolutions, torch.autocast(card.device.type, torch.bfloat16, enabled=mixed):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def whole(card: Card, work: Work, kind: Any, size: int, precision: Precision, floor: float) -> None:
    done = featurized(card, work, kind, size, precision)
    taken, parts = done.seconds / done.rows, dataclasses.asdict(done.prepared)
    longest = max(parts, key=lambda one: parts[one])
    card.tell(
        f"{kind}, {precision}: {taken / floor:.2f} x that, {1 / taken:,.0f} samples/s; "
        f"{done.prepared.total:.2g} s of preparing, {parts[longest]:.2g} of it {longest}",
        model=work.name,
        kind=kind,
        precision=precision,
        seconds=taken,
        ratio=taken / floor,
        preparing=parts,
    )


def featurized(card: Card, work: Work, kind: Any, size: int, precision: Precision) -> Featurized:
    """The last of the runs, whose kernels are compiled: of two, or one where only to run matters."""
    inputs, labels = (one.cpu() for one in work.batch((2 if card.small else 16) * size))
    spec = ProjectionSpec(kind, dim=64 if card.small else 2048)
    options: dict[str, Any] = {"projector": spec, "batch_size": size, "precision": precision}
    options |= {"device": str(card.device), "output": work.output, "progress": False}
    data = list(zip(inputs, labels, strict=True))
    model, times = copy.deepcopy(work.model), 1 if card.small else 2
    with tempfile.TemporaryDirectory() as folder:
        done = [featurize(model, data, Path(folder) / f"{i}.zarr", **options) for i in range(times)]
    return done[-1]


def beside(card: Card) -> None:
    """Other libraries on the same model, dimension and batch; traker as its users call it."""
    dim, size = (64, 4) if card.small else (2048, 64)
    work = Work("resnet18", card.small, str(card.device))
    card.ceilings()
    floor = card.seconds(work.floor(size), 3, 1)
    card.tell(
        f"resnet18 ({work.count:,} parameters), dim {dim}, batch {size}: forward and backward alone "
        f"{size / floor:,.0f} samples/s",
        samples=size / floor,
    )
    with working_on(card.device):
        for candidate in card.in_time(peers.own(work, dim, size)):
            tell_rate(card, candidate)
    fast = find_spec("fast_jl") is not None
    card.tell(f"fast_jl {'is' if fast else 'is not'} installed")
    makers: list[Callable[[], peers.Candidate]] = [
        lambda: peers.traker(work, dim, size, "rademacher", 100, compiled=fast),
        lambda: peers.dattri(work, dim, size, "rademacher"),
        lambda: peers.dattri(work, dim, size, "sjlt"),
    ]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for make in card.in_time(makers):
            if candidate := peers.tried(make):
                tell_rate(card, candidate)


def tell_rate(card: Card, candidate: peers.Candidate) -> None:
    label, run, samples = candidate
    taken = run.taken if isinstance(run, peers.Known) else card.seconds(run, 3, 1)
    card.tell(f"{label}: {samples / taken:,.0f} samples/s", who=label, samples=samples / taken)


OWN_SETTINGS = (
    "llm",
    "pipeline",
    "peers",
    "scores",
)  # parts that choose torch's settings themselves
PARTS = {
    "check": check,
    "llm": llm,
    "scores": scores,
    "projection": projection,
    "pipeline": pipeline,
    "peers": beside,
}
SECONDS = 400.0


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--small", action="store_true", help="tiny models, to see that it runs")
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time for all parts")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    warnings.filterwarnings("ignore", module="trak")
    if options.small:
        torch.set_num_threads(1)  # which tiny models are fastest with
    until = time.monotonic() + options.seconds
    card, failed = Card(torch.device(options.device), options.small, until), []
    who = {"card": name_of(card.device), "torch": torch.__version__, "trakstore": ts.__version__}
    print(f"{who['card']}, torch {who['torch']}, trakstore {who['trakstore']}")
    for part in card.in_time(options.parts or PARTS):
        print(part, flush=True)
        card.part = part
        began = time.perf_counter()
        try:
            own = part in OWN_SETTINGS
            with contextlib.nullcontext() if own else working_on(card.device):
                PARTS[part](card)
        except (Exception, SystemExit):  # noqa: BLE001  (a machine is lent for minutes: go on)
            traceback.print_exc()
            failed.append(part)
        print(f"{part} took {time.perf_counter() - began:.0f} s", flush=True)
        if options.json:
            options.json.write_text(json.dumps({**who, "figures": card.figures, "failed": failed}))
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
