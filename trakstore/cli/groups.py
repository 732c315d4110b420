"""``trakstore groups``: mean scores between classes, and how much comes from the own class."""

from __future__ import annotations

from typing import Any

import numpy as np

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
from trakstore.errors import NotFoundError
from trakstore.storage.opening import open_store

__all__ = ["groups"]


def groups(
    store: StorePath,
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
    """Show the mean score of each class of targets with each class of train samples.

    Also how concentrated scores are: the share of positive score from the own class beside the share
    of that class, the number of train samples that share a score, the Gini coefficient.
    """
    from trakstore.analysis.group_influence import class_summary
    from trakstore.passes.rows import whole_column
    from trakstore.report.findings import group_table, summary_facts
    from trakstore.report.tables import facts_table
    from trakstore.scores.sums import group_scores

    find_method(method)
    opened = open_store(store)
    with workplace(workers, scheduler):
        scores = make_scores(
            method,
            opened,
            targets=targets,
            train=train,
            epochs=chosen_epochs(epoch),
            damping=damping,
            memory_limit=memory_limit,
            allow_other_weights=allow_other_weights,
        )
        if scores.target_labels is None or scores.train_labels is None:
            raise NotFoundError(f"{targets} or {train} has no labels, so that there are no classes")
        means = group_scores(
            scores, targets="label", train="label", how="mean", memory_limit=memory_limit
        )
        matrix = np.asarray(means, dtype=np.float64)
        names = [whole_column(ids).tolist() for ids in (means.target_ids, means.train_ids)]
        labels = (whole_column(scores.train_labels), whole_column(scores.target_labels))
        found = class_summary(scores, *labels, memory_limit)
    numbers = found.means()
    what: dict[str, Any] = {"location": str(opened.location), "method": scores.method}
    if as_json:
        table = {"targets": names[0], "train": names[1], "mean_score": matrix}
        print_json({**what, "epochs": list(scores.epochs), **table, **numbers})
        return
    out = console()
    out.print(group_table(matrix, *names))
    out.print(facts_table(summary_facts(numbers, scores.shape[1])))
