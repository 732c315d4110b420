"""``trakstore topk``: the train samples with the first scores for each target."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import xarray as xr
from typer import BadParameter, Option

from trakstore.cli.lists import SHOWN, list_documents, recall_document, shown_lists
from trakstore.cli.options import ListLength, ScoreDevice, Target
from trakstore.cli.request import ScoreRequest, with_request
from trakstore.report.labels import with_labels
from trakstore.report.targets_and_epochs import check_list_length
from trakstore.scores.top_k import top_k

if TYPE_CHECKING:
    from trakstore.scores.running_lists import Order


@with_request(csv=True)
def topk(
    k: ListLength = 10,
    target: Target = None,
    smallest: Annotated[bool, Option("--smallest", help="List the most negative first.")] = False,
    magnitude: Annotated[
        bool, Option("--magnitude", help="List the largest |score| first.")
    ] = False,
    approximate: Annotated[
        bool,
        Option(
            "--approximate",
            help="Ask the index (trakstore index): exact scores of what it finds; its recall is shown.",
        ),
    ] = False,
    device: ScoreDevice = "cpu",
    *,
    asked: ScoreRequest,
) -> None:
    """List the train samples with the largest scores for each target.

    The table shows 20 targets at most; --json and --csv have all of them.
    """
    order = _order(smallest, magnitude)
    pair, rows, hidden = asked.chosen_targets(target, SHOWN)
    check_list_length(k, pair.train)
    with asked.workplace():
        scores = asked.scores(device)
        top = _lists(approximate)(
            scores.isel(target=rows), k, order=order, memory_limit=asked.memory_limit
        )
    top = with_labels(top, pair, rows)
    document = {
        "method": scores.method,
        "order": order,
        "epochs": list(scores.epochs),
        **recall_document(top.attrs),
        **list_documents(top, rows),
    }
    asked.answer(document, shown_lists(top, hidden), top)


def _lists(approximate: bool) -> Callable[..., xr.Dataset]:
    """Return what makes the lists; the index is imported where it is asked, as numba comes with it."""
    if not approximate:
        return top_k
    from trakstore.scores.approximate import approximate_top_k

    return approximate_top_k


def _order(smallest: bool, magnitude: bool) -> Order:
    if smallest and magnitude:
        raise BadParameter("--smallest and --magnitude exclude each other")
    return "smallest" if smallest else "magnitude" if magnitude else "largest"
