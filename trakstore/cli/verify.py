"""``trakstore verify``: every stored byte, compared with what was written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from typer import Exit, Option

from trakstore.cli.options import Epochs, Json, StorePath, chosen_epochs
from trakstore.cli.output import print_result
from trakstore.planning import counted
from trakstore.storage.checking.verification import VerifyReport, verify_store

FOUND = 1  # exit code: 0 says that nothing is left to do, 2 that the command could not run
LINES = 20  # findings that people see


def verify(
    store: StorePath,
    epoch: Epochs = None,
    split: Annotated[
        list[str] | None,
        Option(metavar="SPLIT", help="Only this split; repeatable."),
    ] = None,
    repair: Annotated[
        bool, Option("--repair", help="Mark bad blocks as missing; the next featurize redoes them.")
    ] = False,
    workers: Annotated[
        int | None, Option(metavar="N", min=1, help="Threads; each holds a chunk.")
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
    print_result(as_json, report.to_dict(), _lines(report, repair))
    if not (report.ok or _all_done(report)):
        raise Exit(FOUND)


def _all_done(report: VerifyReport) -> bool:
    """Tell whether repair left nothing to do: all mended, and no block to be computed again."""
    return all(one.repaired and one.block is None for one in report.findings)


def _lines(report: VerifyReport, repair: bool) -> Iterator[str]:
    yield from map(str, report.findings[:LINES])
    if len(report.findings) > LINES:
        yield f"... {len(report.findings) - LINES} more; --json has all"
    written = sum(one.written_blocks for one in report.splits)
    missing = sum(one.blocks for one in report.splits) - written
    yield f"read {counted(written, 'block')} of {counted(len(report.splits), 'split')}"
    dropped = sum(one.dropped for one in report.splits)
    if dropped:
        yield f"of {counted(dropped, 'split')} the features were dropped, and their gram is kept"
    if missing:
        are = "is" if missing == 1 else "are"
        yield f"{counted(missing, 'block')} {are} not written yet; the same featurize goes on"
    if report.leftovers:
        yield f"{counted(len(report.leftovers), 'leftover')} of killed writers; harmless"
    yield from _verdict(report, repair)


def _verdict(report: VerifyReport, repair: bool) -> Iterator[str]:
    if report.ok:
        yield "everything is as it was written"
        return
    fixed = sum(finding.repaired for finding in report.findings)
    yield f"{counted(len(report.findings), 'finding')}, {fixed} repaired"
    if not repair:
        yield "--repair marks the bad blocks as missing, so that featurize redoes them"
    elif _all_done(report):
        yield "all of it is repaired: nothing is left to do"
    elif any(finding.repaired and finding.block is not None for finding in report.findings):
        yield "run the same featurize again to redo the bad blocks"
