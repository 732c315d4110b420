"""Memory that an operation may take: its caller's limit, or a share of the available memory.

Control groups are read here because libraries do less: psutil knows only the machine's memory, and
``distributed.system`` only the limit of the outermost group. A job is usually some groups further down,
and shares limits with others, so that every group above it counts: its limit less its use.
"""

from __future__ import annotations

import ctypes
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from trakstore.passes.dask_cluster import (
    active_client,
    cluster_errors,
    worker_memory,
    workers_of,
)
from trakstore.passes.gpu import free_bytes
from trakstore.passes.scheduler import task_slots
from trakstore.paths import exists
from trakstore.planning import byte_count, fit_slots, human_bytes, with_slack
from trakstore.storage.backends.ahead import AHEAD_BYTES

# One part in so many of the memory. The rest is for the page cache, the caller's arrays and other
# processes.
SHARE = 4
# The other half is for memory of torch and its libraries beside tensors, and for other programs.
DEVICE_SHARE = 2
# Tasks that send tiles to one GPU at once: with more, its copies are the limit.
DEVICE_TASKS = 8
DEVICE_ADVICE = "work on the CPU (device='cpu'), or free its memory"
# Bytes that count as available if the system does not tell.
UNKNOWN = 4 * 2**30
# The parameter M_MMAP_THRESHOLD of mallopt(3).
_MMAP_THRESHOLD = -3
_PROC, _CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


def memory_budget(memory_limit: int | str | None) -> int:
    """Return the memory limit of each process in bytes.

    By default this is a quarter of the least of three: the system's available memory, the memory that
    control groups leave to this process, and the limit of a Dask worker. It is never more than the Dask
    workers have, with a warning if more was asked for.

    Raises
    ------
    MemoryLimitError
        When a Dask worker has no more than it needs for itself.
    """
    client = active_client()
    most = None if client is None else worker_memory(client)
    if memory_limit is None:
        free = linux_bytes(_PROC / "meminfo", "MemAvailable")
        limits = (*_group_limits(), *_worker_limits(client))
        budget = min((UNKNOWN if free is None else free, *limits)) // SHARE
        return budget if most is None else min(budget, most)
    asked = byte_count(memory_limit)
    if most is None or asked <= most:
        return asked
    warnings.warn(
        f"the memory limit of {human_bytes(asked)} is lowered to the {human_bytes(most)} that each "
        f"Dask worker can give; start workers with more (memory_limit=) for more",
        stacklevel=2,
    )
    return most


def device_budget(device: str) -> int | None:
    """Return the bytes that an operation may take on a GPU: half of its free memory.

    On a cluster the GPU with the least counts. None if every worker uses the CPU.
    """
    if device == "cpu":
        return None
    client = active_client()
    if client is None:
        free = [free_bytes(device)]
    else:
        with cluster_errors(client):
            free = list(client.run(free_bytes, device).values())
    known = [one for one in free if one is not None]
    return min(known) // DEVICE_SHARE if known else None


def device_slots(device: str, slot_bytes: int, what: str) -> int:
    """Return the number of tasks of one process that may run at once, each with some bytes on a GPU.

    Raises
    ------
    MemoryLimitError
        When fewer fit than :func:`least_slots`.
    """
    limit, most, least = device_budget(device), task_slots(), least_slots()
    if limit is None:
        return most
    slots = max(least, min(most, DEVICE_TASKS))
    return fit_slots(slots, least, 0, slot_bytes, limit, f"{what} on {device}", DEVICE_ADVICE)


def least_slots() -> int:
    """Return the least number of tasks that run at once: on a cluster, all that a worker starts."""
    return 1 if active_client() is None else task_slots()


def fitting_slots(fixed_bytes: int, slot_bytes: int, limit: int, what: str) -> int:
    """Return the number of tasks of one process that may run at once.

    Parameters
    ----------
    fixed_bytes, slot_bytes : int
        Bytes of the operation as a whole, and of each task.
    limit : int
        Bytes of the process.
    what : str
        The operation, for the message.

    Raises
    ------
    MemoryLimitError
        When fewer fit than :func:`least_slots`.
    """
    return fit_slots(task_slots(), least_slots(), fixed_bytes, slot_bytes, limit, what)


def room_ahead(limit: int, planned: int, slots: int) -> int:
    """Return the bytes of stored rows that each task may read in advance.

    This is the part of the limit that a plan leaves, but no more than is useful.
    """
    left = limit - with_slack(planned)
    return max(0, min(AHEAD_BYTES, left // slots))


@cache
def give_back() -> None:
    """From now on, return arrays of 1 MB and more to the system as soon as they are freed.

    glibc learns to keep freed arrays of less than 32 MB in the heaps of their threads. This is faster,
    but takes as much memory again as is in use, too much for tiles that fill the memory limit. In a
    measurement the peak fell from up to 184 MB to 68 MB.
    """
    change = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if change is not None:
        change(_MMAP_THRESHOLD, 2**20)


def linux_bytes(path: Path, field: str) -> int | None:
    """Return the content of a Linux file such as ``/proc/meminfo``; None on other systems."""
    if not exists(path):
        return None
    lines = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    return int(lines[field].split()[0]) * 1024


def _group_limits() -> Iterator[int]:
    """Yield the bytes that each control group above this process leaves to it (versions 2 and 1)."""
    membership = _PROC / "self" / "cgroup"
    if not exists(membership):
        return
    # Version 2 has one line, without controllers. Version 1 has a line for each hierarchy.
    for line in membership.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, names = _CGROUP, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            root, names = _CGROUP / "memory", files
        else:
            continue
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            # A limit also holds for all groups below.
            if folder.is_relative_to(root):
                yield from _left(folder, *names)


def _left(folder: Path, limit: str, usage: str, cache: str) -> Iterator[int]:
    """Yield the limit of one group less its memory in use, apart from the page cache."""
    try:
        most = (folder / limit).read_text().strip()
        if not most.isdigit():
            return
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        # The system reclaims pages of files when memory is needed: they count as free.
        used = int((folder / usage).read_text()) - int(stat.get(cache, 0))
        yield max(1, int(most) - max(0, used))
    except OSError:
        return


def _worker_limits(client: Any) -> Iterator[int]:
    """Yield the limits of the workers that would run the tasks, or of this process if it is one."""
    workers = {} if client is None else workers_of(client)
    for worker in workers.values():
        if limit := worker.get("memory_limit"):
            yield int(limit)
    if "distributed" in sys.modules and client is None:
        try:
            own = sys.modules["distributed"].get_worker().memory_manager.memory_limit
        except ValueError:
            return
        if own:
            yield int(own)
