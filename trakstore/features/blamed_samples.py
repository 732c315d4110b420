"""Errors that name the sample which a model does not take, after the first samples were taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as tree

from trakstore.errors import TrakStoreError
from trakstore.features.background import ReadAhead
from trakstore.features.batch_reader import Piece, ReadBatch
from trakstore.features.batches import Batches
from trakstore.features.fitness import need_pass
from trakstore.features.gradients import cut
from trakstore.features.outputs import ModelOutput
from trakstore.features.plain import copied
from trakstore.features.reading import named_sample, named_samples
from trakstore.features.wording import first_line

__all__ = ["CheckedBatches", "blaming_samples", "need_forms"]


class CheckedBatches(ReadAhead[Piece, list[ReadBatch]]):
    """Reader of batches, which are checked as the first samples were where they have another shape.

    Where the first sample had one target or one prediction, a later one may have two: the output may
    add these up, and no error would tell.

    Parameters
    ----------
    read : callable
        Function that reads the batches of the rows from one to another.
    batches : Batches
    model : nn.Module
    output : ModelOutput
    first : tree of Tensor
        Batch of the first samples, which was checked.
    """

    def __init__(
        self,
        read: Callable[[Piece], list[ReadBatch]],
        batches: Batches,
        model: nn.Module,
        output: ModelOutput,
        first: Any,
    ) -> None:
        super().__init__(read)
        self._batches, self._model, self._output = batches, model, output
        self._known = {self._shape(first)}

    def through(
        self, items: Sequence[Piece], then: Piece | None = None
    ) -> Iterator[tuple[Piece, list[ReadBatch]]]:
        """See :meth:`ReadAhead.through`.

        Raises
        ------
        TrakStoreError
            When the output does not take samples of such a shape, with the first of them.
        """
        for item, read in super().through(items, then):
            for one in read:
                self._need_shape(one.rows.tolist(), one.batch)
            yield item, read

    def _need_shape(self, rows: list[int], batch: Any) -> None:
        shape = self._shape(batch)
        if shape in self._known:
            return
        try:
            # All samples of a batch have one shape: more of them would take more memory.
            self._output.check(self._model, copied(cut(batch, 0, 2)))
        except TrakStoreError as error:
            named = self._batches.unlike_first(rows) or named_samples(rows)
            raise TrakStoreError(
                f"{named}: {error}; give all samples one form and run again: what is written stays"
            ) from error
        self._known.add(shape)

    def _shape(self, batch: Any) -> tuple[Any, ...]:
        # A collator pads samples to the longest of them: another length alone is no other shape then.
        exact = self._batches.collate is None
        return tuple(tuple(one.shape[1:]) if exact else one.ndim for one in tree.tree_leaves(batch))


@contextmanager
def blaming_samples(
    batches: Batches, model: nn.Module, output: ModelOutput, rows: range, *, alone: bool
) -> Iterator[None]:
    """Turn an error of the model into one that names the sample which it does not take.

    Parameters
    ----------
    batches : Batches
    model : nn.Module
    output : ModelOutput
    rows : range
        Rows that are computed in the ``with`` block.
    alone : bool
        Whether the model may be run on single samples here; not where other ranks take part in its
        passes.

    Raises
    ------
    TrakStoreError
        With the first sample of another form than the first of the data set, or the first one that the
        model by itself fails on; the error is its cause.
    """
    try:
        yield
    except (TrakStoreError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        unlike = batches.unlike_first(rows)
        if unlike:
            raise TrakStoreError(
                f"{unlike}: the model does not take it ({first_line(error)}); give all samples one "
                f"form and run again: what is written stays"
            ) from error
        for row in rows if alone else ():
            _need_taken(batches, model, output, row)
        raise


def need_forms(
    batches: Batches, model: nn.Module, output: ModelOutput, rows: Sequence[int]
) -> None:
    """Try one sample of each form that the first sample does not have.

    The samples that go into the fingerprint are tried before anything is written: mending one of them
    later would change the fingerprint, and the run could not go on with its split.

    Raises
    ------
    TrakStoreError
        When the model does not take it.
    """
    known = {tuple(batches.forms_of(0))}
    for row in rows:
        own = tuple(batches.forms_of(row))
        if own and own not in known:
            known.add(own)
            _need_taken(batches, model, output, row)


def _need_taken(batches: Batches, model: nn.Module, output: ModelOutput, row: int) -> None:
    named = named_sample(row, batches.ids)
    need_pass(model, output, batches.picked([row]), named, backward=False)
