"""Classes that a job's model predicts for some samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Subset

from trakstore.errors import TrakStoreError
from trakstore.features.batches import Batches
from trakstore.features.evaluated import evaluated
from trakstore.features.job import Job
from trakstore.features.outputs import ModelOutput, as_output
from trakstore.features.wording import first_line

__all__ = ["predicted_classes"]

_CPU = torch.device("cpu")


def predicted_classes(
    job: Job, epoch: int | str, split: str, rows: NDArray[np.int64]
) -> NDArray[np.int64] | None:
    """Predict the classes of some samples of a split by the model of an epoch, on the CPU.

    Parameters
    ----------
    job : Job
    epoch : int or str
        Epoch whose weights the job's model has for the duration.
    split : str
        Name of a data set of the job.
    rows : ndarray of int64, shape (m,)
        Positions in the data set.

    Returns
    -------
    ndarray of int64, shape (m,), or None
        None where the job's output has no classes; then no weights are read.

    Raises
    ------
    NotFoundError
        When the job has no such epoch, or its file is missing.
    TrakStoreError
        When the weights are another model's, the samples make no batch, or the model fails on the CPU.
    """
    output = as_output(job.output)
    # The base class predicts nothing, which shows without any weights.
    if type(output).predictions is ModelOutput.predictions:
        return None
    dataset = Subset(job.datasets[split], rows.tolist())
    batches = Batches.of(job.model, output, dataset, _CPU, job.collate)
    classes = []
    with job.lent(), evaluated(job.load(epoch), _CPU), torch.no_grad():
        # One sample at a time: a model that mixes its batch must not mix these.
        for at in range(len(rows)):
            part = _predicted(output, job.model, batches.read(at, at + 1))
            if part is None:
                return None
            classes.append(part.numpy())
    return np.concatenate(classes)


def _predicted(output: ModelOutput, model: nn.Module, batch: Any) -> Tensor | None:
    try:
        return output.predictions(model, batch)
    except (RuntimeError, TypeError, ValueError) as error:
        raise TrakStoreError(
            f"the model does not run here, on the CPU: {first_line(error)}"
        ) from error
