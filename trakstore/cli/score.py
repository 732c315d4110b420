"""``trakstore score``: a whole score matrix, streamed to the store."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from trakstore.cli.methods import find_method, make_scores
from trakstore.cli.options import (
    Damping,
    Epochs,
    Json,
    MemoryLimit,
    Method,
    StorePath,
    Targets,
    Train,
    chosen_epochs,
)
from trakstore.cli.output import console, print_json
from trakstore.linalg.saving import check_new_name, save_scores
from trakstore.planning import human_bytes
from trakstore.report.tables import facts_table
from trakstore.storage.layout import scores_path
from trakstore.storage.store import open_store

__all__ = ["score"]


def score(
    store: StorePath,
    save: Annotated[
        str,
        typer.Option(metavar="NAME", help="Name of the matrix in the store.", show_default=False),
    ],
    targets: Targets = "test",
    train: Train = "train",
    epoch: Epochs = None,
    damping: Damping = 1.0,
    method: Method = "trak",
    memory_limit: MemoryLimit = None,
    as_json: Json = False,
) -> None:
    """Compute the score of every target with every train row, and save the matrix in the store."""
    group, opened, began = scores_path(save), open_store(store), time.monotonic()
    check_new_name(opened, save)
    find_method(method)
    scores = make_scores(
        method,
        opened,
        targets=targets,
        train=train,
        epochs=chosen_epochs(epoch),
        damping=damping,
        memory_limit=memory_limit,
    )
    save_scores(scores, opened, save, memory_limit=memory_limit)
    summary = {
        "location": str(opened.location),
        "group": group,
        "method": scores.method,
        "targets": targets,
        "train": train,
        "shape": list(scores.shape),
        "epochs": list(scores.epochs),
        "damping": damping,
        "seconds": round(time.monotonic() - began, 3),
    }
    if as_json:
        print_json(summary)
        return
    rows, columns = scores.shape
    facts = {
        "scores": f"{scores.method}, {targets} on {train}",
        "shape": f"{rows:,} targets x {columns:,} train rows, {human_bytes(4 * rows * columns)}",
        "epochs": ", ".join(map(str, scores.epochs)),
        "damping": f"{damping:g}",
        "took": f"{summary['seconds']:.1f} s",
        "saved as": f"{group} in {opened.location}",
        "open with": f'trakstore.open_scores("{opened.location}", "{save}")',
    }
    console().print(facts_table(facts))
