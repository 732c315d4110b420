"""``trakstore neighbours``: the train samples whose features or activations are nearest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

from typer import Option

from trakstore.cli.lists import SHOWN, list_documents, shown_lists
from trakstore.cli.options import ListLength, Target
from trakstore.cli.request import ScoreRequest, with_request
from trakstore.methods.neighbours import neighbours as nearest
from trakstore.report.labels import with_labels
from trakstore.storage.layout import as_epoch

if TYPE_CHECKING:
    from trakstore.methods.neighbours import Metric


@with_request("epoch", "damping", "kernel", "method", "learning_rate", csv=True)
def neighbours(
    k: ListLength = 10,
    target: Target = None,
    metric: Annotated[str, Option(metavar="METRIC", help="l2 or cosine.")] = "l2",
    activations: Annotated[
        str | None,
        Option(
            metavar="LAYER",
            help="Compare stored activations of a layer; default: gradient features.",
        ),
    ] = None,
    epoch: Annotated[
        str | None,
        Option(metavar="EPOCH", help="A checkpoint; may be left out where there is one."),
    ] = None,
    *,
    asked: ScoreRequest,
) -> None:
    """List the train samples nearest to each target, by features or activations of a checkpoint.

    The table shows 20 targets at most; --json and --csv have all of them.
    """
    asked.epoch = None if epoch is None else [epoch]
    pair, rows, hidden = asked.chosen_targets(target, SHOWN)
    with asked.workplace():
        nearest_rows = nearest(
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
    nearest_rows = with_labels(nearest_rows, pair, rows)
    document = {
        **{name: nearest_rows.attrs[name] for name in ("metric", "epoch", "column")},
        **list_documents(nearest_rows, rows),
    }
    # For people a distance is shown in the place of a score, with its own heading.
    listed = nearest_rows.rename(distance="score").assign_attrs(order="nearest")
    asked.answer(document, shown_lists(listed, hidden), nearest_rows)
