"""Bytes that each rank reads of checkpoints, in several formats, for its part of a sharded model.

Run by torchrun: ``loading.py FOLDER``; prints for each way, format and rank the bytes read, those of
the rank's parts, those of the whole, and whether the parts are right.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file, save_model
from torch import Tensor, nn
from torch.utils import _pytree as tree
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parents[2]))

from features.sharding.language_models import Llama, made
from features.sharding.ranks import shared

from trakstore.features.checkpoints import load_weights
from trakstore.features.sharding import local_part, whole_tensor

SIZES = {"words": 256, "width": 512, "layers": 1}


class Used(TorchDispatchMode):
    """Count of the bytes of mapped files that are used: those copied, compared, or else read."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default:
            self.bytes += args[1].nbytes
        elif not func.is_view:
            given = tree.tree_leaves((args, kwargs))
            self.bytes += sum(one.nbytes for one in given if isinstance(one, Tensor))
        return func(*args, **(kwargs or {}))


@contextmanager
def used() -> Iterator[Callable[[], int]]:
    with Used() as counted:
        yield lambda: counted.bytes


@contextmanager
def read() -> Iterator[Callable[[], int]]:
    """Count the bytes that this process reads from files that are not mapped."""
    before = _read()
    yield lambda: _read() - before


def _read() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("rchar"))


def write(model: nn.Module, folder: Path) -> None:
    save_model(model, str(folder / "one.safetensors"))
    state = {name: one.detach().clone() for name, one in model.state_dict().items()}
    files = {name: f"{at % 3}.safetensors" for at, name in enumerate(state)}
    (folder / "several").mkdir()
    for file in set(files.values()):
        own = {name: one for name, one in state.items() if files[name] == file}
        save_file(own, folder / "several" / file)
    index = json.dumps({"weight_map": files})
    (folder / "several" / "model.safetensors.index.json").write_text(index)
    torch.save(state, folder / "one.pt")


def main(folder: str) -> None:
    dist.init_process_group("gloo")
    trained = made(Llama, **SIZES)
    if dist.get_rank() == 0:
        write(trained, Path(folder))
    sharded = made(Llama, **SIZES)
    shared(sharded, "fsdp")
    dcp.save(sharded.state_dict(), checkpoint_id=f"{folder}/ranks")
    whole = dict(trained.named_parameters())
    of_fsdp = ("one.safetensors", "several", "one.pt", "ranks")
    for way, names in {"fsdp": of_fsdp, "fsdp-tp": ("several", "ranks")}.items():
        for name in names:
            model = made(Llama, **SIZES)
            shared(model, way)
            with torch.no_grad():
                for one in model.parameters():
                    local_part(one).zero_()
            with (read if name == "ranks" else used)() as count:
                load_weights(Path(folder) / name, model, name)
                counted = count()
            own = sum(local_part(one).nbytes for one in model.parameters())
            same = all(
                torch.equal(whole_tensor(one), whole[key]) for key, one in model.named_parameters()
            )
            every = sum(one.nbytes for one in whole.values())
            sys.stdout.write(f"{way} {name} {counted} {own} {every} {same}\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
