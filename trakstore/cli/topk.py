"""``trakstore topk``: the train samples with the first scores for each target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
import xarray as xr
from numpy.typing import NDArray

from trakstore.cli.cluster import workplace
from trakstore.cli.methods import find_method, make_scores
from trakstore.cli.options import (
    Damping,
    Epochs,
    Json,
    MemoryLimit,
    Method,
    Scheduler,
    StorePath,
    Targets,
    Train,
    Workers,
    chosen_epochs,
)
from trakstore.cli.output import console, print_json
from trakstore.errors import NotFoundError, TrakStoreError
from trakstore.linalg.rows import TakenRows
from trakstore.scores.splits import EpochPair, UnmaskedSplit, epoch_pairs
from trakstore.storage.store import FeatureStore, open_store

if TYPE_CHECKING:
    from trakstore.linalg.factored import Scores
    from trakstore.linalg.topk import Order

__all__ = ["topk"]

SHOWN = 20  # targets of a table


def topk(
    store: StorePath,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Entries of each list.")] = 10,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            metavar="ID",
            help="A sample id, or @N for row N. Several times for several; else all.",
            show_default=False,
        ),
    ] = None,
    smallest: Annotated[bool, typer.Option("--smallest", help="The most negative first.")] = False,
    magnitude: Annotated[
        bool, typer.Option("--magnitude", help="The largest |score| first.")
    ] = False,
    targets: Targets = "test",
    train: Train = "train",
    epoch: Epochs = None,
    damping: Damping = 1.0,
    method: Method = "trak",
    memory_limit: MemoryLimit = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    as_json: Json = False,
) -> None:
    """List the train samples with the largest scores for each target.

    The table shows 20 targets at most; --json has all of them.
    """
    from trakstore.linalg.topk import top_k

    order = _order(smallest, magnitude)
    find_method(method)
    opened, epochs = open_store(store), chosen_epochs(epoch)
    pair = epoch_pairs(opened, targets, train, epochs)[0]
    if k > pair.train.rows:  # before a kernel is computed
        raise TrakStoreError(f"--k must be in 1..{pair.train.rows}, the rows of {train}, got {k}")
    rows = _target_rows(pair.target, target, targets)
    total, rows = len(rows), rows if as_json else rows[:SHOWN]
    with workplace(workers, scheduler):
        scores = make_scores(
            method,
            opened,
            targets=targets,
            train=train,
            epochs=epochs,
            damping=damping,
            memory_limit=memory_limit,
        )
        top = top_k(scores.isel(target=rows), k, order=order, memory_limit=memory_limit)
    top = _with_labels(top, pair, rows)
    if as_json:
        print_json(_document(top, opened, scores, rows))
    else:
        _show(top, total)


def _order(smallest: bool, magnitude: bool) -> Order:
    if smallest and magnitude:
        raise typer.BadParameter("--smallest and --magnitude exclude each other")
    return "smallest" if smallest else "magnitude" if magnitude else "largest"


def _target_rows(targets: UnmaskedSplit, names: list[str] | None, split: str) -> NDArray[np.int64]:
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
    return np.array([rows[name] for name in names], dtype=np.int64)


def _with_labels(top: xr.Dataset, pair: EpochPair, rows: NDArray[np.int64]) -> xr.Dataset:
    """``top`` with the variables ``label`` and ``target_label`` where both splits have labels."""
    if not all("label" in side.stored.columns for side in (pair.train, pair.target)):
        return top
    positions = top["position"].values  # of stored rows, masked ones counted
    labels = TakenRows(pair.train.stored.column("label"), positions.ravel()).read(0, positions.size)
    own = TakenRows(pair.target.column("label"), rows).read(0, len(rows))
    return top.assign(
        label=(("target", "rank"), labels.reshape(positions.shape)), target_label=("target", own)
    )


def _document(
    top: xr.Dataset, store: FeatureStore, scores: Scores, rows: NDArray[np.int64]
) -> dict[str, Any]:
    return {
        "location": str(store.location),
        "method": scores.method,
        "order": top.attrs["order"],
        "epochs": list(scores.epochs),
        "k": top.sizes["rank"],
        "targets": [
            {"position": int(row), **_target_document(top.isel(target=at))}
            for at, row in enumerate(rows)
        ],
    }


def _target_document(top: xr.Dataset) -> dict[str, Any]:
    names = [name for name in ("train", "position", "score", "label") if name in top]
    lists = [top[name].values.tolist() for name in names]
    own = {"label": top["target_label"].item()} if "target_label" in top else {}
    entries = [dict(zip(names, values, strict=True)) for values in zip(*lists, strict=True)]
    return {"target": top["target_id"].item(), **own, "top": entries}


def _show(top: xr.Dataset, total: int) -> None:
    from trakstore.report.tables import top_table

    out = console()
    out.print(top_table(top))
    if total > top.sizes["target"]:
        out.print(
            f"{total - top.sizes['target']} more targets: choose with --target, or --json for all",
            soft_wrap=True,
        )
