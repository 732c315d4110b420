"""``trakstore evaluate stability``: whether seeds or checkpoints give the same scores."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from trakstore.cli.cluster import workplace
from trakstore.cli.methods import find_method, make_scores
from trakstore.cli.options import (
    AllowOtherWeights,
    Damping,
    Epochs,
    Json,
    MemoryLimit,
    Method,
    Scheduler,
    StorePath,
    Targets,
    Train,
    Workers,
    chosen_epochs,
)
from trakstore.cli.output import console, print_json
from trakstore.storage.opening import open_store

__all__ = ["stability"]


def stability(
    store: StorePath,
    other: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STORE",
            help="The same splits under another seed; several times for several.",
            show_default=False,
        ),
    ] = None,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Length of the lists.")] = 10,
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
    """Show how alike the scores of several stores are, or without --other, those of single epochs.

    Spearman's correlation of all scores, and Jaccard and rank-biased overlap of the top lists; means
    over targets and pairs of runs.
    """
    from trakstore.evaluation.stability import stability as alike
    from trakstore.report.tables import facts_table

    find_method(method)
    places = [open_store(one) for one in (store, *(other or ()))]
    common: dict[str, Any] = {"targets": targets, "train": train, "damping": damping}
    common["allow_other_weights"] = allow_other_weights
    with workplace(workers, scheduler):
        made = [
            make_scores(
                method, one, epochs=chosen_epochs(epoch), memory_limit=memory_limit, **common
            )
            for one in places
        ]
        runs = made if other else [made[0].epoch(one) for one in made[0].epochs]
        found = alike(runs, k, memory_limit)
    over = "stores" if other else "epochs"
    if as_json:
        print_json({"location": str(places[0].location), "over": over, "runs": len(runs), **found})
        return
    facts = {name.replace("_", " "): f"{value:.3f}" for name, value in found.items()}
    console().print(facts_table({"compared": f"{len(runs)} {over}, top {k}", **facts}))
