"""Lists of train samples for each target: which targets, their labels, and how they are printed."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from trakstore.cli.output import console
from trakstore.errors import NotFoundError, TrakStoreError
from trakstore.methods.epochs import EpochPair, UnmaskedSplit
from trakstore.passes.rows import TakenRows
from trakstore.planning import counted
from trakstore.storage.store import FeatureStore

__all__ = ["SHOWN", "lists_document", "say_more", "show_lists", "target_rows", "with_labels"]

SHOWN = 20  # targets of a table


def target_rows(targets: UnmaskedSplit, names: list[str] | None, split: str) -> NDArray[np.int64]:
    """Rows of the targets that are named, by their ids or as @N; all when none are.

    Raises
    ------
    NotFoundError
        With some of the ids that there are.
    TrakStoreError
        When one is named twice.
    """
    count = targets.rows
    if not names:
        return np.arange(count)
    ids = [str(one) for one in targets.column("sample_id").read(0, count).tolist()]
    rows = {one: row for row, one in enumerate(ids)}
    rows = {**{f"@{row}": row for row in range(count)}, **rows}
    for name in names:
        if name not in rows:
            shown = ", ".join(ids[:3]) + (", ..." if count > 3 else "")
            raise NotFoundError(
                f"{split} has no sample id {name!r}; its ids are {shown}; @N names row N, "
                f"from @0 to @{count - 1}"
            )
    chosen = [rows[name] for name in names]
    for at, row in enumerate(chosen):
        if row in chosen[:at]:
            raise TrakStoreError(f"--target names one sample twice: {ids[row]!r}, row {row}")
    return np.array(chosen, dtype=np.int64)


def with_labels(
    found: xr.Dataset, pair: EpochPair, rows: NDArray[np.int64] | None = None
) -> xr.Dataset:
    """``found`` with ``label``, of the train samples at its ``position``.

    With ``target_label``, too, where it is about the targets at ``rows``. As it is where a split that
    this needs has no labels.
    """
    sides = [pair.train.stored] if rows is None else [pair.train.stored, pair.target.stored]
    if not all("label" in side.columns for side in sides):
        return found
    positions = found["position"]  # of stored rows, masked ones counted
    taken = TakenRows(pair.train.stored.column("label"), positions.values.ravel())
    labels = taken.read(0, positions.size).reshape(positions.shape)
    labelled = found.assign(label=(positions.dims, labels))
    if rows is None:
        return labelled
    own = TakenRows(pair.target.column("label"), rows).read(0, len(rows))
    return labelled.assign(target_label=("target", own))


def lists_document(
    top: xr.Dataset, store: FeatureStore, rows: NDArray[np.int64], **what: Any
) -> dict[str, Any]:
    """Everything for programs; ``what`` says how the lists came about."""
    return {
        "location": str(store.location),
        **what,
        "k": top.sizes["rank"],
        "targets": [
            {"position": int(row), **_target_document(top.isel(target=at))}
            for at, row in enumerate(rows)
        ],
    }


def _target_document(top: xr.Dataset) -> dict[str, Any]:
    names = [one for one in ("train", "position", "score", "distance", "label") if one in top]
    lists = [top[name].values.tolist() for name in names]
    own = {"label": top["target_label"].item()} if "target_label" in top else {}
    entries = [dict(zip(names, values, strict=True)) for values in zip(*lists, strict=True)]
    return {"target": top["target_id"].item(), **own, "top": entries}


def show_lists(top: xr.Dataset, total: int) -> None:
    """A table for people, and how many targets it leaves out."""
    from trakstore.report.tables import top_table

    out = console()
    out.print(top_table(top))
    if "recall" in top.attrs:
        share, checked = 100 * top.attrs["recall"], top.attrs["checked"]
        out.print(f"these are {share:.0f}% of the true lists, as {checked} of the targets show")
    say_more(total - top.sizes["target"])


def say_more(count: int) -> None:
    """How many targets are not shown, and how to see them."""
    if count:
        more = counted(count, "more target")
        console().print(f"{more}: choose with --target, or --json for all", soft_wrap=True)
