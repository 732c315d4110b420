"""``trakstore report``: one page to look at, with the samples themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from trakstore.cli.cluster import workplace
from trakstore.cli.gathering import Gathering
from trakstore.cli.lists import target_rows
from trakstore.cli.methods import find_method, make_scores
from trakstore.cli.options import (
    AllowOtherWeights,
    Damping,
    Epochs,
    Json,
    MemoryLimit,
    Method,
    Null,
    Scheduler,
    StorePath,
    Targets,
    Train,
    Workers,
    chosen_epochs,
    null_pairs,
    target_option,
)
from trakstore.cli.output import console, print_json
from trakstore.cli.samples import sample_source
from trakstore.errors import NotFoundError, TrakStoreError, did_you_mean
from trakstore.methods.epochs import EpochPair, UnmaskedSplit, epoch_pairs
from trakstore.planning import counted, human_bytes
from trakstore.storage.exchange.named_files import check_file_place, writing
from trakstore.storage.layout import Epoch, as_epoch
from trakstore.storage.opening import open_store

__all__ = ["report"]

MOST_TARGETS, MOST_LISTED = 200, 20
_RENDER = "samples are numbers: --render file.py:function shows them as text or pictures"


def report(
    store: StorePath,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="The page to write.")
    ] = Path("report.html"),
    job: Annotated[
        str | None,
        typer.Option(
            "--job",
            metavar="JOB",
            help="jobs.py:name, whose data sets hold the samples to show.",
            show_default=False,
        ),
    ] = None,
    render: Annotated[
        str | None,
        typer.Option(
            "--render",
            metavar="FUNCTION",
            help="file.py:name, a function of a sample (without --job, of its split, id and row) "
            "that returns a text, an image or a figure.",
            show_default=False,
        ),
    ] = None,
    k: Annotated[
        int, typer.Option("--k", "-k", min=1, max=MOST_LISTED, help="Entries of each list.")
    ] = 8,
    target: Annotated[list[str] | None, target_option("--count of them")] = None,
    count: Annotated[
        int,
        typer.Option(
            "--count",
            min=1,
            max=MOST_TARGETS,
            help="Targets where none is named: half by largest loss, the others spread out.",
        ),
    ] = 24,
    before: Annotated[
        str | None,
        typer.Option(
            metavar="EPOCH", help="Start of the transition; else the first.", show_default=False
        ),
    ] = None,
    after: Annotated[
        str | None,
        typer.Option(
            metavar="EPOCH", help="End of the transition; else the last.", show_default=False
        ),
    ] = None,
    null: Null = None,
    targets: Targets = "test",
    train: Train = "train",
    epoch: Epochs = None,
    damping: Damping = 1.0,
    method: Method = "trak",
    memory_limit: MemoryLimit = None,
    allow_other_weights: AllowOtherWeights = False,
    workers: Workers = None,
    scheduler: Scheduler = None,
    as_json: Json = False,
) -> None:
    """Write one HTML page: targets with the samples that helped and harmed them, and when.

    The page loads nothing. Needs matplotlib and Jinja, the "report" extra.
    """
    from trakstore.report.page import check_report_extra, render_page

    check_report_extra()
    find_method(method)
    check_file_place(out)
    opened = open_store(store)
    pairs = epoch_pairs(
        opened, targets, train, chosen_epochs(epoch), allow_other_weights=allow_other_weights
    )
    last = pairs[-1]
    if k > last.train.rows:
        raise TrakStoreError(f"--k must be in 1..{last.train.rows}, the rows of {train}, got {k}")
    rows = _rows(last.target, target, targets, count)
    ends = _ends(pairs, before, after)
    calm = null_pairs(null, ends)
    _check_epochs(pairs, [epoch for pair in calm for epoch in pair])
    show = sample_source(job, render, [opened.split(last.epoch, one) for one in (targets, train)])
    with workplace(workers, scheduler):
        scores = make_scores(
            method,
            opened,
            targets=targets,
            train=train,
            epochs=[pair.epoch for pair in pairs],
            damping=damping,
            memory_limit=memory_limit,
            allow_other_weights=allow_other_weights,
        )
        gathering = Gathering(opened, scores, pairs, rows, k, ends, calm, damping, memory_limit)
        found = gathering.findings(
            show,
            {
                "method": scores.method,
                "targets": f"{targets}, {last.target.rows:,} samples",
                "train": f"{train}, {last.train.rows:,} samples",
                "shown": _shown(last.target, target, len(rows)),
                "epochs": _named([pair.epoch for pair in pairs]),
                "damping": f"c = {damping:g}",
                "samples by": " and ".join(filter(None, [job, render])) or "id only",
            },
        )
    page = render_page(found).encode("utf-8", "replace")  # a path may have no characters
    with writing(out):
        out.write_bytes(page)
    written = {"report": str(out), "bytes": len(page), "targets": len(rows)}
    if as_json:
        print_json({"location": str(opened.location), **written, "left_out": found.left_out})
        return
    say = console()
    for section, reason in found.left_out.items():
        say.print(f"left out: {section}: {reason}", soft_wrap=True)
    size, shown = human_bytes(len(page)), counted(len(rows), "target")
    say.print(f"wrote {out}, {size}, {shown}: open it in a browser", soft_wrap=True)
    if show.tokens and render is None:
        say.print(_RENDER, soft_wrap=True)


def _rows(
    split: UnmaskedSplit, names: list[str] | None, name: str, count: int
) -> NDArray[np.int64]:
    """The targets that are named; else half by largest loss, the others evenly spaced."""
    if names:
        if len(names) > MOST_TARGETS:
            raise TrakStoreError(f"a page shows {MOST_TARGETS} targets at most, got {len(names)}")
        return target_rows(split, names, name)
    first = np.empty(0, dtype=np.int64)
    if "loss" in split.stored.columns:
        loss = split.column("loss").read(0, split.rows)
        first = np.argsort(-loss, kind="stable")[: count // 2]
    others = np.setdiff1d(np.arange(split.rows), first)
    places = np.linspace(0, len(others) - 1, min(len(others), count - len(first)))
    return np.concatenate([first, others[np.unique(places.round().astype(np.int64))]])


def _shown(split: UnmaskedSplit, names: list[str] | None, count: int) -> str:
    if names:
        return f"{count} targets that were named"
    spread = "evenly spaced"
    if "loss" not in split.stored.columns:
        return f"{count} targets, {spread}"
    return f"{count} targets: half by largest loss, the others {spread}"


def _ends(
    pairs: Sequence[EpochPair], before: str | None, after: str | None
) -> tuple[Epoch, Epoch] | None:
    """Epochs of the transition; None where the scores are of one epoch and none is named."""
    known = [pair.epoch for pair in pairs]
    first = known[0] if before is None else as_epoch(before)
    last = known[-1] if after is None else as_epoch(after)
    _check_epochs(pairs, (first, last))
    if first == last and not (before is None and after is None):
        raise TrakStoreError(f"a transition takes two epochs, got {first!r} twice")
    return None if first == last else (first, last)


def _check_epochs(pairs: Sequence[EpochPair], named: Sequence[Epoch]) -> None:
    known = [pair.epoch for pair in pairs]
    for epoch in named:
        if epoch not in known:
            raise NotFoundError(f"no epoch {epoch!r} among the scores{did_you_mean(epoch, known)}")


def _named(epochs: Sequence[Epoch]) -> str:
    names = [str(epoch) for epoch in epochs]
    return ", ".join(names) if len(names) <= 8 else f"{names[0]} ... {names[-1]} ({len(names)})"
