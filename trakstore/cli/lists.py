"""Lists of train samples for each target, as ``topk`` and ``neighbours`` print them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from rich.console import RenderableType

from trakstore.planning import counted
from trakstore.report.terminal_tables import top_table

SHOWN = 20  # targets of a table


def list_documents(top: xr.Dataset, rows: NDArray[np.int64]) -> dict[str, Any]:
    """Write the lists of the targets at ``rows`` as documents, for programs."""
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
    """Yield a table for people, then a line about the ``hidden`` targets that it leaves out."""
    yield top_table(top)
    if "recall" in top.attrs:
        share, checked = 100 * top.attrs["recall"], top.attrs["checked"]
        yield f"these are {share:.0f}% of the true lists, as {checked} of the targets show"
    yield from hidden_targets(hidden)


def hidden_targets(count: int) -> Iterator[str]:
    """Yield a line about the targets that are not shown, where there are some."""
    if count:
        yield f"{counted(count, 'more target')}: choose with --target, or --json for all"
