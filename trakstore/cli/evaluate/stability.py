"""``trakstore evaluate stability``: agreement of scores over seeds or checkpoints."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from typer import Option

from trakstore.cli.request import ScoreRequest, with_request
from trakstore.evaluation.agreement import stability as likeness
from trakstore.report.terminal_tables import facts_table


@with_request("learning_rate")
def stability(
    other: Annotated[
        list[str] | None,
        Option(metavar="STORE", help="Store of the same splits under another seed; repeatable."),
    ] = None,
    k: Annotated[int, Option("--k", "-k", metavar="N", min=1, help="Length of the lists.")] = 10,
    *,
    asked: ScoreRequest,
) -> None:
    """Show how alike the scores of several stores are, or without --other, those of single epochs.

    Spearman's correlation of all scores, and Jaccard and rank-biased overlap of the top lists; means
    over targets and pairs of runs.
    """
    requests = [asked, *(replace(asked, store=one) for one in other or ())]
    with asked.workplace():
        matrices = [request.scores() for request in requests]
        # Without other stores, the epochs of this one are compared.
        runs = matrices if other else [matrices[0].epoch(one) for one in matrices[0].epochs]
        agreement = likeness(runs, k, asked.memory_limit)
    over = "stores" if other else "epochs"
    document = {"over": over, "runs": len(runs), **agreement}
    facts = {name.replace("_", " "): f"{value:.3f}" for name, value in agreement.items()}
    table = facts_table({"compared": f"{len(runs)} {over}, top {k}", **facts})
    asked.answer(document, [table])
