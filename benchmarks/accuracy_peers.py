"""Scores (target, train) by other libraries, of the same models and data."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

Weights = Sequence[Mapping[str, Tensor]]
Data = Mapping[str, TensorDataset]
BATCH = 100


def traker(
    make: Callable[[], nn.Module], weights: Weights, data: Data, dim: int
) -> NDArray[np.float32]:
    """TRAKer with its defaults, but in float32 and with the projector that a CPU has."""
    from trak import TRAKer
    from trak.projectors import BasicProjector, ProjectionType

    model = make().eval()
    count, targets = len(data["train"]), len(data["test"])
    size, kind = sum(p.numel() for p in model.parameters()), ProjectionType.rademacher
    projector = BasicProjector(size, dim, 0, kind, "cpu", dtype=torch.float32)
    quiet: Any = {"device": "cpu", "use_half_precision": False, "logging_level": logging.ERROR}
    with tempfile.TemporaryDirectory() as folder:
        quiet |= {"proj_dim": dim, "projector": projector}
        run = TRAKer(model, "image_classification", count, folder, **quiet)
        for number, state in enumerate(weights):
            run.load_checkpoint(state, model_id=number)
            for batch in DataLoader(data["train"], BATCH):
                run.featurize(batch, num_samples=len(batch[1]))
        run.finalize_features()
        for number, state in enumerate(weights):
            run.start_scoring_checkpoint("all", state, model_id=number, num_targets=targets)
            for batch in DataLoader(data["test"], BATCH):
                run.score(batch, num_samples=len(batch[1]))
        scores = np.asarray(run.finalize_scores("all"), dtype=np.float32)
    return scores.T


def dattri(
    make: Callable[[], nn.Module],
    weights: Weights,
    data: Data,
    dim: int,
    regularization: float = 0.0,
) -> NDArray[np.float32]:
    """Its TRAK with the margin as target and as train function, as its examples have it."""
    from dattri.algorithm.trak import TRAKAttributor
    from dattri.task import AttributionTask

    model = make().eval()
    likelihood = partial(_likelihood, model)

    def margin(parameters: Any, sample: Any) -> Tensor:
        p = likelihood(parameters, sample)
        return torch.log(p / (1 - p))

    task = AttributionTask(loss_func=margin, model=model, checkpoints=[dict(w) for w in weights])
    attributor = TRAKAttributor(
        task,
        lambda parameters, sample: likelihood(parameters, sample).reshape(1),
        projector_kwargs={"proj_dim": dim, "proj_max_batch_size": BATCH, "device": "cpu"},
        regularization=regularization,
    )
    with torch.no_grad():
        attributor.cache(DataLoader(data["train"], BATCH))
        scores = attributor.attribute(DataLoader(data["test"], BATCH))
    return np.asarray(scores, dtype=np.float32).T


def _likelihood(model: nn.Module, parameters: Any, sample: Any) -> Tensor:
    image, label = sample
    logits = torch.func.functional_call(model, parameters, image.unsqueeze(0))
    return torch.exp(-nn.functional.cross_entropy(logits, label.unsqueeze(0)))


def dattri_lds(
    scores: NDArray[np.float32], subsets: NDArray[np.bool_], outputs: NDArray[np.float32]
) -> float:
    """The mean of dattri's own LDS, of subsets of one size."""
    from dattri.metric import lds

    rows = np.stack([np.flatnonzero(mask) for mask in subsets])
    truth = (torch.from_numpy(outputs), torch.from_numpy(rows))
    return float(lds(torch.from_numpy(scores.T.copy()), truth)[0].mean())


PEERS: dict[str, Callable[..., NDArray[np.float32]]] = {"traker": traker, "dattri": dattri}
