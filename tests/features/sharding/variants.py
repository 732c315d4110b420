"""Features in every way that they may be asked for, by ranks that share a model.

Run by torchrun: ``variants.py FOLDER WAY...``; each way, of those of ``ranks.py``, writes a store for
each variant.
"""

from __future__ import annotations

import logging
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from features.sharding.language_models import Llama, Texts, made
from features.sharding.ranks import shared

import trakstore as ts
from trakstore.features import Job, featurize_job

ROWS, BAD = 7, 4

VARIANTS: dict[str, dict[str, Any]] = {
    "adam": {"scale": "optimizer.pt"},
    "samples": {"scale": "samples"},
    "tokens": {"tokens": 2},
    "sampled": {"sampled": 2},
    "int8": {"dtype": "int8"},
    "bfloat16": {"precision": "bfloat16"},
    "skipped": {"skip_bad_rows": True},
    "limited": {"memory_limit": "20MB", "check": "all"},
    "padded": {"parameters": ["layers.*.up.*", "embedding.*"]},
}


class Uneven(Texts):
    """Texts of several lengths."""

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        sample = super().__getitem__(index)
        return {name: one[: 4 + index] for name, one in sample.items()}


class Bad(Texts):
    """Texts of which one has no answer: its mean is that of nothing."""

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        sample = super().__getitem__(index)
        answers = sample["labels"] if index != BAD else torch.full_like(sample["labels"], -100)
        return {**sample, "labels": answers}


def padded(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad([one["input_ids"] for one in samples], batch_first=True)
    return {
        "input_ids": ids,
        "labels": pad([one["labels"] for one in samples], batch_first=True, padding_value=-100),
    }


def write_optimizer(folder: Path) -> None:
    """Write the state of an optimizer that has made a step of a whole model."""
    model = made(Llama)
    optimizer = torch.optim.Adam(model.parameters())
    model(Texts(8).ids).square().mean().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")


def job(model: nn.Module, name: str, folder: Path) -> Job:
    options: dict[str, Any] = {"projector": ts.ProjectionSpec("sjlt", dim=64), **VARIANTS[name]}
    texts: Any = {"skipped": Bad, "padded": Uneven}.get(name, Texts)(ROWS)
    if name == "adam":
        options["scale"] = folder / "optimizer.pt"
    if name == "padded":
        options["collate"] = padded
    datasets = {"train": texts}
    if name == "tokens":
        datasets["test"] = Texts(3, seed=1)
    return Job(model, datasets, output="causal_lm", batch_size=3, block_rows=3, **options)


def write(model: nn.Module, name: str, folder: Path, way: str) -> None:
    featurize_job(job(model, name, folder), folder / f"{way}.{name}.zarr", progress=False)


def main(folder: str, *ways: str) -> None:
    logging.basicConfig(level=logging.WARNING)
    dist.init_process_group("gloo", timeout=timedelta(seconds=50))
    for way in ways:
        for name in VARIANTS:
            model = made(Llama)
            shared(model, way)
            write(model, name, Path(folder), way)
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
