"""First samples of a data set, tried before anything is written."""

from __future__ import annotations

from typing import Any

import torch

from trakstore.errors import TrakStoreError
from trakstore.features.batches import Batches
from trakstore.features.fitness import explained
from trakstore.features.gradients import cut
from trakstore.features.job import Job
from trakstore.features.outputs import ModelOutput, RowOutputs
from trakstore.features.plain import copied
from trakstore.planning import ranges

__all__ = ["first_outputs", "first_samples"]

_PROBE = 2  # rows that are computed before anything is written
_TRIED = 64  # rows at most that are searched for good ones


def first_samples(
    job: Job, output: ModelOutput, batches: Batches, count: int
) -> tuple[tuple[int, int], Any, int | None]:
    """Choose the rows that are computed first; return them, their batch and the number of classes.

    These are the first rows; where bad rows are skipped, the first good ones.
    """
    windows = list(ranges(min(count, _TRIED if job.skip_bad_rows else _PROBE), _PROBE))
    for window in windows:
        batch = batches.read(*window)
        try:
            with explained(job.model, output, batch):
                classes = output.check(job.model, copied(batch))
                good = not job.skip_bad_rows or _finite(job.model, output, batch)
        except TrakStoreError:
            if window == windows[-1]:
                raise  # no good row was found: the error of the last one says why
            continue
        if good:
            break
    return window, batch, classes


def first_outputs(model: torch.nn.Module, output: ModelOutput, batch: Any) -> RowOutputs | None:
    """Return outputs of the first sample; None where memory runs out, which a later step reports."""
    sample = copied(cut(batch, 0, 1))
    try:
        with torch.enable_grad():  # some models take gradients themselves
            return RowOutputs(*(column.detach() for column in output(model, sample)))
    except torch.OutOfMemoryError:
        return None


def _finite(model: torch.nn.Module, output: ModelOutput, batch: Any) -> bool:
    """Tell whether each sample has an output and a loss."""
    with torch.enable_grad():
        return all(bool(column.isfinite().all()) for column in output(model, copied(batch)))
