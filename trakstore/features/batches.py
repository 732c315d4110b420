"""Batches of a data set, and a model that is lent for evaluation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as tree
from torch.utils.data import default_collate

from trakstore.errors import TrakStoreError
from trakstore.features.in_place import copied_sample, out_of_place, reuses_memory
from trakstore.features.outputs import ModelOutput
from trakstore.features.padding import pad_tokens
from trakstore.features.reading import REMEDY, named_sample, named_samples, read_sample
from trakstore.features.sample_columns import SampleColumns
from trakstore.features.sample_forms import forms, unlike
from trakstore.features.sorted_batches import (
    MOST_PADDING,
    padded_share,
    sequence_length,
)
from trakstore.features.to_device import moved
from trakstore.named import blamed_on

__all__ = ["Batches", "Collate"]

log = logging.getLogger("trakstore")

Collate = Callable[[list[Any]], Any]

_FLATTENING = "DataCollatorWithFlattening"


@dataclass(frozen=True)
class Batches:
    """Samples of a data set, collated and moved to a device.

    Attributes
    ----------
    dataset : map-style data set
    device : torch.device
    collate : callable or None
        Makes a batch of samples; None is torch's default.
    columns : SampleColumns or None
        Columns of dicts that the model and its output take; None where all are taken.
    as_trainer : bool
        Whether ``collate`` is given those columns alone, as by the ``Trainer`` of transformers.
    ids : ndarray or None
        Names of the samples, for messages.
    one_reads : lock, optional
        Held while one thread reads and copies, where the data set writes samples over earlier ones.
    """

    dataset: Any
    device: torch.device
    collate: Collate | None = None
    columns: SampleColumns | None = None
    as_trainer: bool = False
    ids: NDArray[Any] | None = None
    one_reads: AbstractContextManager[Any] | None = None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        output: ModelOutput,
        dataset: Any,
        device: torch.device,
        collate: Collate | None,
        ids: NDArray[Any] | None = None,
    ) -> Batches:
        """Make batches for a model; the first sample tells which columns a collator can take.

        A collator of transformers is given the columns that the model's forward names, as ``Trainer``
        does it. Any other is given whole samples, since it may make the model's inputs from texts; if
        it fails on those and not on the ``Trainer``'s columns, it is given the latter. The collator
        that joins all samples into one row is replaced by one that pads: samples of such a row do not
        see one another, so that their gradients are the same.
        """
        columns = SampleColumns.of(model, output)
        own = _of_trainer(collate)
        reused = reuses_memory(lambda at: read_sample(dataset, at, ids), len(dataset))
        whole = cls(
            *(dataset, device, collate, columns), ids=ids, one_reads=Lock() if reused else None
        )
        if type(own).__name__ == _FLATTENING:
            log.info("samples are padded, one a row, in place of %s's one row of all", _FLATTENING)
            return replace(whole, collate=pad_tokens, as_trainer=True)
        if own is not collate and columns.read is not None:
            # The Trainer's wrapper would also drop what the output reads.
            return replace(whole, collate=own, as_trainer=True)
        if collate is None:
            return whole
        fewer = replace(whole, as_trainer=True)
        if _of_transformers(collate):
            return fewer
        first = [whole.sample(0)]
        if not isinstance(first[0], Mapping):
            return whole
        try:
            collate(first)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            with suppress(Exception):
                collate(columns.as_trainer(first))
                return fewer
        return whole  # the collator's own error is raised when the batch is read

    def read(self, start: int, stop: int) -> Any:
        """Read samples ``start`` to ``stop`` as a tree of tensors with the batch dimension first.

        Mappings of any class, and dataclasses, become dicts. Without ``collate``, a list of numbers in
        a sample becomes a tensor.
        """
        return self.picked(range(start, stop))

    def picked(self, rows: Sequence[int]) -> Any:
        """Read the samples at some positions as a batch; see :meth:`read`."""
        return self.made([self.sample(index) for index in rows], rows)

    def uneven(self, rows: Sequence[int]) -> tuple[int, ...] | None:
        """Return some samples from the longest to the shortest, where padding them in order would cost.

        This is so where lengths are known, a tenth or more of these samples together would be padding,
        and the collator does not pad everything to one length. Otherwise return None.
        """
        if self.collate is None:
            return None
        samples = [self.sample(index) for index in rows]
        lengths = [sequence_length(one) for one in samples]
        if None in lengths or len(rows) < 2:
            return None
        known = np.array(lengths)
        order = np.argsort(-known, kind="stable").tolist()
        short, long = (self.made([samples[at]], [rows[at]]) for at in (order[-1], order[0]))
        if padded_share(known) <= MOST_PADDING or _numbers(short) >= _numbers(long):
            return None
        return tuple(rows[at] for at in order)

    def made(self, samples: list[Any], rows: Sequence[int], *, in_place: bool = True) -> Any:
        """Make a batch of samples, which have these positions in the data set.

        Unless a row must be ``in_place``, a collator may put another sample there.
        """
        looked_at = in_place and len(samples) > 1 and not _is_known(self.collate)
        # A collator may change the samples that it is given, so that the check has copies of its own.
        again = [copied_sample(one) for one in samples] if looked_at else []
        batch = self._tree(samples, rows)
        for path, leaf in tree.tree_flatten_with_path(batch)[0]:
            self._need_rows(leaf, tree.keystr(path), rows)
        if looked_at and (found := out_of_place(lambda some: self._tree(some, rows), again, batch)):
            raise TrakStoreError(
                f"collate={_name_of(self.collate)}, of {self._named(rows)}, {found}: what a sample is "
                f"must not depend on the others of its batch; pad samples, in their order, and do all "
                f"else in the data set"
            )
        return moved(batch, self.device)

    def _tree(self, samples: list[Any], rows: Sequence[int]) -> Any:
        batch = _as_tree(self._collated(samples, rows))
        return batch if self.columns is None else self.columns.of_batch(batch)

    def need_repeatable(self, count: int) -> None:
        """Raise unless a collator makes the same batch of the first ``count`` samples each time.

        Raises
        ------
        TrakStoreError
            When it does not: what is random has no features.
        """
        if self.collate is None:
            return
        own = _of_trainer(self.collate)
        masks = bool(getattr(own, "mlm", False))
        rows = range(count)
        one, other = (
            self.made([self.sample(row) for row in rows], rows, in_place=False) for _ in range(2)
        )
        if not masks and _same(one, other):
            return
        name = _name_of(own)
        remedy = "do that once, in the data set, with a fixed seed, and collate without it"
        if masks:
            remedy = (
                "mask them once, in 'input_ids' and 'labels' of the data set, and collate with "
                "DataCollatorForTokenClassification, which pads both (for a causal model, mlm=False)"
            )
        raise TrakStoreError(
            f"collate={name} {'masks tokens at random' if masks else 'is random'}: it makes another "
            f"batch of the same samples each time, so that no sample has features of its own; {remedy}"
        )

    def sample(self, index: int) -> Any:
        """Read a sample of the data set, in memory of its own."""
        if self.one_reads is None:
            return read_sample(self.dataset, index, self.ids)
        with self.one_reads:
            return copied_sample(read_sample(self.dataset, index, self.ids))

    def unlike_first(self, rows: Sequence[int]) -> str:
        """Say which of some samples is the first that has another form than the data set's first one.

        Lengths count where no collator could pad them. The text is empty where all are alike, or cannot
        be read.
        """
        with suppress(TrakStoreError):
            first = self.forms_of(0)
            for row in rows:
                own = self.forms_of(row)
                if own and first and (differing := unlike(own, first)):
                    return f"{named_sample(row, self.ids)} has {differing}"
        return ""

    def forms_of(self, row: int) -> list[str]:
        """Return the forms of what a sample is made of; see :func:`~.sample_forms.forms`.

        The list is empty where a sample has lists of several lengths: a collator may make anything of
        those.
        """
        sample = self.sample(row)
        try:
            return forms(_with_tensors(sample), shapes=self.collate is None)
        except ValueError:
            return []

    def _collated(self, samples: list[Any], rows: Sequence[int]) -> Any:
        if self.columns is not None and self.as_trainer:
            samples = self.columns.as_trainer(samples)
        if self.collate is not None:
            name = f"the collator, of {self._named(rows)}"
            with blamed_on(name, _text_remedy(samples) or REMEDY):
                return self.collate(samples)
        if self.columns is not None:
            samples = self.columns.without_metadata(samples)
        try:
            return default_collate([_with_tensors(sample) for sample in samples])
        except (RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            which = self.unlike_first(rows)
            raise TrakStoreError(
                f"{self._named(rows)} cannot be put into one batch ({reason[:200]}"
                f"{which and f'; {which}'}): make them "
                f"tensors of one shape, or pass collate= that pads them{_padding_collators(samples)}"
            ) from error

    def _named(self, rows: Sequence[int]) -> str:
        """Name the samples of a batch; with the first and the last id, where ids are not positions."""
        both = [named_sample(row, self.ids).partition(" (id ")[2] for row in (rows[0], rows[-1])]
        ids = f" (ids {both[0][:-1]} to {both[1][:-1]})" if all(both) else ""
        return f"{named_samples(rows)}{ids}"

    def _need_rows(self, leaf: Any, where: str, rows: Sequence[int]) -> None:
        """Raise unless a leaf of a batch is dense and has one row for each sample."""
        dense = isinstance(leaf, Tensor) and leaf.layout is torch.strided and not leaf.is_nested
        if dense and leaf.ndim and len(leaf) == len(rows):
            return
        if isinstance(leaf, Tensor) and not dense:
            kind = str(leaf.layout).removeprefix("torch.")
            got = "a nested tensor" if leaf.is_nested else f"a tensor of layout {kind}"
            remedy = (
                "samples are cut from dense tensors; pad it with a mask, or give its to_dense()"
            )
        elif isinstance(leaf, Tensor):
            got = f"a tensor of shape {tuple(leaf.shape)}"
            remedy = (
                "one row a sample is needed in each; pad graphs and other samples of several sizes "
                "to one, with a mask"
            )
            if leaf.ndim == 2 and len(leaf) == 1:
                remedy = (
                    "pad samples, one a row, rather than write all into one (padding_free=False)"
                )
        else:
            got, remedy = (
                f"a value of type {type(leaf).__name__}",
                "leave it out, or make a tensor of it",
            )
        maker = "in" if self.collate is not None else "in the data set, or by"
        raise TrakStoreError(
            f"a batch is a tree of tensors with the batch dimension first; {self._named(rows)} "
            f"collate to one that holds {got}{where and f' at {where}'}: {remedy} "
            f"({maker} collate=)"
        )


def _text_remedy(samples: list[Any]) -> str:
    """Advise those whose collator was given texts; an empty text for other samples."""
    if not isinstance(samples[0], str):
        return ""
    return "samples are str: give dicts with input_ids, or a collator that tokenizes"


def _padding_collators(samples: list[Any]) -> str:
    """Name collators that pad tokens; an empty text for other samples."""
    if not (isinstance(samples[0], Mapping) and "input_ids" in samples[0]):
        return ""
    return ", such as trakstore.features.pad_tokens or the Trainer's collator"


def _of_trainer(collate: Any) -> Any:
    """Return the collator within the wrapper by which transformers' ``Trainer`` drops columns."""
    return collate.data_collator if type(collate).__name__ == "RemoveColumnsCollator" else collate


def _of_transformers(collate: Collate) -> bool:
    return str(getattr(collate, "__module__", "")).split(".")[0] in ("transformers", "trl")


def _is_known(collate: Any) -> bool:
    """Tell whether a collator is known to give each sample its own row, whatever the others are."""
    return collate in (None, pad_tokens, default_collate) or _of_transformers(_of_trainer(collate))


def _name_of(collate: Any) -> str:
    return str(getattr(collate, "__name__", type(collate).__name__))


def _numbers(batch: Any) -> int:
    return sum(leaf.numel() for leaf in tree.tree_leaves(batch))


def _same(one: Any, other: Any) -> bool:
    """Tell whether two batches have the same shapes and numbers; NaN is NaN."""
    leaves, others = tree.tree_leaves(one), tree.tree_leaves(other)
    return len(leaves) == len(others) and all(
        a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
        for a, b in zip(leaves, others, strict=True)
    )


def _as_tree(batch: Any) -> Any:
    """Make dicts of mappings of any class, and of the fields of dataclasses."""
    if isinstance(batch, Mapping):
        return dict(batch)
    if is_dataclass(batch) and not isinstance(batch, type):
        return {field.name: getattr(batch, field.name) for field in fields(batch)}
    return batch


def _with_tensors(sample: Any) -> Any:
    """Make tensors of lists of numbers in a sample, as rows of a table have them."""
    # torch's default collator would make each number of a list an input of its own.
    if isinstance(sample, Mapping):
        return {key: _as_tensor(value) for key, value in sample.items()}
    if isinstance(sample, list) or type(sample) is tuple:
        return type(sample)(map(_as_tensor, sample))
    return sample


def _as_tensor(value: Any) -> Any:
    if not isinstance(value, list):
        return _with_tensors(value)
    if not all(isinstance(one, int | float | np.number) for one in tree.tree_leaves(value)):
        return _with_tensors(value)
    array = np.asarray(value)  # refuses lists of several lengths
    return torch.from_numpy(array.astype(np.float32) if array.dtype.kind == "f" else array)
