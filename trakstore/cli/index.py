"""``trakstore index``: an index of train rows, by which single targets are answered quickly."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from typer import Option

from trakstore.cli.lists import low_recall
from trakstore.cli.request import ScoreRequest, with_request
from trakstore.planning import human_bytes
from trakstore.scores.index_build import build_index
from trakstore.scores.index_recall import MEASURED_ORDER, recall_of
from trakstore.scores.train_index import TrainIndex
from trakstore.storage.tables.index_documents import Recall


@with_request()
def index(
    checked: Annotated[
        int,
        Option(
            metavar="N",
            help="Targets whose exact lists are compared with those of the index.",
            min=0,
        ),
    ] = 16,
    anew: Annotated[
        bool, Option("--anew", help="Build it by the rows as they are now, whatever is stored.")
    ] = False,
    *,
    asked: ScoreRequest,
) -> None:
    """Build an index of the train rows, or add the rows that were appended since.

    `trakstore topk --approximate` and `trakstore serve --index` ask it. It is kept in the store, and
    serves all methods; the share of the true lists that it finds is measured for the method and damping
    that are named. It is quick for uncompressed stores on a local disk; elsewhere whole chunks are read
    for each target. Where the recall is low, --anew may find more.
    """
    with asked.workplace():
        scores = asked.scores()
        made = build_index(scores, checked=checked, anew=anew, memory_limit=asked.memory_limit)
        known = recall_of(made, scores, MEASURED_ORDER)
    recall: dict[str, Any] = {"recall": None} if known is None else asdict(known)
    paths = [one.path for one in made.parts]
    document = {"index": paths, "bytes": made.nbytes, "rows": made.rows, **recall}
    asked.answer(document, _shown(made, known))


def _shown(made: TrainIndex, known: Recall | None) -> list[str]:
    paths = ", ".join(one.path for one in made.parts)
    lines = [f"{paths}: {made.rows:,} rows, {human_bytes(made.nbytes)}"]
    if known is not None:
        share, checked = f"{100 * known.recall:.0f}%", known.checked
        lines.append(
            f"it finds {share} of the true top-{known.k} lists, as {checked} targets show"
            f"{low_recall(known.recall)}"
        )
    return lines
