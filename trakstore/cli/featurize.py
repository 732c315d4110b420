"""``trakstore featurize``: a job's projected per-sample gradients into a store."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from typer import BadParameter, Option

from trakstore.cli.narrowed_job import of_drawn_samples, of_last_layers
from trakstore.cli.options import Epochs, JobName, Json, chosen_epochs
from trakstore.cli.output import error_line, only_json, print_json
from trakstore.planning import counted, human_bytes, human_time
from trakstore.progress import StepLine
from trakstore.storage.opening import find_store

if TYPE_CHECKING:
    from trakstore.features import Featurized, Job
    from trakstore.features.preparation import Preparation
    from trakstore.features.spent import Spent

_SPENT = {
    "preparing": "model and checks",
    "reading": "waiting for samples",
    "computing": "gradients and projection",
    "writing": "waiting for the storage",
    "helping": "markers and other workers",
}


def featurize(
    job: JobName,
    store: Annotated[
        str, Option(metavar="PATH", help="Store to write to; made when it is not there.")
    ],
    epoch: Epochs = None,
    split: Annotated[
        list[str] | None,
        Option(metavar="SPLIT", help="A data set of the job, repeatable; default: all."),
    ] = None,
    batch_size: Annotated[
        int | None, Option(metavar="N", min=1, help="Samples of a batch; default: the job's.")
    ] = None,
    memory_limit: Annotated[
        str | None,
        Option(
            metavar="SIZE",
            help="Most memory to take beside the model, such as 600MB; default: the job's, or any.",
        ),
    ] = None,
    skip_bad_rows: Annotated[
        bool,
        Option(
            "--skip-bad-rows", help="Store rows that are not finite as masked, with the reason."
        ),
    ] = False,
    precision: Annotated[
        str | None,
        Option(
            metavar="NAME",
            help="Precision of the model's products, float32, tf32 or bfloat16, which the store knows; "
            "default: the job's.",
        ),
    ] = None,
    check_all: Annotated[
        bool,
        Option(
            "--check-all", help="Compare every row with an ordinary backward pass, not one of 44."
        ),
    ] = False,
    scale: Annotated[
        str | None,
        Option(
            metavar="SOURCE",
            help="Second moments that gradients are scaled by: samples, adam, or the path of an "
            "optimizer.pt; default: the job's, or the store's.",
        ),
    ] = None,
    sampled: Annotated[
        int | None,
        Option(
            min=1,
            metavar="DRAWS",
            help="Also write the train samples with labels drawn from the model.",
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        Option(
            min=1,
            metavar="N",
            help="Also write a row for each N tokens of the test samples, of a language model.",
        ),
    ] = None,
    last_layers: Annotated[
        int | None,
        Option(
            min=1,
            metavar="N",
            help="Take gradients of the last N layers with weights alone: which ones is told.",
        ),
    ] = None,
    sample_rate: Annotated[
        float | None,
        Option(
            metavar="SHARE",
            help="Take a share of the split train alone, such as 0.1: lists then have about that "
            "share of the true ones.",
        ),
    ] = None,
    stratify_by: Annotated[
        str,
        Option(
            metavar="WHAT",
            help="Draw the same share of each label, relation (of triples) or key of dict samples; "
            "or none. auto: of each label where they are integers and few, else none.",
        ),
    ] = "auto",
    sample_seed: Annotated[int, Option(metavar="SEED", min=0, help="Seed of the draw.")] = 0,
    fsdp: Annotated[
        bool,
        Option("--fsdp", help="Share the model between the ranks that torchrun starts (FSDP2)."),
    ] = False,
    tp: Annotated[
        int,
        Option(
            min=1,
            metavar="N",
            help="With --fsdp: ranks that also share each layer, by the job's shard=.",
        ),
    ] = 1,
    device: Annotated[
        str | None,
        Option(metavar="DEVICE", help="Such as cuda:1; default: this rank's GPU, or cpu."),
    ] = None,
    rank: Annotated[
        int | None,
        Option(metavar="N", min=0, help="Number of this worker; default: as the launcher says."),
    ] = None,
    world_size: Annotated[
        int | None,
        Option(metavar="N", min=1, help="Number of workers; default: as the launcher says."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the features of a job's data sets to a store, going on where an earlier run stopped.

    Any number of workers may run the same command at once, under torchrun or by --rank and
    --world-size: each does its share, then helps the others. With --fsdp the ranks that torchrun
    starts are one worker, for a model that is too large for one card; --rank and --world-size then
    number such groups.
    """
    from trakstore.features.ranks import rank_and_world

    if tp > 1 and not fsdp:
        raise BadParameter("--tp divides the layers of a model that --fsdp shards: give both")
    asked = {"rank": rank, "world_size": world_size} if fsdp else {}
    rank, world_size = rank_and_world(None, None) if fsdp else rank_and_world(rank, world_size)
    numbers = asked or {"rank": rank, "world_size": world_size}
    with only_json(as_json), _progress_when_stopped(store, rank):
        done = _featurize(
            partial(
                _chosen_job, job, last_layers, sample_rate, stratify_by, sample_seed, rank, fsdp
            ),
            store,
            epochs=chosen_epochs(epoch),
            splits=split or None,
            batch_size=batch_size,
            memory_limit=memory_limit,
            # None leaves the choice to the job, which an option that was not given must not overrule.
            skip_bad_rows=skip_bad_rows or None,
            precision=precision,
            check="all" if check_all else None,
            scale=scale,
            sampled=sampled,
            tokens=tokens,
            device=device,
            tp=tp if fsdp else None,
            leads=rank == 0,
            **numbers,
        )
    if as_json:
        worker = {"rank": rank, "world_size": world_size}
        print_json({"job": job, "store": store, **worker, **asdict(done)})
    else:
        sys.stdout.write(_line(done, store, rank, world_size) + _twice(done, rank, world_size))
        if rank == 0 and done.blocks:
            sys.stdout.write(_where_time_went(done.spent) + _preparation(done.prepared))


def _chosen_job(
    name: str,
    layers: int | None,
    rate: float | None,
    by: str,
    seed: int,
    rank: int,
    to_shard: bool,
    device: str | None,
) -> Job:
    """Load a job, without the epochs and splits that were not asked for."""
    from trakstore.features import load_job

    job = load_job(name)
    if rate is not None:
        job, stratified = of_drawn_samples(job, rate, by, seed)
        if rank == 0 and by == "auto" and not stratified:
            error_line("samples are drawn without strata: labels are no integers, or many", "note")
    if layers is not None:
        job, chosen = of_last_layers(job, layers, device, to_shard=to_shard)
        if rank == 0:
            error_line(f"gradients are of the last layers alone: {chosen.words}", "note")
    return job


def _featurize(
    make: Callable[[str | None], Job],
    store: str,
    *,
    device: str | None,
    tp: int | None,
    leads: bool,
    **options: Any,
) -> Featurized:
    from trakstore.features import featurize_job
    from trakstore.features.devices import worker_device
    from trakstore.features.sharding import shard_model, started_ranks, watched_ranks

    # A wrong device is refused first, since making the job may take minutes.
    own = worker_device(device)
    # Libraries that load a model show progress bars of their own.
    with StepLine(show=leads, drawn=False) as steps:
        if tp is not None:
            steps.step("waiting for the other ranks")
        with nullcontext() if tp is None else started_ranks(own, tp) as mesh:
            steps.step("loading the job")
            made = make(device)
            if mesh is not None:
                steps.step("sharding the model")
                shard_model(made.model, mesh, made.shard)
            with nullcontext() if tp is None else watched_ranks(_end_at_once):
                return featurize_job(made, store, device=device, restore=False, **options)


def _end_at_once(message: str) -> None:
    """End the process with an error; its main thread waits for another rank, and would not notice."""
    error_line(message)
    sys.stderr.flush()
    os._exit(2)  # as for every error that is told in a line


@contextmanager
def _progress_when_stopped(store: str, rank: int) -> Iterator[None]:
    """Print, after Ctrl-C in the first worker, how much of the store is written."""
    try:
        yield
    except KeyboardInterrupt:
        if rank == 0 and (opened := find_store(store)) is not None:
            begun = [status for status in opened.status() if not status.complete]
            rest = ", ".join(
                f"{s.split} at epoch {s.epoch} {s.written_rows}/{s.rows}" for s in begun
            )
            error_line(f"rows committed in {store}: {rest or 'all of the splits begun'}", "stopped")
        raise


def _who(rank: int, world_size: int) -> str:
    return f"rank {rank} of {world_size}: " if world_size > 1 else ""


def _line(done: Featurized, store: str, rank: int, world_size: int) -> str:
    who = _who(rank, world_size)
    if done.blocks == 0:
        return f"{who}nothing to write, all of it is in {store}\n"
    seconds = max(done.seconds, 1e-9)
    return (
        f"{who}wrote {counted(done.rows, 'row')} in {counted(done.blocks, 'block')} to {store}, "
        f"{human_bytes(done.bytes)} "
        f"of features, {human_time(done.seconds)}, {done.rows / seconds:,.0f} rows/s, "
        f"{human_bytes(round(done.bytes / seconds))}/s\n"
    )


def _twice(done: Featurized, rank: int, world_size: int) -> str:
    """Write why other workers computed some rows too; an empty text if none did."""
    reasons = {
        "another worker, which had finished its own share, helped with them and was faster": (
            done.overtaken
        ),
        "this worker helped with what was still missing, and the worker that had them in hand was "
        "faster": done.repeated,
    }
    return "".join(
        f"{_who(rank, world_size)}{counted(rows, 'row')} of these were written twice: {reason} "
        f"(only time is lost: both wrote the same values)\n"
        for reason, rows in reasons.items()
        if rows
    )


def _where_time_went(spent: Spent) -> str:
    """Write shares of the time, largest first, without those below a hundredth."""
    seconds = {words: getattr(spent, name) for name, words in _SPENT.items()}
    shares = {words: 100 * one / spent.total for words, one in seconds.items()}
    listed = sorted(shares.items(), key=lambda pair: -pair[1])
    parts = ", ".join(f"{words} {share:.0f}%" for words, share in listed if share >= 1)
    return f"of {human_time(spent.total)} in all: {parts}\n"


def _preparation(prepared: Preparation) -> str:
    """Write the seconds of each part of preparing."""
    from trakstore.features.preparation import PARTS

    seconds = {words: getattr(prepared, name) for name, words in PARTS.items()}
    parts = ", ".join(f"{words} {human_time(one)}" for words, one in seconds.items())
    return f"preparing: {parts}\n"
