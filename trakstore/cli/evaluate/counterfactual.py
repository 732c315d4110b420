"""``trakstore evaluate counterfactual``: train without what targets are said to owe their output to."""

from __future__ import annotations

from typing import Annotated

import typer

from trakstore.cli.cluster import workplace
from trakstore.cli.evaluate.trainers import AtOnce, Models, Repeats, load_trainer
from trakstore.cli.lists import target_rows
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
    Target,
    Targets,
    Train,
    Workers,
    chosen_epochs,
)
from trakstore.cli.output import console, print_json, without_nan
from trakstore.methods.epochs import epoch_pairs
from trakstore.progress import ProgressLine
from trakstore.storage.opening import open_store

__all__ = ["counterfactual"]


def counterfactual(
    store: StorePath,
    models: Models,
    trainer: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="What trains models, such as jobs.py:trainer.", show_default=False
        ),
    ],
    size: Annotated[
        list[int] | None,
        typer.Option(help="Samples that are taken away; several times for several. 10 and 50."),
    ] = None,
    repeats: Repeats = 5,
    seed: Annotated[int, typer.Option(help="Of training and random removals.")] = 0,
    at_once: AtOnce = 50,
    target: Target = None,
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
    """Train again without each target's top samples, and without as many others.

    Shows how much the target's output falls and how often its class changes, beside random removals
    and removals of its own class. Models are kept in the store: a run that is stopped goes on.
    """
    from trakstore.evaluation.counterfactual import counterfactual as removed
    from trakstore.evaluation.counterfactual import removal_kinds
    from trakstore.report.evaluations import removal_table

    find_method(method)
    opened, made, sizes = open_store(store), load_trainer(trainer), size or [10, 50]
    epochs = chosen_epochs(epoch)
    pair = epoch_pairs(opened, targets, train, epochs, allow_other_weights=allow_other_weights)[0]
    rows = target_rows(pair.target, target, targets)
    with workplace(workers, scheduler):
        scores = make_scores(
            method,
            opened,
            targets=targets,
            train=train,
            epochs=epochs,
            damping=damping,
            memory_limit=memory_limit,
            allow_other_weights=allow_other_weights,
        )
        removals = 1 + len(removal_kinds(scores)) * len(rows) * len(sizes)
        with ProgressLine("training", removals * repeats, unit="models") as line:
            found = removed(
                scores,
                made,
                opened,
                models,
                sizes=sizes,
                targets=rows.tolist(),
                repeats=repeats,
                seed=seed,
                at_once=at_once,
                memory_limit=memory_limit,
                finished=line.advance,
            )
    if as_json:
        print_json({"location": str(opened.location), "method": method, **without_nan(found)})
    else:
        console().print(removal_table(found))
