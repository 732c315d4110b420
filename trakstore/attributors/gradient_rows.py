"""Loss gradients of a split's samples, computed for each pass over them and never stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trakstore.errors import NumericsError, SpecMismatchError
from trakstore.features.batch_reader import BatchReader
from trakstore.features.batches import Batches
from trakstore.features.factorised import FactorisedEngine
from trakstore.features.job import Job
from trakstore.features.padded_rows import WatchedReader
from trakstore.features.parameters import parameter_spec, select_parameters
from trakstore.features.projectors import make_projector
from trakstore.features.scale_choice import stored_scale
from trakstore.features.split_samples import SplitSamples
from trakstore.features.wanted_spec import output_on
from trakstore.planning import ranges
from trakstore.spec import ProjectionSpec, StoreSpec
from trakstore.storage.split import Split


@dataclass(frozen=True)
class GradientRows:
    """Gradients of the loss, scaled as in the store, and not projected.

    Attributes
    ----------
    engine : FactorisedEngine
        Its projector is the identity.
    reader : WatchedReader
        Reader of the rows of the whole split. Labels that it draws are kept, so that all passes are
        over the same rows, whose losses are scaled as those of the stored split are.
    rows : ndarray of int64
        Positions of the rows that are used.
    at_once : int
        Rows of one tile.
    where : str
        Name of the split, for messages.
    """

    engine: FactorisedEngine
    reader: WatchedReader
    rows: NDArray[np.int64]
    at_once: int
    where: str

    @classmethod
    def of(
        cls, job: Job, spec: StoreSpec, split: Split, rows: NDArray[np.int64], device: torch.device
    ) -> GradientRows:
        """Prepare some rows of a stored split; the model must have the weights of its epoch.

        Raises
        ------
        SpecMismatchError
            When the job's samples are not those of the split.
        """
        samples = SplitSamples.of(job, split.name)
        if split.spec.dataset not in (None, samples.fingerprint):
            raise SpecMismatchError(
                f"{split.name} of epoch {split.epoch!r} was made from the data "
                f"{str(split.spec.dataset)[-24:]}, the job has {samples.fingerprint[-24:]}: give the "
                f"job that the store was made from"
            )
        selected, output = select_parameters(job.model, job.parameters), output_on(job, device)
        projector = make_projector(
            ProjectionSpec("identity"), parameter_spec(selected, job.parameters)
        )
        scale = stored_scale(split.location, spec)
        projector = projector if scale is None else scale.scaled(projector)
        engine = FactorisedEngine(job.model, output, selected, projector)
        batches = Batches.of(job.model, output, samples.dataset, device, job.collate)
        reader = BatchReader(batches, job.batch_size)
        labels = samples.labels(job.model, output)
        if labels is not None:
            # The store's rows begin the solution, and give λ. Where an earlier version left them as
            # they are, scaled ones would be of another kernel.
            labels = replace(labels, loss_scale=split.spec.loss_scale)
        where = f"{split.name} at epoch {split.epoch}"
        return cls(
            engine, WatchedReader(reader, engine, labels, where), rows, job.batch_size, where
        )

    def tiles(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield rows in order, each tile with its first row: float32, shape (rows, parameters).

        Raises
        ------
        NumericsError
            When a gradient is not finite.
        """
        for start, stop in ranges(len(self.rows), self.at_once):
            rows = self.rows[start:stop]
            parts = self.reader.picked(rows)
            gradients = torch.cat([self._gradients(one.rows, one.batch) for one in parts])
            if not bool(gradients.isfinite().all()):
                raise NumericsError(f"{self.where}: gradients of rows {rows[0]}.. are not finite")
            if len(parts) > 1:
                # Batches of one shape have the rows in another order: back to that of the tile.
                read = np.concatenate([one.rows for one in parts])
                gradients = gradients[torch.from_numpy(read.argsort()[rows.argsort().argsort()])]
            yield slice(start, stop), gradients

    def _gradients(self, rows: NDArray[np.int64], batch: Any) -> Tensor:
        labels, batch = self.reader.labels, self.reader.labelled(rows, batch)
        own = self.engine.rows(batch)
        features, outputs = own if labels is None else labels.scaled(batch, own)
        # A loss gradient is −q times that of the output. Both sides of a score have the sign.
        return (features * outputs.out_to_loss.to(features)[:, None]).detach()

    def matrix(self) -> Tensor:
        """Compute all rows at once, shape (rows, parameters)."""
        return torch.cat([tile for _, tile in self.tiles()])

    def products(self, vectors: Tensor) -> NDArray[np.float64]:
        """Compute ``vectors`` Gᵀ, shapes (m, parameters) -> (m, rows), in one pass over the rows G."""
        out = np.empty((len(vectors), len(self.rows)))
        for at, tile in self.tiles():
            out[:, at] = (vectors @ tile.T).double().cpu().numpy()
        return out

    def combined(self, weights: NDArray[np.float64]) -> Tensor:
        """Compute ``weights`` G, shapes (m, rows) -> (m, parameters), in one pass over the rows G."""
        out: Tensor | None = None
        for at, tile in self.tiles():
            own = torch.from_numpy(np.ascontiguousarray(weights[:, at])).to(tile)
            out = own @ tile if out is None else out.addmm_(own, tile)
        assert out is not None
        return out
