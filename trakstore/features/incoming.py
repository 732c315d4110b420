"""Features of batches that another library's loop hands over, under one checkpoint after another."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from glob import escape
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as tree

from trakstore.errors import TrakStoreError
from trakstore.features.checkpoints import Checkpoint, load_weights
from trakstore.features.factorised import FactorisedEngine
from trakstore.features.fingerprint import checkpoint_hash
from trakstore.features.fitness import fit_modules, need_apart, need_weights
from trakstore.features.gradients import FeatureRows, GenericEngine, batch_size
from trakstore.features.outputs import ModelOutput
from trakstore.features.outputs.peers import GivenTask
from trakstore.features.parameters import (
    as_patterns,
    canonical_name,
    parameter_spec,
    select_parameters,
    uncompiled,
)
from trakstore.features.projectors import make_projector
from trakstore.features.sample_columns import SampleColumns
from trakstore.features.twins import say_twins
from trakstore.features.weights import own_copy
from trakstore.quantities import as_whole, is_whole, shown
from trakstore.spec import ProjectionSpec, StoreSpec
from trakstore.storage.staging import StagedSplit

__all__ = ["BatchFeatures", "IncomingRows", "OrderError"]

log = logging.getLogger("trakstore")


class OrderError(TrakStoreError, AssertionError):
    """A call that comes too early, or with arguments that exclude one another."""


class BatchFeatures:
    """Features of batches, for loops that have no data set to give.

    Parameters
    ----------
    model : nn.Module
        Copied, so that checkpoints are loaded into the copy.
    output : ModelOutput
        The scalar that is differentiated.
    projection : ProjectionSpec
        Projection of gradients to features.
    names : str or iterable of str, optional
        Names of the parameters; all that require a gradient when None.
    device : str
        Device of the model. Where there is no GPU, the CPU is used, with a line in the log.
    """

    def __init__(
        self,
        model: nn.Module,
        output: ModelOutput,
        projection: ProjectionSpec,
        names: str | Iterable[str] | None,
        device: str | torch.device,
    ) -> None:
        self.model, self.output = own_copy(uncompiled(model)), output
        self.device = torch.device(device)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            log.info("there is no GPU: features are computed on the CPU")
            self.device = torch.device("cpu")
        need_weights(self.model)
        need_apart(self.model)
        named = [names] if isinstance(names, str) else names
        patterns = ("*",) if named is None else as_patterns(tuple(named))
        # These are names, not patterns: brackets in them stand for themselves.
        exact = patterns if named is None else [escape(canonical_name(one)) for one in patterns]
        self._selected = select_parameters(self.model, exact)
        self.parameters = parameter_spec(self._selected, patterns)
        self.projector = make_projector(projection, self.parameters)
        self.spec = StoreSpec(projection, output.spec, self.parameters)
        self._columns = SampleColumns.of(self.model, output)
        self.weights = ""

    def load(self, checkpoint: Checkpoint, staged: StagedSplit) -> IncomingRows:
        """Load the weights of a checkpoint, whose rows come next; rows of other weights are refused."""
        load_weights(checkpoint, self.model, "the checkpoint")
        self.model.eval().to(self.device)
        self.weights = checkpoint_hash(self.model)
        for other in staged.claim(self.weights):
            say_twins(other, staged.epoch, self.weights)
        # A task object calls the model in its own way: hooks on layers would see little of that.
        make = GenericEngine if isinstance(self.output, GivenTask) else FactorisedEngine
        self._engine = make(self.model, self.output, self._selected, self.projector)
        return IncomingRows(self, staged, self.weights, np.zeros(staged.rows, dtype=bool))

    def taken(self, batch: Any) -> Any:
        """Return a batch without columns that it only carries along, such as texts in a dict."""
        if isinstance(batch, Mapping):
            return self._columns.of_batch(dict(batch))
        return tuple(batch)

    def rows(self, batch: Any, pick: NDArray[np.int64]) -> FeatureRows:
        """Compute some rows of a batch with the weights that were loaded last."""
        some = torch.from_numpy(pick)
        batch = tree.tree_map(lambda leaf: leaf.cpu()[some].to(self.device), batch)
        with fit_modules(self.model):
            return self._engine.rows(batch)


@dataclass
class IncomingRows:
    """Rows of a checkpoint that come in, batch by batch, and are kept.

    Attributes
    ----------
    source : BatchFeatures
        Features of the batches.
    staged : StagedSplit
        Place where rows are kept.
    weights : str
        Hash of the checkpoint.
    done : ndarray of bool, shape (rows,)
        Rows that are already there, and not computed again.
    next : int
        Position of the next row, for batches that do not name their rows.
    """

    source: BatchFeatures
    staged: StagedSplit
    weights: str
    done: NDArray[np.bool_]
    next: int = 0

    def add(self, batch: Any, inds: Any = None, num_samples: int | None = None) -> None:
        """Compute the rows of a batch that are not done: those at ``inds``, or the next ones.

        Raises
        ------
        OrderError
            With both or neither of ``inds`` and ``num_samples``, or when other weights were loaded
            since.
        TrakStoreError
            When ``inds`` are no positions of the split, are not as many as the batch has samples, or
            name one position twice.
        """
        batch = self.source.taken(batch)
        at, size = self._places(inds, num_samples), batch_size(batch)
        if len(at) != size:
            raise TrakStoreError(f"the batch has {size} samples, {len(at)} indices were given")
        if self.weights != self.source.weights:
            raise OrderError(
                f"the model has other weights than those of epoch {self.staged.epoch}: a checkpoint "
                f"was loaded since; load this one again"
            )
        _need_one_sample_each(batch, at)
        # Rows that came before are not computed again.
        fresh = np.flatnonzero(~self.done[at])
        if len(fresh):
            rows = self.source.rows(batch, fresh)
            both = (rows.features, rows.outputs.out_to_loss)
            self.staged.add(at[fresh], *(one.detach().cpu().numpy() for one in both))
            self.done[at[fresh]] = True
        # The position moves last, so that a call that failed may be made again.
        if num_samples is not None:
            self.next += len(at)

    def _places(self, inds: Any, num_samples: int | None) -> NDArray[np.int64]:
        if (inds is None) == (num_samples is None):
            raise OrderError("Exactly one of num_samples and inds should be specified")
        if num_samples is not None:
            at = np.arange(self.next, self.next + as_whole(num_samples, "num_samples", 0))
        else:
            at = _positions(inds)
        if len(at) and not (at.min() >= 0 and at.max() < self.staged.rows):
            raise TrakStoreError(
                f"samples {at.min()} to {at.max()} are outside of the {self.staged.rows} that "
                f"were announced"
            )
        return at


def _positions(inds: Any) -> NDArray[np.int64]:
    at = np.asarray(inds.cpu() if isinstance(inds, Tensor) else inds)
    if at.ndim != 1 or not (at.dtype.kind in "iu" or all(map(is_whole, at.tolist()))):
        raise TrakStoreError(
            f"inds must be the numbers of the samples, integers of shape (batch,), got {shown(inds)}"
        )
    return at.astype(np.int64)


def _need_one_sample_each(batch: Any, at: NDArray[np.int64]) -> None:
    """Refuse two samples at one position: a sampler may repeat samples to fill its last batch."""
    _, firsts, own = np.unique(at, return_index=True, return_inverse=True)
    again = np.flatnonzero(firsts[own] != np.arange(len(at)))
    if not len(again):
        return
    one, other = torch.from_numpy(firsts[own][again]), torch.from_numpy(again)
    for leaf in tree.tree_leaves(batch):
        if not torch.equal(leaf[one.to(leaf.device)], leaf[other.to(leaf.device)]):
            raise TrakStoreError(
                f"inds name sample {at[again[0]]} more than once, and the batch has another sample "
                f"there each time: give each its own number"
            )
