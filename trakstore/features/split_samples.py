"""The samples of a split: a job's data set as it is, or with several drawn labels for each sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Subset

from trakstore.features.draws import LabelDraws, Repeated, drawn_ids
from trakstore.features.fingerprint import dataset_fingerprint, dataset_rows
from trakstore.features.job import Job
from trakstore.features.outputs import ModelOutput
from trakstore.features.outputs.predicted_classes import need_classes
from trakstore.features.sharding import WHOLE, Sharding
from trakstore.spec import LossScale
from trakstore.storage import layout
from trakstore.storage.columns import sample_ids

__all__ = ["SplitSamples"]


@dataclass(frozen=True)
class SplitSamples:
    """Samples of one split of a job.

    Attributes
    ----------
    given : map-style data set
        Data set of the job.
    given_ids : ndarray
        Names of its samples.
    draws : int
        Rows of each sample whose labels are drawn from the model; 0 for samples as they are.
    seed : int
        Seed of the draws.
    ids : ndarray, shape (rows,)
        Names of the rows.
    """

    given: Any
    given_ids: NDArray[Any]
    draws: int = 0
    seed: int = 0
    ids: NDArray[Any] = field(init=False)

    def __post_init__(self) -> None:
        ids = drawn_ids(self.given_ids, self.draws) if self.draws else self.given_ids
        object.__setattr__(self, "ids", ids)

    @classmethod
    def of(cls, job: Job, split: str) -> SplitSamples:
        """Return the samples of a split of a job."""
        own = layout.own_split(split)
        dataset, draws = job.datasets[own], job.draws_of(split)
        count = dataset_rows(dataset, f"the data set {own!r}")
        return cls(dataset, sample_ids(job.ids.get(own), count), draws, job.draw_seed)

    @property
    def each(self) -> int:
        """Number of rows of each sample."""
        return max(1, self.draws)

    @property
    def dataset(self) -> Any:
        """Map-style data set of the rows."""
        return Repeated(self.given, self.draws) if self.draws else self.given

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the data set, and of the draws."""
        own = dataset_fingerprint(self.given, self.given_ids)
        return f"{own}~{self.draws}x{self.seed}" if self.draws else own

    def first_rows(self, samples: Sequence[int]) -> list[int]:
        """Return the first row of each of the given samples."""
        return [at * self.each for at in samples]

    def of_first(self, rows: int) -> list[SplitSamples]:
        """Return, in a list of one, the samples that have the first ``rows`` rows."""
        samples = rows // self.each
        given = Subset(self.given, range(samples))
        return [SplitSamples(given, self.given_ids[:samples], self.draws, self.seed)]

    def labels(
        self, model: nn.Module, output: ModelOutput, sharding: Sharding = WHOLE
    ) -> LabelDraws | None:
        """Return the drawer of labels; None where samples keep their own."""
        if not self.draws:
            return None
        own, scale = need_classes(output), self.loss_scale(output)
        return LabelDraws(
            model,
            own,
            self.given_ids,
            self.draws,
            self.seed,
            sharding=sharding,
            loss_scale=scale,
        )

    def loss_scale(self, output: ModelOutput) -> LossScale:
        """Return the scale of the rows' losses; ``""`` where they are as the output has them."""
        return "root" if self.draws and need_classes(output).averaged else ""
