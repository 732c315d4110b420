"""Comparison of the samples of several scores, which are combined by position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import xarray as xr

from trakstore.errors import SpecMismatchError
from trakstore.passes.rows import ArrayRows, PositionRows, Rows
from trakstore.planning import ranges
from trakstore.quantities import shown
from trakstore.scores.factored import Scores
from trakstore.scores.windows import Matrix

_PIECE = 2**18  # ids of each side that are held at a time


def need_same_rows(runs: Sequence[Matrix]) -> None:
    """Refuse scores of one shape whose targets or train rows have other ids than the first scores.

    Plain arrays, and rows named by their positions alone, say nothing of their samples: they are
    accepted.

    Parameters
    ----------
    runs : sequence of Scores, DataArray or array, shape (m, n) each
        Scores that are to be compared or combined.

    Raises
    ------
    SpecMismatchError
        When one has another sample in some row; both ids are shown.
    """
    for number, run in enumerate(runs[1:], 2):
        for side in ("target", "train"):
            own, like = _ids(run, side), _ids(runs[0], side)
            if own is not None and like is not None and own.token != like.token:
                _compare(
                    own, like, f"scores {number} have {side} row", f"the first scores have {side}"
                )


def _compare(own: Rows, like: Rows, where: str, there: str) -> None:
    for row, one, other in _differences(own, like):
        raise SpecMismatchError(
            f"{where} {row} of sample {shown(one)}, {there} {shown(other)} there: scores are compared "
            f"by position, so give scores of the same samples in the same order"
        )


def _differences(own: Rows, like: Rows) -> Iterator[tuple[int, Any, Any]]:
    """Yield rows whose ids differ, with both ids; a number always differs from a text."""
    as_texts = [rows.dtype.kind not in "iu" for rows in (own, like)]
    for start, stop in ranges(own.shape[0], _PIECE):
        here, there = own.read(start, stop), like.read(start, stop)
        unlike = here != there if as_texts[0] == as_texts[1] else np.ones(len(here), dtype=bool)
        for row in np.flatnonzero(unlike):
            one, other = (ids[row : row + 1].tolist()[0] for ids in (here, there))
            yield start + int(row), one, other


def _ids(run: Matrix, side: str) -> Rows | None:
    """Return the ids of the targets or of the train rows; None where there are none."""
    if isinstance(run, Scores):
        ids = run.target_ids if side == "target" else run.train_ids
        return None if isinstance(ids, PositionRows) else ids
    known = run.coords.get(f"{side}_id") if isinstance(run, xr.DataArray) else None
    return None if known is None else ArrayRows(np.asarray(known.values))
