"""``trakstore transitions``: which train samples gained or lost influence between two epochs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from trakstore.cli.cluster import workplace
from trakstore.cli.lists import target_rows, with_labels
from trakstore.cli.methods import find_method, make_scores
from trakstore.cli.options import (
    AllowOtherWeights,
    Damping,
    Json,
    MemoryLimit,
    Method,
    Null,
    Scheduler,
    StorePath,
    Target,
    Targets,
    Train,
    Workers,
    null_pairs,
)
from trakstore.cli.output import console, print_json, without_nan
from trakstore.errors import TrakStoreError
from trakstore.methods.epochs import epoch_pairs
from trakstore.storage.layout import as_epoch
from trakstore.storage.opening import open_store

if TYPE_CHECKING:
    from trakstore.analysis.transition import Scale
    from trakstore.scores.factored import Scores

__all__ = ["transitions"]


def transitions(
    store: StorePath,
    before: Annotated[str, typer.Option(metavar="EPOCH", help="Before it.", show_default=False)],
    after: Annotated[str, typer.Option(metavar="EPOCH", help="After it.", show_default=False)],
    null: Null = None,
    other_seed: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STORE",
            help="The same epochs under another seed of the projection: a null, too.",
            show_default=False,
        ),
    ] = None,
    scale: Annotated[str, typer.Option(help="standard, rank or raw.")] = "standard",
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Entries of both lists.")] = 10,
    target: Target = None,
    targets: Targets = "test",
    train: Train = "train",
    damping: Damping = 1.0,
    method: Method = "trak",
    memory_limit: MemoryLimit = None,
    allow_other_weights: AllowOtherWeights = False,
    workers: Workers = None,
    scheduler: Scheduler = None,
    as_json: Json = False,
) -> None:
    """List the train samples whose influence on the targets grew and shrank most.

    Without a null there are no p-values: differences are then descriptions, not findings.
    """
    from trakstore.analysis.transition import transition
    from trakstore.report.findings import change_table

    find_method(method)
    if before == after:
        raise TrakStoreError(f"a transition is between two epochs, got {before!r} twice")
    ends = (as_epoch(before), as_epoch(after))
    pairs = null_pairs(null, ends)
    wanted = list(dict.fromkeys([*ends, *(epoch for pair in pairs for epoch in pair)]))
    places = [open_store(one) for one in (store, *(other_seed or ()))]
    allowed = {"allow_other_weights": allow_other_weights}
    pair = epoch_pairs(places[0], targets, train, wanted, **allowed)[0]
    rows = target_rows(pair.target, target, targets)
    with workplace(workers, scheduler):
        own, *others = (
            make_scores(
                method,
                one,
                targets=targets,
                train=train,
                epochs=wanted if one is places[0] else ends,
                damping=damping,
                memory_limit=memory_limit,
                **allowed,
            ).isel(target=rows)
            for one in places
        )
        calm: list[tuple[Scores, Scores]] = [(own.epoch(a), own.epoch(b)) for a, b in pairs]
        calm += [(own.epoch(e), other.epoch(e)) for other in others for e in dict.fromkeys(ends)]
        found = transition(
            own.epoch(ends[0]),
            own.epoch(ends[1]),
            calm,
            scale=cast("Scale", scale),
            k=k,
            memory_limit=memory_limit,
        )
    what = {
        "location": str(places[0].location),
        "method": own.method,
        "scale": scale,
        "before": ends[0],
        "after": ends[1],
        "null_pairs": found.null_pairs,
    }
    lists = {"gained": with_labels(found.gained, pair), "lost": with_labels(found.lost, pair)}
    if as_json:
        print_json({**what, **{title: without_nan(one) for title, one in lists.items()}})
        return
    out = console()
    for title, one in lists.items():
        out.print(change_table(one, title))
    if not found.null_pairs:
        out.print(
            "no p-values: give --null EPOCH,EPOCH, two epochs of a calm phase", soft_wrap=True
        )
