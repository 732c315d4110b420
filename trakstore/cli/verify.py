"""``trakstore verify``: whether every stored byte is what was written."""

from __future__ import annotations

from typing import Annotated

import typer

from trakstore.cli.options import Epochs, Json, StorePath, chosen_epochs
from trakstore.cli.output import console, print_json
from trakstore.planning import counted
from trakstore.storage.checking.verification import VerifyReport, verify_store

__all__ = ["verify"]

FOUND = 1  # exit code
LINES = 20  # findings that people are shown


def verify(
    store: StorePath,
    epoch: Epochs = None,
    split: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SPLIT", help="Only this split; several times for several.", show_default=False
        ),
    ] = None,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Mark bad blocks as missing; the next featurize redoes them."
        ),
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads; each holds a chunk.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Read every byte of a store and report what is damaged; exit code 1 when something is.

    After --repair it is 1 as long as something is left to do, such as to featurize blocks again.
    """
    report = verify_store(
        store,
        epochs=chosen_epochs(epoch),
        splits=split or None,
        repair=repair,
        workers=workers,
        progress=True,
    )
    if as_json:
        print_json(report.to_dict())
    else:
        _print(report, repair)
    if not (report.ok or _all_done(report)):
        raise typer.Exit(FOUND)


def _all_done(report: VerifyReport) -> bool:
    """Whether repair left nothing to do: no finding, and no block to be made again."""
    return all(one.repaired and one.block is None for one in report.findings)


def _print(report: VerifyReport, repair: bool) -> None:
    out = console()
    for finding in report.findings[:LINES]:
        out.print(str(finding), soft_wrap=True)
    if len(report.findings) > LINES:
        out.print(f"... {len(report.findings) - LINES} more; --json has all")
    for line in _verdict(report, repair):
        out.print(line, soft_wrap=True)


def _verdict(report: VerifyReport, repair: bool) -> list[str]:
    written = sum(one.written_blocks for one in report.splits)
    missing = sum(one.blocks for one in report.splits) - written
    lines = [f"read {counted(written, 'block')} of {counted(len(report.splits), 'split')}"]
    if missing:
        are = "is" if missing == 1 else "are"
        lines.append(
            f"{counted(missing, 'block')} {are} not written yet; the same featurize goes on"
        )
    if report.leftovers:
        lines.append(f"{counted(len(report.leftovers), 'leftover')} of killed writers; harmless")
    if report.ok:
        return [*lines, "everything is as it was written"]
    fixed = sum(finding.repaired for finding in report.findings)
    lines.append(f"{counted(len(report.findings), 'finding')}, {fixed} repaired")
    if not repair:
        lines.append("--repair marks the bad blocks as missing, so that featurize redoes them")
    elif _all_done(report):
        lines.append("all of it is repaired: nothing is left to do")
    elif any(finding.repaired and finding.block is not None for finding in report.findings):
        lines.append("run the same featurize again to redo the bad blocks")
    return lines
