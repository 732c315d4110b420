"""``trakstore transitions``: train samples that gained or lost influence between two epochs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, cast

import xarray as xr
from rich.console import RenderableType
from typer import Option

from trakstore.cli.options import Null, Target
from trakstore.cli.output import without_nan
from trakstore.cli.request import ScoreRequest, with_request
from trakstore.errors import TrakStoreError
from trakstore.report.analysis_tables import change_table
from trakstore.report.labels import with_labels
from trakstore.report.targets_and_epochs import null_pairs
from trakstore.storage.layout import as_epoch

if TYPE_CHECKING:
    from trakstore.analysis.transition import Scale


@with_request("epoch", "learning_rate", csv=True)
def transitions(
    before: Annotated[str, Option(metavar="EPOCH", help="Epoch before the transition.")],
    after: Annotated[str, Option(metavar="EPOCH", help="Epoch after the transition.")],
    null: Null = None,
    other_seed: Annotated[
        list[str] | None,
        Option(
            metavar="STORE",
            help="Store of the same epochs under another seed: a null, too; repeatable.",
        ),
    ] = None,
    scale: Annotated[str, Option(metavar="SCALE", help="standard, rank or raw.")] = "standard",
    k: Annotated[int, Option("--k", "-k", metavar="N", min=1, help="Entries of both lists.")] = 10,
    target: Target = None,
    *,
    asked: ScoreRequest,
) -> None:
    """List the train samples whose influence on the targets grew and shrank most.

    Without a null there are no p-values: differences are then descriptions, not findings.
    """
    from trakstore.analysis.transition import transition

    ends = (as_epoch(before), as_epoch(after))
    if before == after:
        raise TrakStoreError(f"a transition is between two epochs, got {before!r} twice")
    pairs = null_pairs([text.split(",") for text in null or ()], ends)
    # A request for each other store, which is opened, and its options checked, as it is made.
    others = [replace(asked, store=one, epoch=[before, after]) for one in other_seed or ()]
    asked.epoch = [str(e) for e in dict.fromkeys([*ends, *(e for pair in pairs for e in pair)])]
    split_pair, rows, _ = asked.chosen_targets(target)
    with asked.workplace():
        own, *seeds = (one.scores().isel(target=rows) for one in (asked, *others))
        null_scores = [(own.epoch(first), own.epoch(second)) for first, second in pairs]
        null_scores += [(own.epoch(end), seed.epoch(end)) for seed in seeds for end in ends]
        change = transition(
            own.epoch(ends[0]),
            own.epoch(ends[1]),
            null_scores,
            scale=cast("Scale", scale),
            k=k,
            memory_limit=asked.memory_limit,
        )
    lists = {
        "gained": with_labels(change.gained, split_pair),
        "lost": with_labels(change.lost, split_pair),
    }
    document = {
        "method": own.method,
        "scale": scale,
        "before": ends[0],
        "after": ends[1],
        "null_pairs": change.null_pairs,
        **{title: without_nan(one) for title, one in lists.items()},
    }
    columns = xr.concat(list(lists.values()), xr.DataArray(list(lists), dims="list", name="list"))
    asked.answer(document, _tables(lists, change.null_pairs), columns)


def _tables(lists: Mapping[str, xr.Dataset], null_count: int) -> Iterator[RenderableType]:
    for title, one in lists.items():
        yield change_table(one, title)
    if not null_count:
        yield "no p-values: give --null EPOCH,EPOCH, two epochs between which nothing happened"
