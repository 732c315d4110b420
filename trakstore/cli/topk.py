"""``trakstore topk``: the train samples with the first scores for each target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from trakstore.cli.lists import SHOWN, list_documents, shown_lists
from trakstore.cli.options import Json, ListLength, Target
from trakstore.cli.output import print_result
from trakstore.cli.request import ScoreRequest, with_request
from trakstore.report.choices import check_list_length, named_rows
from trakstore.report.labels import with_labels
from trakstore.scores.top_k import top_k
from trakstore.scores.two_pass import approximate_top_k

if TYPE_CHECKING:
    from trakstore.scores.running_lists import Order

__all__ = ["topk"]


@with_request()
def topk(
    k: ListLength = 10,
    target: Target = None,
    smallest: Annotated[bool, typer.Option("--smallest", help="The most negative first.")] = False,
    magnitude: Annotated[
        bool, typer.Option("--magnitude", help="The largest |score| first.")
    ] = False,
    approximate: Annotated[
        bool,
        typer.Option("--approximate", help="Two passes, for large dims; says its recall."),
    ] = False,
    *,
    asked: ScoreRequest,
    as_json: Json = False,
) -> None:
    """List the train samples with the largest scores for each target.

    The table shows 20 targets at most; --json has all of them.
    """
    order, pair = _order(smallest, magnitude), asked.pairs()[0]
    check_list_length(k, pair.train)
    rows = named_rows(pair.target, target)
    total, rows = len(rows), rows if as_json else rows[:SHOWN]
    with asked.workplace():
        scores = asked.scores()
        first = approximate_top_k if approximate else top_k
        top = first(scores.isel(target=rows), k, order=order, memory_limit=asked.memory_limit)
    top = with_labels(top, pair, rows)
    document = {
        "location": asked.location,
        "method": scores.method,
        "order": order,
        "epochs": list(scores.epochs),
        **{name: top.attrs[name] for name in ("recall", "checked") if name in top.attrs},
        **list_documents(top, rows),
    }
    print_result(as_json, document, shown_lists(top, total))


def _order(smallest: bool, magnitude: bool) -> Order:
    if smallest and magnitude:
        raise typer.BadParameter("--smallest and --magnitude exclude each other")
    return "smallest" if smallest else "magnitude" if magnitude else "largest"
