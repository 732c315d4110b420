"""``trakstore kernel``: how far the kernel of a split can be trusted."""

from __future__ import annotations

from typing import Annotated

import typer

from trakstore.cli.cluster import workplace
from trakstore.cli.options import (
    Damping,
    Epochs,
    Json,
    MemoryLimit,
    Scheduler,
    StorePath,
    Workers,
    chosen_epochs,
)
from trakstore.cli.output import console, print_json
from trakstore.errors import NotFoundError, did_you_mean
from trakstore.storage.layout import Epoch
from trakstore.storage.opening import open_store
from trakstore.storage.store import FeatureStore

__all__ = ["kernel"]


def kernel(
    store: StorePath,
    epoch: Epochs = None,
    split: Annotated[str, typer.Option(help="Whose features make the kernel.")] = "train",
    weighting: Annotated[
        str,
        typer.Option(
            help="Of the rows: auto (as trak has it), none (as published-trak has it), logistic (as "
            "influence has it), logistic-T with a temperature T, or loss."
        ),
    ] = "auto",
    damping: Damping = 1.0,
    memory_limit: MemoryLimit = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    as_json: Json = False,
) -> None:
    """Show spectrum, condition and ranks of the kernel of a split, one line an epoch."""
    from trakstore.methods.kernel_report import kernel_report
    from trakstore.report.tables import kernel_table

    opened = open_store(store)
    epochs = _epochs(opened, epoch, split)
    with workplace(workers, scheduler):
        reports = [
            kernel_report(
                opened, one, split, damping, weighting=weighting, memory_limit=memory_limit
            )
            for one in epochs
        ]
    if as_json:
        kernels = [report.to_dict() for report in reports]
        print_json({"location": str(opened.location), "split": split, "kernels": kernels})
        return
    out = console()
    out.print(kernel_table(reports))
    for report in reports:
        for line in report.warnings:
            out.print(f"warning: epoch {report.epoch}: {line}", soft_wrap=True)


def _epochs(store: FeatureStore, names: list[str] | None, split: str) -> list[Epoch]:
    epochs = chosen_epochs(names) or list(store.epochs_of(split))
    if not epochs:
        near = did_you_mean(split, store.splits)
        raise NotFoundError(f"{store.location} has no split {split!r} at any epoch{near}")
    return epochs
