"""What narrower storage does to TRAK scores: digits, three epochs, dim 512, damping 1.

    python benchmarks/precision.py

Features are computed once in float32 and stored again: as float16, in 8 bits, with rounded mantissas.
Errors are relative to the largest |score| of float32; bytes are those of the chunks of features.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import trakstore as ts
from trakstore.cli.demo import digits
from trakstore.errors import NumericsError
from trakstore.features import featurize_job

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("float32", {}),
    ("keep_bits=10", {"keep_bits": 10}),
    ("keep_bits=7", {"keep_bits": 7}),
    ("keep_bits=4", {"keep_bits": 4}),
    ("float16", {"dtype": "float16"}),
    ("int8", {"dtype": "int8"}),
]


def copy_store(store: ts.FeatureStore, where: Path, **kind: Any) -> ts.FeatureStore:
    """The same features, stored another way."""
    same = {"projection": store.spec.projection, "output": store.spec.output}
    made = ts.FeatureStore.create(where, **same, **kind)
    for epoch in store.epochs:
        for name in store.splits_of(epoch):
            split = store.split(epoch, name)
            features, q = (
                split.column(column).read(0, split.rows) for column in ("features", "out_to_loss")
            )
            made.write_split(epoch, name, features, out_to_loss=q)
    return made


def feature_bytes(where: Path) -> int:
    """Bytes of all feature chunks."""
    return sum(file.stat().st_size for file in where.glob("*/*/features/c/**/*") if file.is_file())


def overlap(a: Any, b: Any) -> float:
    """Mean share of common entries of two sets of lists."""
    return float(np.mean([len(set(x) & set(y)) / len(x) for x, y in zip(a, b, strict=True)]))


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0]).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "made.zarr"
        featurize_job(digits(), first, progress=False)
        store = ts.open_store(first)
        print("storage       bytes   largest error   top-10 in common")
        for name, kind in KINDS:
            where = Path(folder) / name
            try:
                scores = ts.trak_scores(copy_store(store, where, **kind))
            except NumericsError as error:
                print(f"{name:12}  refused: {str(error).splitlines()[0]}")
                continue
            dense, top = np.asarray(scores), ts.top_k(scores, 10)["position"].values
            if name == "float32":
                truth, lists, size = dense, top, feature_bytes(where)
            error_ = np.abs(dense - truth).max() / np.abs(truth).max()
            share = feature_bytes(where) / size
            print(f"{name:12}  {share:5.2f}   {error_:13.1e}   {overlap(top, lists):.4f}")


if __name__ == "__main__":
    main()
