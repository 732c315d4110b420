"""Features beside other libraries: samples a second of the same model, data and dimension, float32.

    python benchmarks/peers.py [mlp | transformer | resnet9] [--small] [--rounds 3]

In an environment that has trakstore:

    pip install --no-deps traker==0.3.2 dattri==0.3.0 bergson==2.5.1 captum
    pip install --no-deps --ignore-requires-python logix-ai==0.1.1
    pip install scipy einops pyyaml pydantic tqdm psutil
    pip install --no-deps datasets transformers accelerate peft simple-parsing natsort petname
    pip install --no-deps jaxtyping ml_dtypes pyarrow torchopt

What cannot be imported, or fails on a model, is passed over with a line that says why. traker is run as
its users do (`TRAKer.featurize`), at the batch of the others and at the best of a few batch and block
sizes; dattri by its `random_project` on gradients by `vmap`; LogIX with LoRA of rank 16 and bergson
with projections of 16 x 16 a module see weights of Linear and Conv layers alone (without attention's
output projection, whose module torch does not call), 256 numbers each: they stand beside `kronecker`.
traker and dattri draw their matrix again for each batch, so larger batches are cheaper for them. What
takes more than 15 seconds is run once, and not again in each round.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.metadata
import itertools
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from models import Work, rows_of
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import trakstore as ts

DIMS = {"mlp": 512, "transformer": 1024, "resnet9": 512}
PEERS = ("traker", "dattri", "bergson", "logix-ai")
LONG = 15.0  # seconds
Candidate = tuple[str, Callable[[], Any], int]


def losses(work: Work, batch: Any) -> Callable[[nn.Module], Tensor]:
    """The sum of the samples' losses, by a model."""
    return lambda model: work.output(model, batch).loss.sum()


def traker(
    work: Work, dim: int, size: int, kind: str, block: int, compiled: bool = False
) -> Candidate:
    from trak import TRAKer
    from trak.projectors import BasicProjector, CudaProjector, ProjectionType

    batch, model = work.batch(size), copy.deepcopy(work.model)
    shape: Any = work.count, dim, 0, ProjectionType(kind), work.device
    if compiled:
        projector, name = CudaProjector(*shape, max_batch_size=32), "with fast_jl "
    else:
        projector, name = BasicProjector(*shape, block_size=block, dtype=torch.float32), ""
    run = TRAKer(
        model, traker_output(work), size, save_dir=tempfile.mkdtemp(dir="."), projector=projector,
        proj_dim=dim, device=work.device, use_half_precision=False, logging_level=40,
    )  # fmt: skip
    run.load_checkpoint(model.state_dict(), model_id=0)

    def step() -> None:
        run.saver.current_store["is_featurized"][:] = 0  # or it would pass over the batch
        run.featurize(batch, inds=np.arange(size))

    shown = "" if compiled else f" block {block}"
    return f"traker {name}{kind} batch {size}{shown}", step, size


def traker_output(work: Work) -> Any:
    """The output of trakstore, as traker takes it."""
    from trak.modelout_functions import AbstractModelOutput

    class Output(AbstractModelOutput):
        """Of one sample under vmap."""

        def __init__(self) -> None:
            pass

        @staticmethod
        def get_output(model: Any, weights: Any, buffers: Any, *sample: Tensor) -> Tensor:
            one = tuple(tensor.unsqueeze(0) for tensor in sample)
            call = lambda *inputs: functional_call(model, (weights, buffers), inputs)  # noqa: E731
            return work.output(call, one).output[0]

        def get_out_to_loss_grad(
            self, model: Any, weights: Any, buffers: Any, batch: Any
        ) -> Tensor:
            call = lambda *inputs: functional_call(model, (weights, buffers), inputs)  # noqa: E731
            return work.output(call, batch).out_to_loss.reshape(-1, 1)

    return Output()


def dattri(work: Work, dim: int, size: int, kind: str) -> Candidate:
    from dattri.func.projection import random_project

    batch = work.batch(size)
    parameters = {name: p.detach() for name, p in work.model.named_parameters()}

    def output(parameters: Any, *sample: Tensor) -> Tensor:
        one = tuple(tensor.unsqueeze(0) for tensor in sample)
        call = lambda *inputs: functional_call(work.model, parameters, inputs)  # noqa: E731
        return work.output(call, one).output[0]

    def run() -> None:
        gradients = vmap(grad(output), in_dims=(None, *[0] * len(batch)))(parameters, *batch)
        random_project(gradients, size, dim, 32, proj_type=kind, device=work.device)(gradients)

    return f"dattri {kind} batch {size}", run, size


def logix(work: Work, size: int) -> Candidate:
    from logix import LogIX
    from logix.config import LoRAConfig

    batch, model = work.batch(size), copy.deepcopy(work.model)
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and not name.endswith("out_proj")
    ]
    run = LogIX("benchmark")
    run.watch(model, name_filter=names)
    run.add_lora(lora_config=LoRAConfig(init="random", rank=16))
    run.setup({"grad": ["log"]})
    loss = losses(work, batch)

    def step() -> None:
        with run(data_id=list(range(size))):
            loss(model).backward()
        run.get_log()
        model.zero_grad()

    return f"logix rank 16 batch {size}", step, size


def bergson(work: Work, size: int) -> Candidate:
    from bergson.collector.in_memory_collector import InMemoryCollector
    from bergson.config import IndexConfig
    from bergson.gradients import GradientProcessor
    from datasets import Dataset

    if work.name != "transformer":
        raise NotImplementedError("it needs activations of three dimensions")
    batch, model = work.batch(size), copy.deepcopy(work.model)
    model.device = torch.device("cpu")  # type: ignore[assignment]
    names = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.endswith("out_proj")
    }
    collector = InMemoryCollector(
        model=model,
        data=Dataset.from_dict({"i": list(range(size))}),
        cfg=IndexConfig(run_path=tempfile.mkdtemp(dir=".")),
        target_modules=names,
        processor=GradientProcessor(projection_dim=16),
    )
    loss = losses(work, batch)

    def step() -> None:
        with collector:
            loss(model).backward()
        collector.mod_grads.clear()
        model.zero_grad()

    return f"bergson 16 x 16 a module batch {size}", step, size


def own(work: Work, dim: int, size: int) -> Iterator[Candidate]:
    for kind, side in (("sjlt", None), ("kronecker", 16), ("rademacher", None)):
        spec = ts.ProjectionSpec(kind, dim=dim, side=side)  # type: ignore[arg-type]
        run, _ = rows_of(work, spec, size)
        run()  # with the check of the first samples, which is once a call of featurize
        yield f"trakstore {kind} batch {size}", run, size


def seconds(run: Callable[[], Any]) -> float:
    if isinstance(run, Known):
        return run.taken
    began = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def tried(make: Callable[[], Candidate]) -> Candidate | None:
    """A candidate that ran once; None, with a line, where it cannot."""
    try:
        label, run, size = make()
        taken = seconds(run)
    except Exception as error:  # noqa: BLE001  (of other libraries, which may raise anything)
        reason = (str(error).splitlines() or [""])[0][:150]
        print(f"  passed over: {type(error).__name__}: {reason}", flush=True)
        return None
    return label, (Known(taken) if taken > LONG else run), size


@dataclass(frozen=True)
class Known:
    """A run that is too long to be repeated, and what it took."""

    taken: float

    def __call__(self) -> None:
        raise AssertionError("it is not run again")


def best_traker(work: Work, dim: int, kind: str, small: bool) -> Candidate | None:
    """The fastest of a few batch and block sizes, of those that 24 GB have room for."""
    sizes = (8,) if small else (256, 1024) if work.name == "mlp" else (64, 128)
    blocks = [block for block in sorted({100, 200, dim}) if 4 * block * work.count < 4e9]
    found = []
    for size, block in itertools.product(sizes, blocks):
        candidate = tried(lambda size=size, block=block: traker(work, dim, size, kind, block))  # type: ignore[misc]
        if candidate:
            took, run = seconds(candidate[1]) / size, candidate[1]
            found.append((took, size, block, run if isinstance(run, Known) else None))
            del candidate, run  # which hold a matrix
    if not found:
        return None
    _, size, block, run = min(found, key=lambda one: one[0])
    if run is not None:
        return f"traker {kind} batch {size} block {block}", run, size
    return traker(work, dim, size, kind, block)


def candidates(work: Work, dim: int, size: int, small: bool) -> Iterator[Candidate | None]:
    yield from own(work, dim, size)
    if work.name == "mlp":
        for more in (8, 32):
            yield from own(work, dim, more * size)
    for kind in ("normal", "rademacher"):
        yield tried(lambda kind=kind: traker(work, dim, size, kind, 100))  # type: ignore[misc]
    yield best_traker(work, dim, "normal", small)
    for kind in ("normal", "rademacher", "random_mask"):
        yield tried(lambda kind=kind: dattri(work, dim, size, kind))  # type: ignore[misc]
    yield tried(lambda: logix(work, size))
    yield tried(lambda: bergson(work, size))


def compare(name: str, small: bool, rounds: int) -> None:
    """All candidates in turn, round after round; medians."""
    work, dim, size = Work(name, small), 64 if small else DIMS[name], 4 if small else 32
    print(f"{name} ({work.count:,} parameters), dim {dim}", flush=True)
    runs: list[Candidate] = [("floor", work.floor(size), size)]
    runs += [one for one in candidates(work, dim, size, small) if one]
    taken: dict[str, list[float]] = {label: [] for label, _, _ in runs}
    for _ in range(rounds):
        for label, run, samples in runs:
            taken[label].append(seconds(run) / samples)
    medians = {label: statistics.median(values) for label, values in taken.items()}
    reference = medians[f"trakstore sjlt batch {size}"]
    for label, one in medians.items():
        print(f"  {label}: {1 / one:,.0f} samples/s, {one / medians['floor']:.2f} x floor, "
              f"{one / reference:.2f} x the time of sjlt", flush=True)  # fmt: skip


def version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} is not installed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("models", nargs="*", choices=[*DIMS, []], default=[])
    parser.add_argument("--small", action="store_true", help="tiny models, to see that it runs")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; "
          f"{', '.join(map(version, PEERS))}")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # several write there
        for name in options.models or DIMS:
            compare(name, options.small, options.rounds)


if __name__ == "__main__":
    main()
