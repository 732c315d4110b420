"""Number of this worker among all, from the environment that launchers set."""

from __future__ import annotations

import os
from collections.abc import Sequence

from trakstore.errors import TrakStoreError
from trakstore.planning import share
from trakstore.quantities import as_whole

__all__ = ["local_rank", "rank_and_world"]

# torchrun's variables, then those of SLURM job arrays and of srun.
_RANK = ("RANK", "SLURM_ARRAY_TASK_ID", "SLURM_PROCID")
_WORLD = ("WORLD_SIZE", "SLURM_ARRAY_TASK_COUNT", "SLURM_NTASKS")
_LOCAL = ("LOCAL_RANK", "SLURM_LOCALID")


def rank_and_world(rank: int | None = None, world_size: int | None = None) -> tuple[int, int]:
    """Return this worker's number and the number of workers; None is looked up in the environment.

    Raises
    ------
    TrakStoreError
        When a variable is no number, or the rank is outside of the world.
    """
    rank = _from_environment(_RANK, 0) if rank is None else rank
    world_size = _from_environment(_WORLD, 1) if world_size is None else world_size
    rank, world_size = as_whole(rank, "rank"), as_whole(world_size, "world_size", 1)
    share(0, rank, world_size)  # refuses a rank outside the world
    return rank, world_size


def local_rank() -> int:
    """Return this worker's number among those of its machine."""
    return _from_environment(_LOCAL, 0)


def _from_environment(names: Sequence[str], default: int) -> int:
    """Return the first of these variables that is set, counted from 0."""
    for name in names:
        if name in os.environ:
            # The tasks of a job array may be counted from any number.
            first = "SLURM_ARRAY_TASK_MIN" if name == "SLURM_ARRAY_TASK_ID" else ""
            return _number(name) - (_number(first) if first in os.environ else 0)
    return default


def _number(name: str) -> int:
    try:
        return int(os.environ[name])
    except ValueError:
        raise TrakStoreError(
            f"the environment variable {name} must be a number, got {os.environ[name]!r}"
        ) from None
