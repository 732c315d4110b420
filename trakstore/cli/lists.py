"""Lists of train samples for each target, as ``topk`` and ``neighbours`` print them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from rich.console import RenderableType

from trakstore.planning import counted
from trakstore.report.terminal_tables import top_table

SHOWN = 20  # targets of a table
LOW_RECALL = 0.9  # below which the remedy is printed
_RECALL = ("recall", "candidates", "checked", "recall_k", "recall_candidates")


def recall_document(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of lists that describe an index, for programs; null for NaN."""
    known = {name: said[name] for name in _RECALL if name in said}
    return {name: None if math.isnan(value) else value for name, value in known.items()}


def list_documents(top: xr.Dataset, rows: NDArray[np.int64]) -> dict[str, Any]:
    """Return the lists of the targets at ``rows`` as documents, for programs."""
    targets = [
        {"position": int(row), **_target_document(top.isel(target=at))}
        for at, row in enumerate(rows)
    ]
    return {"k": top.sizes["rank"], "targets": targets}


def _target_document(top: xr.Dataset) -> dict[str, Any]:
    names = [one for one in ("train", "position", "score", "distance", "label") if one in top]
    lists = [top[name].values.tolist() for name in names]
    own = {"label": top["target_label"].item()} if "target_label" in top else {}
    entries = [dict(zip(names, values, strict=True)) for values in zip(*lists, strict=True)]
    return {"target": top["target_id"].item(), **own, "top": entries}


def shown_lists(top: xr.Dataset, hidden: int) -> Iterator[RenderableType]:
    """Yield a table for people, then a line about ``hidden`` targets that are not in it."""
    yield top_table(top)
    if "recall" in top.attrs:
        yield _recall_line(top.attrs)
    yield from hidden_targets(hidden)


def _recall_line(said: Mapping[str, Any]) -> str:
    """Write how much of the true lists an answer has."""
    if "checked" not in said:
        return "these are the true lists: all train rows were candidates, so no index was asked"
    if math.isnan(said["recall"]):
        return f"{said['candidates']} candidates a target; recall was not measured for such lists"
    return (
        f"{100 * said['recall']:.0f}% of the true top-{said['recall_k']} lists of {said['checked']} "
        f"targets were found when the index was built, with {said['recall_candidates']} candidates; "
        f"here {said['candidates']}{low_recall(said['recall'])}"
    )


def low_recall(recall: float) -> str:
    """Write the end of a line about an index: a remedy if it finds few of the true entries."""
    if recall >= LOW_RECALL:
        return ""
    return "; that is low: `trakstore index --anew` may find more, topk without --approximate finds all"


def hidden_targets(count: int) -> Iterator[str]:
    """Yield a line about the targets that are not shown, if there are any."""
    if count:
        yield f"{counted(count, 'more target')}: choose with --target, or --json for all"
