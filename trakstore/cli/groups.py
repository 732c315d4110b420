"""``trakstore groups``: mean scores between classes, and how much comes from the own class."""

from __future__ import annotations

import numpy as np
import xarray as xr

from trakstore.cli.request import ScoreRequest, with_request
from trakstore.errors import NotFoundError
from trakstore.passes.rows import whole_column
from trakstore.report.analysis_tables import summary_facts
from trakstore.report.group_table import GroupTable
from trakstore.report.terminal_tables import facts_table
from trakstore.scores.sums import group_scores


@with_request("learning_rate", csv=True)
def groups(asked: ScoreRequest) -> None:
    """Show the mean score of each class of targets with each class of train samples.

    Where there are too many classes for the terminal, each class of targets is summed up; --csv and
    --json have all numbers. Also how concentrated scores are: the share of positive score from the own
    class beside the share of that class, the number of train samples that share a score, the Gini
    coefficient.
    """
    from trakstore.analysis.group_influence import class_summary

    limit = asked.memory_limit
    with asked.workplace():
        scores = asked.scores()
        if scores.target_labels is None or scores.train_labels is None:
            raise NotFoundError(
                f"{asked.targets} or {asked.train} has no labels, so that there are no classes"
            )
        means = group_scores(scores, targets="label", train="label", how="mean", memory_limit=limit)
        matrix = np.asarray(means, dtype=np.float64)
        names = [whole_column(ids).tolist() for ids in (means.target_ids, means.train_ids)]
        # Labels of unmasked rows, which the scores have too.
        labels = (whole_column(scores.train_labels), whole_column(scores.target_labels))
        summary = class_summary(scores, *labels, limit)
    numbers = summary.means()
    document = {
        "method": scores.method,
        "epochs": list(scores.epochs),
        "targets": names[0],
        "train": names[1],
        "mean_score": matrix,
        **numbers,
    }
    facts = facts_table(summary_facts(numbers, scores.shape[1]))
    classes = {"target_class": names[0], "train_class": names[1]}
    columns = xr.Dataset({"mean_score": (list(classes), matrix)}, classes)
    asked.answer(document, [GroupTable(matrix, *names), facts], columns)
