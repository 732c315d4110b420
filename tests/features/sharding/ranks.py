"""Features of small language models by ranks that share them, one store for each way to share.

Run by torchrun: ``ranks.py FOLDER WAY...``; a way is such as ``fsdp:Llama:sjlt``, or
``+fsdp:Llama:sjlt`` where some samples are appended. Prints the rows that each rank wrote last.
"""

from __future__ import annotations

import logging
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    PrepareModuleOutput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

sys.path.insert(0, str(Path(__file__).parents[2]))

from features.sharding.language_models import Gpt, Llama, Texts, made

import trakstore as ts
from trakstore.features import Featurized, featurize
from trakstore.features.sharding import shard_blocks

KINDS = {"Llama": Llama, "Gpt": Gpt}
PROJECTIONS = {
    "sjlt": ts.ProjectionSpec("sjlt", dim=64),
    "kronecker": ts.ProjectionSpec("kronecker", dim=64, side=8),
    "identity": ts.ProjectionSpec("identity"),
    # Several runs to a row, so that ranks which divide it take different ones.
    "short": ts.ProjectionSpec("sjlt", dim=12, s=2),
}


def written(
    model: nn.Module, store: Path, projection: str, texts: int = 11, **more: Any
) -> Featurized:
    return featurize(
        model,
        Texts(texts),
        store,
        output="causal_lm",
        projector=PROJECTIONS[projection],
        batch_size=3,
        block_rows=3,
        progress=False,
        **more,
    )


def shared(model: nn.Module, way: str) -> None:
    """Shard a model between all ranks, in one of the ways."""
    ranks = dist.get_world_size()
    if way == "fsdp":
        shard_blocks(model, init_device_mesh("cpu", (ranks,)))
    elif way == "hsdp":
        shard_blocks(
            model, init_device_mesh("cpu", (2, ranks // 2), mesh_dim_names=("copies", "data"))
        )
    elif way in ("tp", "sp", "careless-sp", "fsdp-tp", "fsdp-sp"):
        mesh = init_device_mesh("cpu", (ranks // 2, 2), mesh_dim_names=("data", "tensor"))
        careful = not way.startswith("careless")
        tensor_parallel(model, mesh["tensor"], sequences=way.endswith("sp"), norms=careful)
        if way.startswith("fsdp"):
            shard_blocks(model, mesh["data"])
    else:
        raise ValueError(way)


def tensor_parallel(model: nn.Module, mesh: Any, *, sequences: bool, norms: bool = True) -> None:
    """Divide the layers; with ``sequences``, what is between them by positions, as ``norms`` know."""
    between = Shard(1) if sequences else Replicate()
    rows, columns = RowwiseParallel(output_layouts=between), ColwiseParallel()
    into = PrepareModuleInput(input_layouts=between, desired_input_layouts=Replicate())
    plan: dict[str, Any] = dict.fromkeys(("attention", "gate", "up"), into)
    plan |= {f"attention.{name}": columns for name in ("query", "key", "value")}
    plan |= {"attention.out": rows, "down": rows}
    blocks = "layers" if isinstance(model, Llama) else "blocks"
    words = "embedding" if isinstance(model, Llama) else "words"
    whole: dict[str, Any] = {f"{blocks}.*.{name}": style for name, style in plan.items()}
    for name in ("gate", "up"):
        whole[f"{blocks}.*.{name}"] = ColwiseParallel(input_layouts=between)
    whole[words] = RowwiseParallel(input_layouts=Replicate(), output_layouts=between)
    whole["head"] = ColwiseParallel(input_layouts=between, output_layouts=Replicate())
    if sequences:
        between_layers = (f"{blocks}.*.attention_norm", f"{blocks}.*.mlp_norm", "norm")
        whole |= dict.fromkeys(between_layers if norms else (), SequenceParallel())
        if isinstance(model, Gpt):
            # Positions are the same for all samples: (time, width), divided by time.
            whole["positions"] = PrepareModuleOutput(
                output_layouts=Replicate(), desired_output_layouts=Shard(0)
            )
    parallelize_module(model, mesh, whole)
    if isinstance(model, Gpt):
        model.head.weight = model.words.weight  # tied, as before


def main(folder: str, *ways: str) -> None:
    logging.basicConfig(level=logging.INFO)
    dist.init_process_group("gloo", timeout=timedelta(seconds=50))
    for one in ways:
        way, kind, projection = one.split(":")
        place = Path(folder) / f"{way}.{kind}.{projection}.zarr"
        # Seven texts, and the others appended, where a way begins with a plus.
        for texts in (7, 11) if way.startswith("+") else (11,):
            model = made(KINDS[kind])
            shared(model, way.removeprefix("+"))
            done = written(model, place, projection, texts, append=texts > 7 and way[0] == "+")
        print(done.rows, flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(*sys.argv[1:])
