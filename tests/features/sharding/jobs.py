"""Jobs of the tests whose ranks are killed, fail, or load their weights by parts."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from features.sharding.language_models import Gpt, Texts, made
from features.sharding.ranks import tensor_parallel

import trakstore as ts
from trakstore.features import Job
from trakstore.features.projectors import SJLT
from trakstore.features.sharding import shard_blocks

OPTIONS = {
    "output": "causal_lm",
    "projector": ts.ProjectionSpec("sjlt", dim=64),
    "batch_size": 4,
    "block_rows": 4,
}


class Unlucky(Texts):
    """Texts of which one, once blocks are committed, is one rank's end, or an error."""

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        fault, rank, at = os.environ.get("FAULT", "none -1 -1").split()
        mine = (os.environ.get("RANK"), index) == (rank, int(at))
        if mine and len(list(Path().rglob("written/c.*.0"))) >= 2:
            if fault in ("kill", "stop"):
                os.kill(os.getpid(), signal.SIGKILL if fault == "kill" else signal.SIGSTOP)
            elif fault == "memory":
                SJLT.add_outer = _without_memory  # type: ignore[method-assign]
            else:
                raise OSError("the disk is broken")
        return super().__getitem__(index)


def _without_memory(*_: object) -> None:
    raise torch.OutOfMemoryError("no memory")


def unlucky() -> Job:
    return Job(made(Gpt), {"train": Unlucky(90)}, shard=both, **OPTIONS)  # type: ignore[arg-type]


def few() -> Job:
    """Return a job of one block a split: fewer than ranks."""
    return Job(made(Gpt), {"train": Texts(3), "test": Texts(2)}, **OPTIONS)  # type: ignore[arg-type]


def stored() -> Job:
    """Return a job whose weights come from files alone."""
    checkpoints = {1: "one.safetensors", 2: "two"}
    return Job(Gpt, {"train": Texts(9)}, checkpoints=checkpoints, shard=both, **OPTIONS)  # type: ignore[arg-type]


def both(model: nn.Module, mesh: object) -> None:
    """Divide layers by pairs of ranks where there is a dimension for that, and shard by blocks."""
    if mesh.ndim > 1:  # type: ignore[attr-defined]
        tensor_parallel(model, mesh["tensor"], sequences=False)  # type: ignore[index]
    shard_blocks(model, mesh["data"])  # type: ignore[index]


def write_checkpoints() -> None:
    import warnings

    import torch.distributed.checkpoint as dcp
    from safetensors.torch import save_model

    model = made(Gpt)
    save_model(model, "one.safetensors")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        dcp.save(model.state_dict(), checkpoint_id="two", no_dist=True)
