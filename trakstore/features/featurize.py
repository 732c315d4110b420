"""Loop of a worker: batches in, blocks of features out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, Literal, Unpack

from torch import nn

from trakstore.errors import NotFoundError, SpecMismatchError, TrakStoreError, did_you_mean
from trakstore.features.blockcheck import CheckedRows
from trakstore.features.devices import need_one_device, need_room, working_on
from trakstore.features.evaluated import evaluated
from trakstore.features.fitness import need_apart
from trakstore.features.job import Job
from trakstore.features.job_options import JobOptions
from trakstore.features.run_records import note_rest, run_of
from trakstore.features.scale import Scale
from trakstore.features.scale_choice import ChosenScale, new_scale
from trakstore.features.shares import do_share, help_others
from trakstore.features.spent import Featurized
from trakstore.features.task import SplitTask
from trakstore.features.twins import warn_of_twins
from trakstore.features.wanted_spec import output_on
from trakstore.features.worker import Worker
from trakstore.progress import ProgressLine, StepLine
from trakstore.quantities import as_flag, as_whole, is_one_of
from trakstore.spec import Precision
from trakstore.storage import layout
from trakstore.storage.backends.location import Where
from trakstore.storage.completion import note_complete
from trakstore.storage.opening import find_store, open_store
from trakstore.storage.selections import as_epochs, as_splits
from trakstore.storage.split import Split
from trakstore.storage.store import FeatureStore
from trakstore.storage.tables.runs import now, record_run

__all__ = ["Featurized", "featurize", "featurize_job"]


def featurize(
    model: nn.Module,
    dataset: Any,
    store: Where | FeatureStore,
    *,
    epoch: int | str = 0,
    split: str = "train",
    ids: Sequence[int] | Sequence[str] | None = None,
    learning_rate: float | None = None,
    device: str | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    progress: bool = True,
    labels: Literal["given", "sampled"] = "given",
    draws: int = 8,
    seed: int = 0,
    tokens: int = 0,
    **options: Unpack[JobOptions],
) -> Featurized:
    """Write the projected per-sample gradients of a data set to a store.

    Any number of workers may run this at once with the same arguments: each does its share of the
    blocks, then helps with what is missing. Blocks that are there are passed over, so a run that was
    stopped goes on where it was.

    Parameters
    ----------
    model : nn.Module
        Put in eval mode, and on ``device``, for the duration; given back as it was. A forward that
        changes a parameter (``Embedding(max_norm=)``), or a buffer that outputs depend on, is refused.
    dataset : map-style data set
        Samples, as in the ``datasets`` of a :class:`Job`.
    store : path, FeatureStore or zarr store
        Where features are written; made when it is not there.
    epoch : int or str
        Name of the model's present weights in the store.
    split : str
        Name of the data set in the store.
    ids : sequence of int or str, optional
        Names of samples; their positions by default.
    learning_rate : float, optional
        Learning rate of the training at this epoch, kept with the features for TracIn.
    device : str, optional
        By default ``cuda:LOCAL_RANK`` where there is a GPU, else the CPU. The whole model must fit on
        it, but one that is sharded (``fully_shard``, ``parallelize_module``): see
        :mod:`trakstore.features.sharding`.
    rank, world_size : int, optional
        Number of this worker, and how many there are; by default from the environment, as
        ``torchrun`` and SLURM set it. All ranks of a sharded model are one worker, by default the only
        one.
    progress : bool
        Whether rank 0 shows progress on standard error.
    labels : {"given", "sampled"}
        ``"sampled"``: features of the same samples with labels that are drawn from the model's own
        predictions, as a split of its own, ``train~sampled``; see ``sampled`` of a :class:`Job`.
    draws : int
        Rows of each sample then, each with other labels; 8 were measured to be worth their time
        (``benchmarks/README.md``, language models).
    seed : int
        Number that drawn labels follow from.
    tokens : int
        Tokens of a row, where rows are of tokens, and not of samples: 1 for each token of its own.
        Written as a split of its own, ``test~tokens``, whose rows ``id#token`` add up to those of the
        samples; see ``tokens`` of a :class:`Job`.
    **options
        How features are computed and stored: ``output``, ``projector``, ``parameters``,
        ``activations``, ``batch_size``, ``dtype``, ``collate``, ``block_rows``, ``keep_bits``,
        ``append``, ``memory_limit``, ``precision``, ``autocast``, ``check``, ``skip_bad_rows`` and
        ``scale``, which are those of a :class:`Job`; the first call chooses the scale, by the data set
        that it gives.

    Returns
    -------
    Featurized
        Rows, blocks and bytes that this worker wrote, and its time.

    Raises
    ------
    SpecMismatchError
        When the store or the split was made from something else; both values are shown.
    MemoryLimitError
        When not even one sample fits in the memory limit; nothing is written then.
    NumericsError
        When a row is not finite, in any column, or samples have other gradients together than alone;
        the block that they are in is not written.
    TrakStoreError
        When model, output and data set do not fit together; nothing is written then.

    Examples
    --------
    >>> projection = ts.ProjectionSpec("rademacher", dim=8)
    >>> done = featurize(model, train, "memory://one", epoch=15, projector=projection, progress=False)
    >>> done.rows
    24
    >>> featurize(model, train, "memory://one", epoch=15, projector=projection, progress=False).rows
    0
    >>> ts.open_store("memory://one").features(15, "train").shape
    (24, 8)
    """
    layout.check_name(split, "split")
    drawn, tokens = _are_sampled(labels), as_whole(tokens, "tokens", 0)
    if drawn and tokens:
        raise TrakStoreError("labels='sampled' and tokens= are of two splits: give one at a time")
    job = Job(
        model,
        {split: dataset},
        checkpoints=None,
        ids={} if ids is None else {split: ids},
        learning_rates={} if learning_rate is None else {epoch: learning_rate},
        sampled={split: draws} if drawn else 0,
        draw_seed=seed,
        tokens={split: tokens} if tokens else 0,
        name="",
        **options,
    )
    began = time.monotonic()
    worker = Worker.of(job, rank, world_size, device)
    with StepLine(show=progress and worker.leads) as steps, worker.sharding.together():
        scale = _new_scale(job, store, split, worker, steps)
        own = job.splits[-1]
        with _prepared(job, store, epoch, own, worker, steps, scale) as (task, line):
            if worker.leads:
                warn_of_twins(task.writer.split, set())
            done = task.added + do_share(task, worker, line) + help_others(task, worker, line)
    done = replace(done, prepared=task.prepared)
    return done.within(time.monotonic() - began)


def featurize_job(
    job: Job,
    store: Where | FeatureStore,
    *,
    epochs: int | str | Sequence[int | str] | None = None,
    splits: str | Sequence[str] | None = None,
    batch_size: int | None = None,
    memory_limit: int | str | None = None,
    skip_bad_rows: bool | None = None,
    precision: Precision | None = None,
    check: CheckedRows | None = None,
    scale: Scale = None,
    sampled: int | Mapping[str, int] | None = None,
    tokens: int | Mapping[str, int] | None = None,
    device: str | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    progress: bool = True,
    restore: bool = True,
) -> Featurized:
    """Write all epochs and splits of a job, or some; see :func:`featurize`.

    Each worker first does its share of every epoch and split, and only then helps others.

    Parameters
    ----------
    job : Job
        The model, its data sets and checkpoints.
    store : path, FeatureStore or zarr store
        Where features are written; made when it is not there.
    epochs, splits : sequence, optional
        Some of the job's; all when None.
    batch_size, memory_limit, skip_bad_rows, precision, check, scale, sampled, tokens : optional
        Values in place of the job's own.
    device, rank, world_size, progress
        As in :func:`featurize`.
    restore : bool
        Whether the model has its own weights again afterwards, whatever happened: a copy of them is
        held on the CPU meanwhile, where the job has checkpoints. Without, it has those of the epoch
        that came last.

    Returns
    -------
    Featurized
        Rows, blocks and bytes that this worker wrote, and its time.

    Examples
    --------
    >>> projection = ts.ProjectionSpec("rademacher", dim=8)
    >>> job = Job(model, {"train": train, "test": test}, projector=projection)
    >>> featurize_job(job, "memory://job", progress=False).rows
    30
    >>> ts.trak_scores(ts.open_store("memory://job"))
    <Scores trak (target: 6, train: 24), epochs 0>
    """
    restore = as_flag(restore, "restore")
    began = time.monotonic()
    worker = Worker.of(job, rank, world_size, device)
    asked: dict[str, Any] = {
        "batch_size": batch_size,
        "memory_limit": memory_limit,
        "skip_bad_rows": skip_bad_rows,
        "precision": precision,
        "check": check,
        "scale": scale,
        "sampled": sampled,
        "tokens": tokens,
    }
    job = replace(job, **{name: value for name, value in asked.items() if value is not None})
    named = _chosen(None if epochs is None else as_epochs(epochs), job.epochs, "epoch")
    wanted = None if splits is None else as_splits(splits)
    chosen = [(epoch, split) for epoch in named for split in _chosen(wanted, job.splits, "split")]
    job.check_names()
    job.check_files(named)
    done, twins = Featurized(0, 0, 0.0), set[frozenset[int | str]]()
    with (
        StepLine(show=progress and worker.leads) as steps,
        job.lent() if restore else nullcontext(),
        worker.sharding.together(),
    ):
        made = _new_scale(job, store, next(iter(job.datasets)), worker, steps, job.epochs[-1])
        # Shares of all splits come first. A worker that helped at the end of each would take blocks
        # whose own workers are about to come to them.
        for duty in (do_share, help_others):
            for epoch, split in chosen:
                if duty is help_others:
                    # A split that is complete needs no weights, and no samples to be tried.
                    there = open_store(store).split(epoch, split)
                    if worker.sharding.agreed(partial(_is_complete, there)):
                        note_complete(there)
                        continue
                steps.step(f"loading the weights of epoch {epoch}")
                job.load(epoch)
                with _prepared(job, store, epoch, split, worker, steps, made) as (task, line):
                    if worker.leads:
                        warn_of_twins(task.writer.split, twins)
                    if duty is do_share:
                        note_rest(job, task, worker, chosen)
                    done += task.added + replace(duty(task, worker, line), prepared=task.prepared)
    return done.within(time.monotonic() - began)


def _are_sampled(labels: str) -> bool:
    if not is_one_of(labels, ("given", "sampled")):
        raise TrakStoreError(f"labels are 'given' or 'sampled', got {labels!r}")
    return labels == "sampled"


def _new_scale(
    job: Job,
    store: Where | FeatureStore,
    split: str,
    worker: Worker,
    steps: StepLine,
    epoch: int | str | None = None,
) -> ChosenScale | None:
    """Make the scale that a job asks for, where there is no store yet, at the weights of an epoch.

    They are the model's present ones where there is none.
    """
    # Passes of all ranks follow: one that saw the store a moment earlier would not take part.
    if job.scale is None or worker.sharding.agreed(lambda: find_store(store) is not None):
        return None
    steps.step(f"preparing {split}: second moments that scale its gradients")
    if epoch is not None:
        job.load(epoch)
    with _lent(job, worker):
        output = output_on(job, worker.device)
        return new_scale(job, output, split, worker.device, worker.sharding)


@contextmanager
def _lent(job: Job, worker: Worker) -> Iterator[None]:
    """Lend a job's model to a worker, on its device and in eval mode."""
    need_one_device(job.model)
    need_apart(job.model)
    if worker.sharding.whole:
        need_room(job.model, worker.device)
    with working_on(worker.device, job.precision), evaluated(job.model, worker.device):
        yield


@contextmanager
def _prepared(
    job: Job,
    store: Where | FeatureStore,
    epoch: int | str,
    split: str,
    worker: Worker,
    steps: StepLine,
    scale: ChosenScale | None,
) -> Iterator[tuple[SplitTask, ProgressLine]]:
    def say(part: str) -> None:
        steps.step(f"preparing {split} at epoch {epoch}: {part}")

    with _lent(job, worker):
        prepare = partial(
            SplitTask.prepare, job, store, epoch, split, worker.device, scale, worker.sharding, say
        )
        task = _prepared_by_all(prepare, worker, lambda: _came_second(store, scale))
        with task:
            with _line(task, steps.show) as line:
                began = now()
                try:
                    yield task, line
                finally:  # also when it was stopped
                    if task.rows_written and worker.sharding.writes:
                        record_run(task.writer.split.location, run_of(job, task, worker, began))
            steps.step(f"finishing {split} at epoch {epoch}")


def _prepared_by_all(
    prepare: Callable[[], SplitTask], worker: Worker, again: Callable[[], bool]
) -> SplitTask:
    """Prepare a split, and once more where another worker made the store first.

    Ranks of a sharded model do so together: each of them has passes in it, in which all take part.
    """
    task, mismatch = None, None
    try:
        task = prepare()
    except SpecMismatchError as error:
        mismatch = error
    if worker.sharding.agreed(lambda: mismatch is not None and again()):
        with nullcontext() if task is None else task:
            pass  # gives the model back as it was
        return prepare()
    if mismatch is not None:
        raise mismatch
    assert task is not None  # else there is a mismatch
    return task


def _is_complete(split: Split) -> bool:
    return split.status().complete


def _came_second(store: Where | FeatureStore, scale: ChosenScale | None) -> bool:
    """Tell whether another worker made the store meanwhile, with a scale from the same source.

    Two workers estimate one scale up to rounding: that of the first one counts for both.
    """
    there = find_store(store)
    first = None if there is None else there.spec.scale
    if scale is None or first is None or first == scale.spec:
        return False
    return first.source == scale.spec.source


def _line(task: SplitTask, show: bool) -> ProgressLine:
    """Make a line of the whole split's progress: the first worker shows it, from all commits."""
    split = task.writer.split
    return ProgressLine(
        f"{split.name} at epoch {split.epoch}",
        split.rows,
        item_bytes=split.row_bytes,
        begun=split.status().written_rows if show else 0,
        show=show,
    )


def _chosen(asked: Sequence[Any] | None, known: tuple[Any, ...], what: str) -> tuple[Any, ...]:
    if asked is None:
        return known
    for one in asked:
        if one not in known:
            raise NotFoundError(f"the job has no {what} {one!r}{did_you_mean(one, known)}")
    return tuple(asked)
