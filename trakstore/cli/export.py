"""``trakstore export``: a split as one file for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from trakstore.cli.options import Json, StorePath
from trakstore.cli.output import print_result
from trakstore.planning import human_bytes
from trakstore.storage.exchange.to_files import export_split
from trakstore.storage.layout import FEATURES, as_epoch


def export(
    store: StorePath,
    epoch: Annotated[str, Option(metavar="EPOCH", help="The checkpoint.")],
    to: Annotated[
        Path, Option(metavar="FILE", help="A new .npy or .parquet file.", dir_okay=False)
    ],
    split: Annotated[str, Option(metavar="SPLIT", help="The split.")] = "train",
    column: Annotated[str, Option(metavar="COLUMN", help="The column of an .npy file.")] = FEATURES,
    as_json: Json = False,
) -> None:
    """Copy a split to a .npy (one column) or Parquet (all columns) file, block by block."""
    rows = export_split(store, as_epoch(epoch), split, to, column=column)
    size = to.stat().st_size  # as written: Parquet compresses
    document = {"file": str(to), "rows": rows, "bytes": size}
    print_result(as_json, document, [f"{to}: {rows:,} rows, {human_bytes(size)}"])
