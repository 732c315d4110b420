"""``trakstore neighbours``: the train samples whose features or activations are nearest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from trakstore.cli.lists import SHOWN, list_documents, shown_lists
from trakstore.cli.options import Json, ListLength, Target
from trakstore.cli.output import print_result
from trakstore.cli.request import ScoreRequest, with_request
from trakstore.methods.neighbours import neighbours as nearest
from trakstore.report.choices import named_rows
from trakstore.report.labels import with_labels
from trakstore.storage.layout import as_epoch

if TYPE_CHECKING:
    from trakstore.methods.neighbours import Metric

__all__ = ["neighbours"]


@with_request("epoch", "damping", "method", "learning_rate")
def neighbours(
    k: ListLength = 10,
    target: Target = None,
    metric: Annotated[str, typer.Option(help="l2 or cosine.")] = "l2",
    activations: Annotated[
        str | None,
        typer.Option(
            metavar="LAYER",
            help="Compare stored activations of a layer; else gradient features.",
        ),
    ] = None,
    epoch: Annotated[
        str | None, typer.Option(help="A checkpoint; may be left out where there is one.")
    ] = None,
    *,
    asked: ScoreRequest,
    as_json: Json = False,
) -> None:
    """List the train samples nearest to each target, by features or activations of a checkpoint.

    The table shows 20 targets at most; --json has all of them.
    """
    asked.epoch = None if epoch is None else [epoch]
    pair = asked.pairs()[0]
    rows = named_rows(pair.target, target)
    total, rows = len(rows), rows if as_json else rows[:SHOWN]
    with asked.workplace():
        found = nearest(
            asked.opened,
            asked.targets,
            asked.train,
            None if epoch is None else as_epoch(epoch),
            k,
            metric=cast("Metric", metric),
            activations=activations,
            select=rows,
            memory_limit=asked.memory_limit,
            allow_other_weights=asked.allow_other_weights,
        )
    found = with_labels(found, pair, rows)
    document = {
        "location": asked.location,
        **{name: found.attrs[name] for name in ("metric", "epoch", "column")},
        **list_documents(found, rows),
    }
    listed = found.rename(distance="score").assign_attrs(order="nearest")
    print_result(as_json, document, shown_lists(listed, total))
