"""Costs of featurizing and of queries, measured over a grid of sizes, each in its own process."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
from numpy.typing import NDArray
from torch.utils.data import Subset

from trakstore.errors import TrakStoreError
from trakstore.features.evaluated import evaluated
from trakstore.features.featurize import featurize_job
from trakstore.features.fingerprint import dataset_rows
from trakstore.features.job import Job
from trakstore.features.load_job import load_job
from trakstore.features.task import SplitTask
from trakstore.methods.trak import trak_scores
from trakstore.passes.memory import linux_bytes
from trakstore.planning import ranges
from trakstore.scores.top_k import top_k
from trakstore.spec import ProjectionSpec
from trakstore.storage.opening import open_store
from trakstore.storage.store import FeatureStore

# The docs have a page about this module, which shows these names.
__all__ = ["Cell", "efficiency_grid"]


@dataclass(frozen=True)
class Spread:
    """Seconds of several rounds."""

    median: float
    least: float
    most: float


@dataclass(frozen=True)
class Cell:
    """Measurements of one size.

    Attributes
    ----------
    train, targets, dim : int
        Sizes.
    compute : Spread
        Seconds to compute the features of the train rows, without writing.
    write : Spread
        Seconds to write computed rows.
    featurize : Spread
        Seconds of both, with writing in the background, and with all checks.
    rows_per_second : float
        Train rows divided by the median of ``featurize``.
    top : Spread
        Seconds for the kernel, and the top ten of all targets by TRAK.
    memory, device_memory : int
        Peak bytes beyond the imports: resident in the process, and allocated on the GPU.
    """

    train: int
    targets: int
    dim: int
    compute: Spread
    write: Spread
    featurize: Spread
    rows_per_second: float
    top: Spread
    memory: int
    device_memory: int


def efficiency_grid(
    job: str,
    train: Sequence[int],
    targets: Sequence[int],
    dims: Sequence[int],
    *,
    splits: tuple[str, str] = ("train", "test"),
    rounds: int = 3,
) -> Iterator[Cell]:
    """Measure every combination of sizes, each in a new process, after a warm-up.

    Parameters
    ----------
    job : str
        Name of a job, such as ``"jobs.py:digits"``; each process makes it anew, and uses its first
        checkpoint.
    train, targets : sequence of int
        Numbers of samples, from the beginning of the splits.
    dims : sequence of int
        Dimensions of the job's projection.
    splits : tuple of str
        Names of the train and the target split.
    rounds : int
        Number of times that each cell is measured.

    Yields
    ------
    Cell

    Raises
    ------
    TrakStoreError
        When there are fewer samples than asked for, or no rounds.
    """
    if rounds < 1 or min([*train, *targets, *dims], default=0) < 1:
        raise TrakStoreError(
            f"sizes and rounds must be 1 or more, got train {list(train)}, targets {list(targets)}, "
            f"dims {list(dims)}, rounds {rounds}"
        )
    # A new process for each size: its memory starts with the imports, and nothing is compiled or
    # cached.
    for sizes in product(train, targets, dims):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            yield pool.submit(_measured, job, splits, sizes, rounds).result()


def _measured(name: str, splits: tuple[str, str], sizes: tuple[int, int, int], rounds: int) -> Cell:
    job, (train, targets, dim) = load_job(name), sizes
    # Imports, compilation and caches cost once a process: this happens before the clock starts.
    small = _cut(job, splits, (min(train, job.batch_size), 1), dim)
    with tempfile.TemporaryDirectory() as folder:
        _round(small, splits, Path(folder))
        device = torch.cuda.is_available()
        if device:
            torch.cuda.reset_peak_memory_stats()
        before = _status("VmRSS")
        cut = _cut(job, splits, (train, targets), dim)
        rounds_of_seconds = [_round(cut, splits, Path(folder) / str(i)) for i in range(rounds)]
    seconds = [
        Spread(median(one), min(one), max(one)) for one in zip(*rounds_of_seconds, strict=True)
    ]
    compute, write, both, top = seconds
    memory = max(0, _status("VmHWM") - before)
    used = torch.cuda.max_memory_allocated() if device else 0
    return Cell(*sizes, compute, write, both, train / both.median, top, memory, used)


def _cut(job: Job, splits: tuple[str, str], rows: tuple[int, int], dim: int) -> Job:
    """Return the job with the first samples of both splits, and another dimension."""
    datasets: dict[str, Any] = {}
    for split, count in zip(splits, rows, strict=True):
        if split not in job.datasets or count > dataset_rows(job.datasets[split]):
            raise TrakStoreError(f"the job has no split {split!r} of {count} samples or more")
        datasets[split] = Subset(job.datasets[split], range(count))
    known = {split: len(dataset) for split, dataset in datasets.items()}
    ids = {split: names[: known[split]] for split, names in job.ids.items() if split in known}
    spec = replace(job.projector or ProjectionSpec("sjlt", dim=dim), dim=dim)
    return replace(
        job, datasets=datasets, ids=ids, projector=spec, sampled=0, tokens=0, memory_limit=None
    )


def _round(job: Job, splits: tuple[str, str], folder: Path) -> tuple[float, float, float, float]:
    """Measure seconds to compute, to write, to featurize, and to ask, at the first checkpoint."""
    folder.mkdir(exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    (train, targets), epoch, place = splits, job.epochs[0], folder / "b"
    with job.lent(), evaluated(job.load(epoch), device):
        compute, write = _computed_and_written(job, folder / "a", train, device)
    # With all checks, and writing in the background, as people run it: the two may overlap.
    both = _seconds(lambda: _featurize(job, place, epoch, train))
    _featurize(job, place, epoch, targets)
    top = _seconds(lambda: _ask(open_store(place), targets, train))
    return compute, write, both, top


def _computed_and_written(
    job: Job, place: Path, split: str, device: torch.device
) -> tuple[float, float]:
    """Measure seconds to compute all rows, then to write them; the model is on the device."""
    with SplitTask.prepare(job, place, job.epochs[0], split, device) as task:
        spec, parts = task.writer.spec, list[dict[str, NDArray[Any]]]()

        def compute() -> None:
            pieces = ranges(spec.rows, spec.block_rows)
            parts.extend(task.rows.columns(*piece) for piece in pieces)

        def write() -> None:
            for block, columns in enumerate(parts):
                task.writer.write(block, columns)

        return _seconds(compute), _seconds(write)


def _featurize(job: Job, place: Path, epoch: int | str, split: str) -> None:
    featurize_job(job, place, epochs=[epoch], splits=[split], rank=0, world_size=1, progress=False)


def _ask(store: FeatureStore, targets: str, train: str) -> None:
    scores = trak_scores(store, targets, train)
    top_k(scores, min(10, scores.shape[1]))


def _seconds(run: Callable[[], None]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _status(field: str) -> int:
    """Return the bytes that Linux reports for this process, resident (VmRSS) or peak (VmHWM); or 0."""
    return linux_bytes(Path("/proc/self/status"), field) or 0
