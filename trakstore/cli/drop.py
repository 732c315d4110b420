"""``trakstore drop``: deletion of saved scores."""

from __future__ import annotations

from typing import Annotated

from typer import Option

from trakstore.cli.options import Json, StorePath
from trakstore.cli.output import print_result
from trakstore.scores.saving import drop_scores
from trakstore.storage.opening import open_store


def drop(
    store: StorePath,
    scores: Annotated[
        list[str],
        Option(
            metavar="NAME",
            help="Name of saved scores, also of a save that was stopped; repeatable.",
        ),
    ],
    as_json: Json = False,
) -> None:
    """Delete saved scores from a store. The features stay, and scores can be computed again."""
    opened = open_store(store)
    for name in scores:
        drop_scores(opened, name)
    document = {"location": str(opened.location), "dropped": scores}
    print_result(as_json, document, [f"dropped from {opened.location}: {', '.join(scores)}"])
