"""Top-k by an index: four-bit codes choose candidates, whose scores are then exact."""

from __future__ import annotations

from dataclasses import replace

import xarray as xr

from trakstore.errors import TrakStoreError
from trakstore.progress import ProgressLine, on_terminal
from trakstore.quantities import as_whole
from trakstore.scores.factored import Scores
from trakstore.scores.index_recall import recall_of
from trakstore.scores.index_rows import indexed_rows
from trakstore.scores.running_lists import Order
from trakstore.scores.top_k import check_request, dataset_of, need_targets, plan_top_k, top_k
from trakstore.scores.train_index import TrainIndex, open_index, usual_candidates
from trakstore.scores.window_plans import WindowPlan, tile_bytes
from trakstore.storage.tables.index_documents import Recall

_UNKNOWN = Recall("", "", (), (), "", 0, 0, 0, float("nan"))


def approximate_top_k(
    scores: Scores,
    k: int,
    *,
    index: TrainIndex | None = None,
    candidates: int | None = None,
    order: Order = "largest",
    memory_limit: int | str | None = None,
) -> xr.Dataset:
    """List the train rows with the first scores for each target, as an index finds them.

    The codes of all train rows are compared with each target, and the first ``candidates`` are scored
    exactly, from their stored rows. The listed scores are exact; a train row that is no candidate is
    not listed. This is for one target or a few: many at once are faster by :func:`top_k`. It is quick
    for uncompressed stores on a local disk; elsewhere whole chunks are read for each target's
    candidates, which may be nearly all chunks. Where all rows would be candidates, the index is not
    used, and the answer is that of :func:`top_k`.

    Parameters
    ----------
    scores : Scores, shape (m, n)
        Scores with the train rows of the index, by any method and kernel.
    k : int
        Entries of each list.
    index : TrainIndex, optional
        Index from :func:`build_index` or :func:`open_index`. When None, it is opened for this call,
        which reads about 27% of the bytes of float16 features.
    candidates : int, optional
        Candidates of each target, k to n. By default the largest of 512, n/2048 and 10 k.
    order : {"largest", "smallest", "magnitude"}
        Scores that come first. Equal scores are ordered by train position; where a list has no room for
        all equal scores, it may have others of them than :func:`top_k` lists.
    memory_limit : int or str, optional
        Bytes of one process; a quarter of the available memory when None.

    Returns
    -------
    Dataset
        As from :func:`top_k`. Its attributes give the ``candidates`` of each list and the ``recall``
        measured when the index was built: the share of the exact lists (``recall_k`` entries of
        ``checked`` targets) that ``recall_candidates`` each found, counting any of equal scores; 1
        where all rows were candidates. It is measured on the largest scores with all train rows. For
        another order, a selection of rows, or a method, kernel or damping with which the index was not
        built, it is NaN, and the other numbers are 0.

    Raises
    ------
    TrakStoreError
        When ``k`` or ``candidates`` is out of range, the order is unknown, or the train rows are in no
        store.
    NotFoundError
        When there is no index of these rows.
    SpecMismatchError
        When the index has other epochs or features, or fewer rows.
    DamagedError
        When a row has changed since it was indexed.
    NumericsError
        When a score is NaN or infinite.
    MemoryLimitError
        When the plan does not fit the memory limit.

    Examples
    --------
    >>> scores = ts.trak_scores(store, epochs=15)
    >>> index = ts.build_index(scores, k=3)
    >>> top = ts.approximate_top_k(scores, 3, index=index, candidates=12)
    >>> top["train"].values[0].tolist()
    ['train-15', 'train-9', 'train-1']
    """
    need_targets(scores)
    rows, trains = scores.shape
    k = check_request(k, trains, order)
    wide = usual_candidates(k, trains)
    if candidates is not None:
        needed = f"must be in {k}..{trains} (k to the train rows)"
        wide = as_whole(candidates, "candidates", k, trains, needed=needed)
    if wide == trains:
        exact = top_k(scores, k, order=order, memory_limit=memory_limit)
        return exact.assign_attrs(candidates=trains, recall=1.0)
    if index is None:
        index = open_index(scores, memory_limit=memory_limit)
    else:
        _need_index(index, scores)
    plan, lists = _planned(scores, k, wide, memory_limit), []
    with ProgressLine(f"top-{k}", rows, unit="targets", show=on_terminal()) as progress:
        for start, stop in plan.windows(rows):
            window = scores.window(start, stop, plan.ahead)
            lists.append(index.lists(scores, window, start, k, wide, order))
            progress.advance(stop - start)
    return dataset_of(lists, scores, order).assign_attrs(_said(index, scores, wide, order))


def _planned(scores: Scores, k: int, wide: int, memory_limit: int | str | None) -> WindowPlan:
    """Plan windows of targets, whose candidates are scored one target after the other."""
    sizes, item = scores.sizes, max(part.train.dtype.itemsize for part in scores.parts)
    # In place of a tile, memory must hold the rows of one target's candidates at all epochs together.
    rows = replace(sizes, tile_rows=wide, tile_bytes=tile_bytes(wide, sizes.columns, item))
    return plan_top_k(rows, k, None, memory_limit)


def _need_index(index: object, scores: Scores) -> None:
    """Refuse anything but an index, and an index of other rows."""
    if not isinstance(index, TrainIndex):
        raise TrakStoreError(
            f"index must be a TrainIndex, as build_index and open_index give it, got {index!r}"
        )
    every = indexed_rows(scores)
    given, wanted = [one.path for one in index.parts], [one.path for one in every]
    if given != wanted:
        raise TrakStoreError(
            f"the index at {', '.join(given)} is given; these scores need {', '.join(wanted)}"
        )
    for rows, part in zip(every, index.parts, strict=True):
        rows.refuse_other(part.document)


def _said(
    index: TrainIndex, scores: Scores, candidates: int, order: Order
) -> dict[str, int | float]:
    known = recall_of(index, scores, order) or _UNKNOWN
    return {
        "candidates": candidates,
        "recall": known.recall,
        "recall_k": known.k,
        "recall_candidates": known.candidates,
        "checked": known.checked,
    }
