"""Records of a worker's runs, and of splits that its job has still to write."""

from __future__ import annotations

from collections.abc import Sequence

from trakstore.features.job import Job
from trakstore.features.task import SplitTask
from trakstore.features.worker import Worker
from trakstore.storage.tables.runs import Run, library_versions, note_plan, now, split_is_made

__all__ = ["note_rest", "run_of"]


def note_rest(
    job: Job, task: SplitTask, worker: Worker, chosen: Sequence[tuple[int | str, str]]
) -> None:
    """Note the splits that are still to come, before the first is filled; this one is made now."""
    split = task.writer.split
    if (split.epoch, split.name) == chosen[0]:
        note_plan(split.location, run_of(job, task, worker, now()), chosen[1:])
    else:
        split_is_made(split.location, split.epoch, split.name)


def run_of(job: Job, task: SplitTask, worker: Worker, began: str) -> Run:
    """Make the record of a worker's run over a split, which ends now."""
    split = task.writer.split
    return Run(
        split.epoch,
        split.name,
        job.name or type(job.model).__name__,
        began,
        now(),
        worker.rank,
        worker.world,
        str(worker.device),
        task.rows_written,
        task.blocks_written,
        library_versions(),
    )
