"""``trakstore kernel``: spectrum and condition of a split's kernel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

from rich.console import RenderableType
from typer import Option

from trakstore.cli.request import ScoreRequest, with_request
from trakstore.errors import NotFoundError, did_you_mean
from trakstore.methods.kernel_report import KernelReport, kernel_report
from trakstore.report.terminal_tables import kernel_table


@with_request("targets", "train", "kernel", "method", "learning_rate", "allow_other_weights")
def kernel(
    split: Annotated[
        str, Option(metavar="SPLIT", help="Split whose features make the kernel.")
    ] = "train",
    weighting: Annotated[
        str,
        Option(
            metavar="WEIGHTS",
            help="Weights of the rows: auto (trak's), none (published-trak's), logistic (influence's), "
            "logistic-T with a temperature T, or loss.",
        ),
    ] = "auto",
    *,
    asked: ScoreRequest,
) -> None:
    """Show spectrum, condition and ranks of the kernel of a split, one line an epoch."""
    store, limit = asked.opened, asked.memory_limit
    epochs = asked.epochs or store.epochs_of(split)
    if not epochs:
        near = did_you_mean(split, store.splits)
        raise NotFoundError(f"{store.location} has no split {split!r} at any epoch{near}")
    with asked.workplace():
        reports = [
            kernel_report(
                store, one, split, asked.used_damping, weighting=weighting, memory_limit=limit
            )
            for one in epochs
        ]
    kernels = [report.to_dict() for report in reports]
    document = {"split": split, "kernels": kernels}
    asked.answer(document, _shown(reports))


def _shown(reports: Sequence[KernelReport]) -> Iterator[RenderableType]:
    yield kernel_table(reports)
    for report in reports:
        for line in report.warnings:
            yield f"warning: epoch {report.epoch}: {line}"
