"""``trakstore import``: features that traker made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trakstore.cli.options import Json
from trakstore.cli.output import console, print_json
from trakstore.errors import TrakStoreError
from trakstore.storage.exchange.from_traker import import_traker

__all__ = ["import_"]


def import_(
    save_dir: Annotated[
        Path, typer.Argument(metavar="SAVE_DIR", help="TRAKer's save_dir.", show_default=False)
    ],
    store: Annotated[
        str, typer.Option(metavar="PATH", help="Where the store is to be.", show_default=False)
    ],
    model: Annotated[
        list[int] | None,
        typer.Option(
            metavar="ID",
            help="A model id; several times for several, else all.",
            show_default=False,
        ),
    ] = None,
    parameters: Annotated[
        int | None,
        typer.Option(
            help="Scalars that were differentiated, to scale features.", show_default=False
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or float16.")] = "float32",
    as_json: Json = False,
) -> None:
    """Copy the features of a finished traker 0.3 run into a store, an epoch for each model id."""
    if dtype not in ("float32", "float16"):
        raise TrakStoreError(f"features are stored as float32 or float16, got {dtype!r}")
    made = import_traker(
        save_dir,
        store,
        models=model or None,
        parameters=parameters,
        dtype="float16" if dtype == "float16" else "float32",
    )
    status = made.status()
    if as_json:
        splits = [{"epoch": one.epoch, "split": one.split, "rows": one.rows} for one in status]
        print_json({"location": str(made.location), "splits": splits})
        return
    out = console()
    for one in status:
        out.print(f"{one.split} at epoch {one.epoch}: {one.rows:,} rows", soft_wrap=True)
    if parameters is None:
        out.print("scale: as traker stored them; --parameters gives that of gradients")
    out.print(f"next: trakstore info {made.location}", soft_wrap=True)
