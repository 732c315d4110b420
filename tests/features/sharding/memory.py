"""Peak memory of featurizing a model of 400 MB, by this rank, beyond what the imports take.

Run alone, or by torchrun: ``memory.py FOLDER``; prints the bytes of each rank.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from features.sharding.language_models import Llama, Texts, made

import trakstore as ts
from trakstore.features import Job, featurize, featurize_job
from trakstore.features.sharding import free_at_once, shard_model, started_ranks

WIDTH, LAYERS, WORDS = 1024, 10, 256


def build() -> Llama:
    return Llama(WORDS, WIDTH, LAYERS, heads=8)


def status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def featurized(folder: Path) -> None:
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    job = Job(
        build,
        {"train": Texts(4, WORDS, 8)},
        output="causal_lm",
        projector=ts.ProjectionSpec("sjlt", dim=512),
        checkpoints={0: folder / "weights.safetensors"},
        batch_size=1,
        block_rows=1,
    )
    if ranks == 1:
        featurize_job(job, folder / "1.zarr", progress=False, restore=False)
        return
    with started_ranks(torch.device("cpu")) as mesh:
        shard_model(job.model, mesh)
        featurize_job(job, folder / f"{ranks}.zarr", progress=False, restore=False)


def main(folder: str) -> None:
    # Once on a small model, so that what is loaded and compiled at first use counts as imports.
    small = ts.ProjectionSpec("sjlt", dim=512)
    alone = {name: os.environ.pop(name) for name in ("RANK", "WORLD_SIZE") if name in os.environ}
    options = {"output": "causal_lm", "projector": small, "progress": False}
    featurize(made(Llama), Texts(3), Path(folder) / f"warm{os.getpid()}.zarr", **options)  # type: ignore[arg-type]
    os.environ.update(alone)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    free_at_once()  # as ranks do
    before = status("VmRSS")
    featurized(Path(folder))
    sys.stdout.write(f"{status('VmHWM') - before}\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
