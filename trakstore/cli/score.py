"""``trakstore score``: a whole score matrix, streamed to the store."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from trakstore.cli.cluster import workplace
from trakstore.cli.methods import find_method, make_scores
from trakstore.cli.options import (
    AllowOtherWeights,
    Damping,
    Epochs,
    Json,
    LearningRate,
    MemoryLimit,
    Method,
    Scheduler,
    StorePath,
    Targets,
    Train,
    Workers,
    chosen_epochs,
    learning_rates,
)
from trakstore.cli.output import console, print_json
from trakstore.planning import human_bytes
from trakstore.report.tables import facts_table
from trakstore.scores.saving import check_new_name, save_scores
from trakstore.storage.layout import scores_path
from trakstore.storage.opening import open_store

__all__ = ["score"]


def score(
    store: StorePath,
    save: Annotated[
        str,
        typer.Option(metavar="NAME", help="Name of the matrix in the store.", show_default=False),
    ],
    top: Annotated[
        int | None,
        typer.Option(
            metavar="K", help="Keep the K largest |score| of each target.", show_default=False
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(metavar="T", help="Keep the scores with |score| >= T.", show_default=False),
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Save float16 instead of float32.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace scores that are saved under this name.")
    ] = False,
    targets: Targets = "test",
    train: Train = "train",
    epoch: Epochs = None,
    damping: Damping = 1.0,
    method: Method = "trak",
    learning_rate: LearningRate = None,
    memory_limit: MemoryLimit = None,
    allow_other_weights: AllowOtherWeights = False,
    workers: Workers = None,
    scheduler: Scheduler = None,
    as_json: Json = False,
) -> None:
    """Compute the score of every target with every train row, and save the matrix in the store.

    A save that was stopped goes on where it was: give the same command again.
    """
    if top is not None and threshold is not None:
        raise typer.BadParameter("--top and --threshold exclude each other")
    group, opened, began = scores_path(save), open_store(store), time.monotonic()
    if not overwrite:
        check_new_name(opened, save)
    find_method(method)
    with workplace(workers, scheduler):
        scores = make_scores(
            method,
            opened,
            targets=targets,
            train=train,
            epochs=chosen_epochs(epoch),
            damping=damping,
            memory_limit=memory_limit,
            learning_rates=learning_rates(learning_rate),
            allow_other_weights=allow_other_weights,
        )
        save_scores(
            scores,
            opened,
            save,
            top=top,
            threshold=threshold,
            dtype="float16" if half else "float32",
            memory_limit=memory_limit,
            overwrite=overwrite,
        )
    summary = {
        "location": str(opened.location),
        "group": group,
        "method": scores.method,
        "targets": targets,
        "train": train,
        "shape": list(scores.shape),
        "dtype": "float16" if half else "float32",
        "top": top,
        "threshold": threshold,
        "epochs": list(scores.epochs),
        "damping": damping,
        "seconds": round(time.monotonic() - began, 3),
    }
    if as_json:
        print_json(summary)
        return
    rows, columns = scores.shape
    if top is not None or threshold is not None:
        kept = f"top {top} of each target" if top else f"|score| >= {threshold:g}"
    else:
        kept = human_bytes((2 if half else 4) * rows * columns)
    facts = {
        "scores": f"{scores.method}, {targets} on {train}",
        "shape": f"{rows:,} targets x {columns:,} train rows, {kept}",
        "epochs": ", ".join(map(str, scores.epochs)),
        "damping": f"{damping:g}",
        "took": f"{summary['seconds']:.1f} s",
        "saved as": f"{group} in {opened.location}",
        "open with": f'trakstore.open_scores("{opened.location}", "{save}")',
    }
    console().print(facts_table(facts))
