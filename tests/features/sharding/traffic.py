"""Bytes that ranks give to collective operations for a batch: the model's own, and those of features.

Run by torchrun: ``traffic.py WAY...``; prints for each way and rank the bytes of a pass of the model
by itself, and of the same pass with features.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils import _pytree as tree
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parents[2]))

from features.sharding.language_models import Llama, Texts, made
from features.sharding.ranks import PROJECTIONS, shared

from trakstore.features.factorised import FactorisedEngine
from trakstore.features.outputs import as_output
from trakstore.features.parameters import parameter_spec, select_parameters
from trakstore.features.projectors import make_projector
from trakstore.features.sharding import sharding_of

SAMPLES = 5


class Counted(TorchDispatchMode):
    """Count of the bytes that collective operations are given."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional") and "wait" not in str(func):
            given = tree.tree_leaves((args, kwargs))
            self.bytes += sum(one.nbytes for one in given if isinstance(one, Tensor))
        return func(*args, **(kwargs or {}))


def by_itself(model: Any, output: Any, batch: Any) -> None:
    """Run a pass of the model, back to what its embedding gives."""
    seen: list[Tensor] = []
    with model.embedding.register_forward_hook(lambda *given: seen.append(given[-1])):
        torch.autograd.grad(output(model, batch).output.sum(), seen)


def main(*ways: str) -> None:
    dist.init_process_group("gloo")
    for way in ways:
        model = made(Llama).eval()
        shared(model, way)
        selected, output = select_parameters(model), as_output("causal_lm")
        projector = make_projector(PROJECTIONS["sjlt"], parameter_spec(selected, ("*",)))
        sharding = sharding_of(model)
        engine = FactorisedEngine(model, output, selected, projector, sharding)
        batch = {name: torch.stack([one[name] for one in Texts(SAMPLES)]) for name in Texts(1)[0]}
        with sharding.together():
            engine.rows(batch)  # checks itself once
            with Counted() as alone:
                by_itself(model, output, batch)
            with Counted() as both:
                engine.rows(batch)
        sys.stdout.write(f"{way} {alone.bytes} {both.bytes}\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
