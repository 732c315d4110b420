"""``trakstore import``: features that traker made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

from typer import Argument, Option

from trakstore.cli.options import Json, StoredDtype
from trakstore.cli.output import print_result
from trakstore.storage.exchange.from_traker import import_traker

if TYPE_CHECKING:
    from trakstore.spec import FeatureDtype


def import_(
    save_dir: Annotated[Path, Argument(metavar="SAVE_DIR", help="TRAKer's save_dir.")],
    store: Annotated[str, Option(metavar="PATH", help="Path of the store to make.")],
    model: Annotated[
        list[int] | None,
        Option(metavar="ID", help="A model id, repeatable; default: all."),
    ] = None,
    parameters: Annotated[
        int | None, Option(metavar="N", help="Scalars that were differentiated, to scale features.")
    ] = None,
    dtype: StoredDtype = "float32",
    as_json: Json = False,
) -> None:
    """Copy the features of a finished traker 0.3 run into a store, an epoch for each model id."""
    written = import_traker(
        save_dir,
        store,
        models=model or None,
        parameters=parameters,
        dtype=cast("FeatureDtype", dtype),
    )
    splits = [{"epoch": s.epoch, "split": s.split, "rows": s.rows} for s in written.status()]
    lines = [f"{s['split']} at epoch {s['epoch']}: {s['rows']:,} rows" for s in splits]
    if parameters is None:
        lines.append("scale: as traker stored them; --parameters gives that of gradients")
    lines.append(f"next: trakstore info {written.location}")
    print_result(as_json, {"location": str(written.location), "splits": splits}, lines)
