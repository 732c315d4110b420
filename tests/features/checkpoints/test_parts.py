"""Parts of stored tensors, which ranks of a sharded model read and no more."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import Tensor

from trakstore.features.checkpoints.formats import opened

STATE = {"a": torch.arange(70.0).reshape(10, 7), "b": torch.arange(5.0), "c": torch.tensor(2.0)}


def saved_file(path: Path) -> Path:
    save_file(STATE, path / "one.safetensors")
    return path / "one.safetensors"


def saved_shards(path: Path) -> Path:
    save_file({"a": STATE["a"], "c": STATE["c"]}, path / "one.safetensors")
    torch.save({"b": STATE["b"]}, path / "two.bin")
    index = path / "model.safetensors.index.json"
    index.write_text(
        '{"weight_map": {"a": "one.safetensors", "b": "two.bin", "c": "one.safetensors"}}'
    )
    return index


def saved_by_torch(path: Path) -> Path:
    torch.save(STATE, path / "one.pt")
    return path / "one.pt"


def saved_by_ranks(path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        dcp.save(STATE, checkpoint_id=path / "folder", no_dist=True)
    return path / "folder"


@pytest.mark.parametrize("saved", [saved_file, saved_shards, saved_by_torch, saved_by_ranks])
@pytest.mark.parametrize(
    "part", [(slice(2, 5), slice(0, 7)), (slice(0, 10), slice(3, 5)), (slice(10, 10), slice(0, 7))]
)
def test_a_part_is_read_beside_what_is_read_whole(
    tmp_path: Path, saved: object, part: tuple[slice, ...]
) -> None:
    (stored,) = opened(saved(tmp_path))  # type: ignore[operator]
    parts = {"a": part, "c": ()}
    got: dict[str, Tensor] = {}
    for piece in stored.pieces(["a", "b", "c"], parts):
        got |= piece
    assert torch.equal(got["a"], STATE["a"][part])
    assert torch.equal(got["b"], STATE["b"])
    assert torch.equal(got["c"], STATE["c"])
