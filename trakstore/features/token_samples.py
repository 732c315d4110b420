"""Tokens of samples, with a row of features each.

Rows of a split ``test~tokens`` are tokens of the samples of ``test``, sample after sample: each token
that counts, or runs of several. A row is computed as its sample is, by a forward and a backward pass of
its own in which only its tokens' losses are differentiated. So every engine can compute it, and it
costs as much as its sample.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils import _pytree as tree
from torch.utils.data import Subset

from trakstore.errors import TrakStoreError
from trakstore.features.batches import Batches
from trakstore.features.fingerprint import dataset_fingerprint, dataset_rows
from trakstore.features.fitness import explained
from trakstore.features.job import Job
from trakstore.features.outputs import ModelOutput
from trakstore.features.outputs.tokens import SeparatesTokens, need_tokens
from trakstore.features.sharding import WHOLE, Sharding
from trakstore.features.split_samples import SplitSamples
from trakstore.features.streamed import Streamed
from trakstore.features.token_rows import TokenRows
from trakstore.spec import LossScale
from trakstore.storage import layout
from trakstore.storage.columns import sample_ids
from trakstore.storage.ids import as_ids

__all__ = ["ReadTokens", "TokenSamples", "read_tokens", "samples_of", "stored_run"]


@dataclass(frozen=True)
class TokenSamples:
    """Samples of a split that has rows for tokens, with the interface of :class:`~.SplitSamples`.

    Attributes
    ----------
    given : map-style data set
        Data set of the job.
    given_ids : ndarray
        Names of its samples.
    tokens : sequence of ndarray of int64
        Numbers of each sample's tokens that count.
    run : int
        Tokens of a row; the last row of a sample may have fewer.
    output : SeparatesTokens
    """

    given: Any
    given_ids: NDArray[Any]
    tokens: Sequence[NDArray[np.int64]]
    run: int
    output: SeparatesTokens

    # Rows of one sample may be computed apart: each has a forward pass of its own.
    each = 1

    @classmethod
    def of(cls, job: Job, split: str) -> TokenSamples:
        """Return the samples of a split of a job; this reads every sample once.

        A worker does so for each epoch whose split it prepares.

        Raises
        ------
        TrakStoreError
            When the output is not made of tokens, the data set is a stream, or no token counts.
        """
        own = layout.own_split(split)
        dataset, output = job.datasets[own], job.output
        count = dataset_rows(dataset, f"the data set {own!r}")
        assert isinstance(output, ModelOutput)  # a job turns names into outputs
        separate = need_tokens(output)
        if isinstance(dataset, Streamed):
            raise TrakStoreError(
                f"the data set {own!r} is a stream, and rows of tokens need samples that can be read "
                f"again: give the samples to be asked about as a list"
            )
        ids = sample_ids(job.ids.get(own), count)
        batches = Batches.of(job.model, output, dataset, torch.device("cpu"), job.collate, ids)
        tokens = [
            read_tokens(job.model, output, batches.read(at, at + 1)).numbers for at in range(count)
        ]
        if not any(map(len, tokens)):
            raise TrakStoreError(f"no token of the data set {own!r} counts: all labels are -100")
        return cls(dataset, ids, tokens, job.tokens_of(split), separate)

    @property
    def ids(self) -> NDArray[Any]:
        """Names of the rows: the sample's id, ``#``, and the number of the row's first token."""
        named = zip(self.given_ids.tolist(), self.tokens, strict=True)
        return as_ids([f"{one}#{at}" for one, tokens in named for at in tokens[:: self.run]])

    @property
    def dataset(self) -> Any:
        """Map-style data set of the rows' samples."""
        return Subset(self.given, np.repeat(np.arange(len(self.tokens)), self._rows).tolist())

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the data set, and of all its tokens that count."""
        digest = hashlib.sha256()
        for tokens in self.tokens:
            digest.update(f"{tokens.tolist()};".encode())
        own = dataset_fingerprint(self.given, self.given_ids)
        return f"{own}#{self.run}:{digest.hexdigest()}"

    def of_first(self, rows: int) -> list[TokenSamples]:
        """Return each choice of first samples that has ``rows`` rows, or else fewer."""
        # A sample without tokens has no rows, so that any number of those that follow may belong to it.
        ends = np.cumsum(self._rows)
        fewest, most = np.searchsorted(ends, rows) + 1, np.searchsorted(ends, rows, side="right")
        return [self._of_samples(int(one)) for one in range(min(fewest, most), most + 1)]

    def first_rows(self, samples: Sequence[int]) -> list[int]:
        """Return the first row of each of the given samples that has a row."""
        begins = np.cumsum(self._rows) - self._rows
        return [int(begins[at]) for at in samples if len(self.tokens[at])]

    def labels(
        self,
        model: nn.Module,
        output: ModelOutput,  # noqa: ARG002
        sharding: Sharding = WHOLE,  # noqa: ARG002
    ) -> TokenRows:
        """Return the maker of batches that tells the rows of a sample apart."""
        first = [np.arange(0, len(tokens), self.run) for tokens in self.tokens]
        return TokenRows(model, self.output, np.concatenate(first), self.run)

    def loss_scale(self, output: ModelOutput) -> LossScale:  # noqa: ARG002
        """Return ``""``: the losses of rows are the tokens' parts of their samples'."""
        return ""

    def _of_samples(self, count: int) -> TokenSamples:
        given = Subset(self.given, range(count))
        return TokenSamples(
            given, self.given_ids[:count], self.tokens[:count], self.run, self.output
        )

    @property
    def _rows(self) -> NDArray[np.int64]:
        """Number of rows of each sample."""
        return np.array([-(-len(tokens) // self.run) for tokens in self.tokens], dtype=np.int64)


class ReadTokens(NamedTuple):
    """Tokens of a sample that count, and the sample as the model reads it.

    Attributes
    ----------
    numbers : ndarray of int64, shape (tokens,)
        Numbers by which rows are named, as :meth:`~.SeparatesTokens.tokens` returns them.
    positions : ndarray of int64, shape (tokens,)
        Positions in the labels that the model reads, or in the tokens where there are no labels.
        Padding counts here, but not in the numbers.
    read : tree of Tensor
        The sample as one row of a batch that the collator made.
    """

    numbers: NDArray[np.int64]
    positions: NDArray[np.int64]
    read: Any


def read_tokens(model: nn.Module, output: ModelOutput, batch: Any) -> ReadTokens:
    """Return the tokens that count in a batch of one sample."""
    with explained(model, output, batch):
        numbers = need_tokens(output).tokens(model, batch)[0].cpu().numpy()
    read = tree.tree_map_only(torch.Tensor, lambda one: one[0].cpu() if one.ndim else one, batch)
    counted = np.flatnonzero(numbers >= 0)
    # Numbers belong to logits, which may lack one for the first token: nothing predicts that.
    before = len(_labels(read)) - len(numbers)
    return ReadTokens(numbers[counted], counted + before, read)


def _labels(read: Any) -> Any:
    """Return the row that shows which tokens are predicted."""
    if not isinstance(read, Mapping):
        return read[-1] if isinstance(read, tuple | list) else read
    return read["labels"] if "labels" in read else read["input_ids"]


def stored_run(fingerprint: str | None) -> int:
    """Read the tokens per row from a fingerprint of rows of tokens; 0 from any other fingerprint.

    Examples
    --------
    >>> stored_run("768:ab#3:cd"), stored_run("768:ab"), stored_run(None)
    (3, 0, 0)
    """
    run, _, digest = (fingerprint or "").rpartition("#")[2].partition(":")
    return int(run) if digest and "#" in str(fingerprint) and run.isdecimal() else 0


def samples_of(job: Job, split: str) -> SplitSamples | TokenSamples:
    """Return the samples of a split of a job, of either kind."""
    if split.endswith(layout.TOKENS):
        return TokenSamples.of(job, split)
    return SplitSamples.of(job, split)
