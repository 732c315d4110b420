"""Copies of a split for other programs: ``.npy`` and Parquet, written block by block."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trakstore.errors import LocationError, TrakStoreError
from trakstore.paths import exists
from trakstore.planning import CHUNK_BYTES, ranges
from trakstore.storage import layout
from trakstore.storage.arrays import column_shape
from trakstore.storage.backends.location import Where
from trakstore.storage.exchange.named_files import check_file_place, writing
from trakstore.storage.layout import Epoch
from trakstore.storage.opening import open_store
from trakstore.storage.split import Split
from trakstore.storage.store import FeatureStore

if TYPE_CHECKING:
    import pyarrow as pa


def export_split(
    store: Where | FeatureStore,
    epoch: Epoch,
    split: str,
    to: str | os.PathLike[str],
    *,
    column: str = layout.FEATURES,
) -> int:
    """Write a complete split to a file, a few chunks at a time.

    Parameters
    ----------
    store : FeatureStore or its place
    epoch, split
        The split.
    to : path
        ``*.npy`` gets one column in the stored dtype, except that features of 8 bits become float32.
        ``*.parquet`` gets all columns, a row a sample, with ``features`` as a list of fixed size, and
        the specs of store and split as metadata (``trakstore.store``, ``trakstore.split``); it needs
        ``pip install trakstore[parquet]``. The file appears when it is complete; an existing one is not
        replaced.
    column : str
        Column for an ``.npy`` file.

    Returns
    -------
    int
        Rows written.

    Raises
    ------
    IncompleteError
        When rows are missing, or were dropped.
    DamagedError
        When stored bytes are damaged; nothing is left behind.
    LocationError
        When the file exists or cannot be written.
    TrakStoreError
        For another ending, or strings for an ``.npy`` file.
    """
    opened = open_store(store)
    chosen = opened.split(epoch, split)
    chosen.require_complete()
    if Path(to).suffix != ".npy" or column == layout.FEATURES:
        chosen.require_rows()
    target = Path(to)
    if target.suffix not in (".npy", ".parquet"):
        raise TrakStoreError(f"{target} must end in .npy or .parquet")
    with _new_file(target) as partial:
        if target.suffix == ".npy":
            _write_npy(chosen, column, partial)
        else:
            _write_parquet(opened, chosen, partial)
    return chosen.rows


@contextmanager
def _new_file(target: Path) -> Iterator[Path]:
    """Make a temporary file that gets its final name if all goes well."""
    check_file_place(target)
    if exists(target):
        raise LocationError(f"{target} is there already; remove it or choose another name")
    # In the same folder: a rename is a single step only within one file system.
    partial = target.with_name(f"{uuid.uuid4().hex}.partial")
    with writing(target):
        try:
            yield partial
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)


def _pieces(split: Split) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows whose features are about a chunk; whole chunks if rows are short."""
    chunk = split.spec.chunk_rows
    return ranges(split.rows, max(1, CHUNK_BYTES // split.row_bytes // chunk) * chunk)


def _write_npy(split: Split, name: str, path: Path) -> None:
    column = split.column(name)
    if column.dtype.kind == "T":
        raise TrakStoreError(f"column {name!r} has strings, which .npy cannot hold; use .parquet")
    # The header and the rows are written separately: np.save would need all rows in memory.
    with path.open("xb") as file:
        header = {"descr": column.dtype.str, "fortran_order": False, "shape": column.shape}
        np.lib.format.write_array_header_1_0(file, header)
        for start, stop in _pieces(split):
            file.write(np.ascontiguousarray(column.read(start, stop)).data)


def _write_parquet(store: FeatureStore, split: Split, path: Path) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise TrakStoreError("Parquet needs pyarrow: pip install 'trakstore[parquet]'") from None
    # The schema is made before any rows are read, so that all row groups have the same types.
    # Features are written as queries see them: those of 8 bits times the scale of each row.
    names = [name for name in split.columns if name != layout.ROW_SCALE]
    schema = pa.schema([(name, _arrow_type(split, name)) for name in names])
    specs = {"trakstore.store": store.spec.to_dict(), "trakstore.split": split.spec.to_dict()}
    schema = schema.with_metadata({key: json.dumps(spec) for key, spec in specs.items()})
    columns = [split.column(name) for name in names]
    with pq.ParquetWriter(path, schema) as writer:
        for start, stop in _pieces(split):
            arrays = [
                _arrow(column.read(start, stop), kind)
                for column, kind in zip(columns, schema.types, strict=True)
            ]
            writer.write_table(pa.table(arrays, schema=schema))


def _arrow_type(split: Split, name: str) -> pa.DataType:
    import pyarrow as pa

    if dict(split.spec.columns)[name] == "str":
        return pa.string()
    one = pa.from_numpy_dtype(split.column(name).dtype)
    width = column_shape(split.spec, name)[0][1:]
    return pa.list_(one, *width) if width else one


def _arrow(values: Any, kind: pa.DataType) -> pa.Array:
    import pyarrow as pa

    if values.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), type=kind)
    return pa.array(values.tolist() if values.dtype.kind == "T" else values, type=kind)
