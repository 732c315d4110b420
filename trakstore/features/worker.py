"""Place of a process among those that write the same store."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trakstore.features.devices import device_of, worker_device
from trakstore.features.job import Job
from trakstore.features.ranks import rank_and_world
from trakstore.features.sharding import WHOLE, Sharding, sharding_of, with_memory

__all__ = ["Worker"]


@dataclass(frozen=True)
class Worker:
    """One of ``world`` processes, or groups of ranks of one model, that share a split's blocks."""

    rank: int
    world: int
    device: torch.device
    sharding: Sharding = WHOLE

    @classmethod
    def of(cls, job: Job, rank: int | None, world_size: int | None, device: str | None) -> Worker:
        if job.checkpoints:
            with_memory(job.model, worker_device(device))
        sharding = sharding_of(job.model)
        if sharding.whole:
            return cls(*rank_and_world(rank, world_size), device_of(job.model, device))
        # The launcher counts ranks. Groups of them hold one model, and these groups share the blocks.
        group = 0 if rank is None else rank
        groups = 1 if world_size is None else world_size
        number, numbers = group * sharding.replicas + sharding.replica, groups * sharding.replicas
        return cls(*rank_and_world(number, numbers), worker_device(device), sharding)

    @property
    def leads(self) -> bool:
        """Tell whether this is the first worker of all, which shows the progress."""
        return self.rank == 0 and self.sharding.leads
