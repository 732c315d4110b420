"""What features cost beside plain training, and how true they are.

    python benchmarks/featurize.py [PART ...] [--small], with the parts that --help names

The floor is a forward and backward pass of the mean loss at batch 32, without an optimiser. All that is
timed alternates in one process with one number of threads, and medians are compared: ratios carry over
from machine to machine, times do not.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import stores
import torch
from models import Batch, Work, compared, rows_of
from torch import Tensor

import trakstore as ts
from trakstore.features import Job, featurize
from trakstore.features.evaluated import evaluated
from trakstore.features.factorised import FactorisedEngine
from trakstore.features.last_layers import last_layers
from trakstore.features.projectors.scaled import Scaled
from trakstore.features.task import SplitTask


def line(name: str, seconds: dict[str, float]) -> None:
    floor = seconds["floor"]
    others = [f"{one} {value / floor:.2f}" for one, value in seconds.items() if one != "floor"]
    print(
        f"{name}: floor {1e3 * floor:.3g} ms a sample;  x floor: {',  '.join(others)}", flush=True
    )


def cost(small: bool, rounds: int) -> None:
    """The table: models, projectors, batches of 32 (and 256)."""
    cases = [("resnet9", 512, 32), ("resnet9", 2048, 32), ("transformer", 1024, 32)]
    cases += [("mlp", 512, 32), ("mlp", 512, 256)]
    works = [(Work(name, small), dim, size) for name, dim, size in cases]
    works.append((narrow(small), 768, 32))
    for work, dim, size in works:
        specs = {
            "sjlt": ts.ProjectionSpec("sjlt", dim=dim),
            "sjlt s=4": ts.ProjectionSpec("sjlt", dim=dim, s=4),
            "kronecker 16": ts.ProjectionSpec("kronecker", dim=dim, side=16),
            "kronecker 32": ts.ProjectionSpec("kronecker", dim=dim),
            "rademacher": ts.ProjectionSpec("rademacher", dim=dim),
        }
        runs = {one: rows_of(work, spec, size) for one, spec in specs.items()}
        seconds = compared({"floor": (work.floor(), 32), **runs}, rounds)
        line(f"{work.name} ({work.count:,} parameters), dim {dim}, batch {size}", seconds)


def narrow(small: bool) -> Work:
    """Work of a narrow transformer, whose activations are of some megabytes."""
    if small:
        return Work("transformer", small)
    return Work("transformer", width=192, layers=3, vocabulary=64, length=48)


def dense(small: bool, rounds: int) -> None:
    """Dense signs beside what they must cost: gradients, and products at the speed of matmul.

    Gradients are formed in the same tiles and dropped. `products` is the share of the measured matmul
    peak at which all that is added to them runs; 0.8 is aimed at.
    """
    sizes = {"mlp": (32, 256, 1024), "transformer": (32, 128, 256), "resnet9": (32, 128)}
    matrix = torch.randn(2048, 2048)
    for name, dim in (("mlp", 512), ("transformer", 1024), ("resnet9", 512)):
        work = Work(name, small)
        for size in (4,) if small else sizes[name]:
            spec = ts.ProjectionSpec("rademacher", dim=64 if small else dim)
            (dropped, _), (run, _) = rows_of(work, spec, size, drop=True), rows_of(work, spec, size)
            runs = {"floor": (work.floor(), 32), "gradients": (dropped, size)}
            runs |= {"rademacher": (run, size), "matmul": (lambda: matrix @ matrix, 1)}
            seconds = compared(runs, rounds)
            products = seconds.pop("matmul") * work.count * spec.dim / 2048**3  # a sample
            line(f"{name}, dim {spec.dim}, batch {size}", seconds)
            own = seconds["rademacher"] - seconds["gradients"]
            print(f"  products at {products / own:.2f} of the matmul peak", flush=True)


def fidelity(small: bool, rounds: int) -> None:  # noqa: ARG001
    """Inner products and TRAK scores beside those of full gradients, and of a dense Gaussian.

    Last, what is lost by gradients of the last layers alone, which no projection follows.
    """
    for name in ("mlp", "transformer", "resnet9"):
        work = Work(name, small=small or name != "mlp")
        batch, dim = work.batch(40 if small else 300), 64 if small else 512
        true = work.engine(ts.ProjectionSpec("identity")).rows(batch).features.double()
        for spec in (
            ts.ProjectionSpec("gaussian", dim=dim),
            ts.ProjectionSpec("rademacher", dim=dim),
            ts.ProjectionSpec("sjlt", dim=dim),
            ts.ProjectionSpec("sjlt", dim=dim, s=4),
            ts.ProjectionSpec("kronecker", dim=dim, side=64),
            ts.ProjectionSpec("kronecker", dim=dim),
            ts.ProjectionSpec("kronecker", dim=dim, side=16),
        ):
            got = work.engine(spec).rows(batch).features.double()
            products, expected = got @ got.T, true @ true.T
            relative = ((products - expected).norm() / expected.norm()).item()
            rank = spearman(trak(got), trak(true))
            which = f"{spec.kind} s={spec.s} side={spec.side}"
            print(f"{name} ({work.count:,}), dim {dim}, {which}: relative error {relative:.3f}, "
                  f"Spearman of TRAK scores {rank:.3f}", flush=True)  # fmt: skip
        for count in (1, 2):
            layers = last_layers(work.model, count, partial(work.output, work.model, batch))
            got = (
                work.engine(ts.ProjectionSpec("identity"), layers.patterns)
                .rows(batch)
                .features.double()
            )
            print(f"{name}, last {count} layers alone ({got.shape[1]:,} parameters): Spearman of "
                  f"TRAK scores {spearman(trak(got), trak(true)):.3f}", flush=True)  # fmt: skip


def trak(features: Tensor) -> Tensor:
    """Scores of the last fifth on the others, damping of one mean squared norm."""
    cut = len(features) * 4 // 5
    train, target = features[:cut], features[cut:]
    gram = train @ train.T  # (K + λ)⁻¹Φᵀ = Φᵀ(ΦΦᵀ + λ)⁻¹
    damping = gram.diagonal().mean()
    return target @ train.T @ torch.linalg.inv(gram + damping * torch.eye(cut))


def spearman(a: Tensor, b: Tensor) -> float:
    """Mean over targets."""
    ranks = [one.argsort(1).argsort(1).double() for one in (a, b)]
    return float(np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(*ranks, strict=True)]))


def memory(small: bool, rounds: int) -> None:  # noqa: ARG001
    """Peak memory of fresh processes: the floor's, and each projector's above it."""
    peaks = {}
    for kind in ("floor", "sjlt", "kronecker", "rademacher"):
        command = [sys.executable, __file__, "peak", "--kind", kind, *(["--small"] * small)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[kind] = float(done.stdout.split()[-1])
        print(f"transformer, batch 32, {kind}: peak {peaks[kind]:.0f} MB, "
              f"{peaks[kind] - peaks['floor']:+.0f} MB of the floor", flush=True)  # fmt: skip


def peak(kind: str, small: bool) -> None:
    """One process's high-water mark in MB."""
    work = Work("transformer", small)
    if kind == "floor":
        run = work.floor()
        work.engine(ts.ProjectionSpec("sjlt", dim=64)).rows(work.batch(2))  # same code in memory
    else:
        run, _ = rows_of(work, ts.ProjectionSpec(kind, dim=1024), 32)  # type: ignore[arg-type]
    for _ in range(3):
        run()
    print(stores.peak() / 2**20)


def scaling(small: bool, rounds: int) -> None:
    """Cost against batch, dimension, parameters and sequence length, all of sjlt."""

    def case(label: str, work: Work, dim: int, size: int, floor: int = 32) -> None:
        spec = ts.ProjectionSpec("sjlt", dim=dim)
        runs = {"floor": (work.floor(floor), floor), "sjlt": rows_of(work, spec, size)}
        line(label, compared(runs, rounds))

    few = slice(0, 2 if small else None)
    for size in (1, 8, 32, 128)[few]:
        case(f"transformer, batch {size}", Work("transformer", small), 1024, size)
    for dim in (64, 256, 1024, 4096, 16384)[few]:
        case(f"transformer, dim {dim}", Work("transformer", small), dim, 32)
    for width in (256, 900, 3000, 10000)[few]:
        work = Work("mlp", width=width)
        case(f"mlp, {work.count:.1e} parameters", work, 1024, 32)
    for length in (16, 64, 256)[few]:
        case(f"transformer, length {length}", Work("transformer", small, length=length), 1024, 8, 8)


def pipeline(small: bool, rounds: int) -> None:
    """Features alone, and with preparing, reading, checks and writing to a store, beside the floor."""
    for work, dim in ((Work("resnet9", small), 512), (narrow(small), 768)):
        n = 64 if small else 768
        inputs, labels = work.batch(n)
        parts = [(inputs[i : i + 32], labels[i : i + 32]) for i in range(0, n, 32)]
        data = list(zip(inputs, labels, strict=True))

        folder = tempfile.TemporaryDirectory()
        runs: dict[str, tuple[Callable[[], Any], int]] = {"floor": (work.floor(), 32)}
        for kind in ("sjlt", "kronecker"):
            spec = ts.ProjectionSpec(kind, dim=dim)  # type: ignore[arg-type]
            engine = work.engine(spec)
            runs[f"{kind} alone"] = partial(_all_rows, engine, parts), n
            runs[f"{kind} whole"] = partial(_whole, work, data, spec, folder.name), n
        with folder:
            line(f"{work.name} ({work.count:,} parameters), {n} samples", compared(runs, rounds))


def _all_rows(engine: FactorisedEngine, parts: list[Batch]) -> None:
    for part in parts:
        engine.rows(part)


def _whole(work: Work, data: list[Any], spec: ts.ProjectionSpec, folder: str) -> None:
    # Each time another store, in a folder that goes at the end: to remove one is not part of it.
    where = Path(folder) / f"{len(list(Path(folder).iterdir()))}.zarr"
    options: Any = {"projector": spec, "batch_size": 32, "progress": False}
    featurize(work.model, data, where, output=work.output, **options)


def scaled(small: bool, rounds: int) -> None:
    """Features of scaled gradients, and of four draws of labels of each sample, beside plain ones.

    Draws share a forward pass or, `apart`, have one each. The pass that draws labels is not counted.
    """
    for name, dim in (("mlp", 512), ("transformer", 1024), ("resnet9", 512)):
        work, spec, size = Work(name, small), ts.ProjectionSpec("sjlt", dim=dim), 32
        own, plain = work.engine(spec), work.engine(spec)
        sides = own.projector.matrices.items()
        factors = {one: (torch.ones(rows), torch.ones(rest)) for one, (rows, rest) in sides}
        own.projector = Scaled(own.projector, factors)
        batch = work.batch(size)
        inputs, drawn = batch[0].repeat_interleave(4, 0), work.batch(4 * size)[1]
        runs: dict[str, tuple[Callable[[], Any], int]] = {
            "floor": (partial(plain.rows, batch), size),
            "scaled": (partial(own.rows, batch), size),
            "4 draws": (partial(plain.rows, (inputs, drawn), draws=4), 4 * size),
            "4 draws apart": (partial(plain.rows, (inputs, drawn)), 4 * size),
        }
        line(f"{name}, dim {dim}, a row", compared(runs, rounds))


def blocks(small: bool, rounds: int) -> None:
    """Whole blocks of 500 rows, with and without the comparison of some rows, or of all."""
    rows = 40 if small else 500
    for name, dim in (("mlp", 512), ("transformer", 1024), ("resnet9", 512)):
        work = Work(name, small)
        data = list(zip(*work.batch(rows), strict=True))
        spec = ts.ProjectionSpec("sjlt", dim=8 if small else dim)
        with ExitStack() as stack:
            runs: dict[str, tuple[Callable[[], Any], int]] = {}
            for check in ("none", "some", "all"):
                where = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "s.zarr"
                job = Job(
                    work.model,
                    {"train": data},
                    output=work.output,
                    projector=spec,
                    batch_size=32,
                    check="some" if check == "none" else check,  # type: ignore[arg-type]
                )
                stack.enter_context(evaluated(work.model, work.device))
                task = SplitTask.prepare(job, where, 0, "train", work.device)
                if check == "none":
                    vars(task.rows)["_right"] = lambda *_, **__: True
                runs[check] = partial(task.rows.columns, 0, rows), rows
            seconds = compared(runs, rounds)
        some, every = (seconds[check] / seconds["none"] for check in ("some", "all"))
        print(
            f"{name}, a block of {rows} rows: {1e3 * seconds['none'] * rows:.0f} ms unchecked;  "
            f"{some:.3f} x with some rows checked,  {every:.2f} x with all",
            flush=True,
        )


PARTS = {
    "cost": cost,
    "scaled": scaled,
    "blocks": blocks,
    "dense": dense,
    "fidelity": fidelity,
    "memory": memory,
    "scaling": scaling,
    "pipeline": pipeline,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("parts", nargs="*", choices=[*PARTS, "peak", []], default=[])
    parser.add_argument("--small", action="store_true", help="tiny models, to see that it runs")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--kind", help="of the process that `peak` is")
    options = parser.parse_args()
    if "peak" in options.parts:
        peak(options.kind, options.small)
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for part in options.parts or PARTS:
        PARTS[part](options.small, 2 if options.small else options.rounds)


if __name__ == "__main__":
    main()
