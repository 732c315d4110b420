"""Scores (target, train) of language models by other libraries, from the same checkpoints."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from language import LanguageModel, Text
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, TensorDataset

F32 = NDArray[np.float32]
States = Sequence[Mapping[str, Tensor]]
Make = Callable[[], LanguageModel]
BATCH = 64


def sets(text: Text) -> tuple[TensorDataset, TensorDataset]:
    return TensorDataset(torch.from_numpy(text.train)), TensorDataset(torch.from_numpy(text.target))


def whole_log_odds(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log-odds of a document's tokens, summed up, and one minus the mean probability of one."""
    chosen = logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    rest = logits.scatter(-1, labels[..., None], -torch.inf).logsumexp(-1)
    picked = logits.gather(-1, labels[..., None])[..., 0]
    return (picked - rest).sum(-1), 1 - chosen.exp().mean(-1)


def traker(make: Make, states: States, text: Text, dim: int) -> F32:
    """TRAKer with an output like that of its task of language modelling, in float32."""
    from trak import TRAKer
    from trak.modelout_functions import AbstractModelOutput
    from trak.projectors import BasicProjector, ProjectionType

    class Output(AbstractModelOutput):  # type: ignore[misc]
        def __init__(self) -> None:  # abstract there
            pass

        @staticmethod
        def get_output(
            model: nn.Module, weights: Any, buffers: Any, ids: Tensor, _: Tensor
        ) -> Tensor:
            logits = functional_call(model, (weights, buffers), (ids[None],))[0, :-1]
            return whole_log_odds(logits, ids[1:])[0]

        def get_out_to_loss_grad(
            self, model: nn.Module, weights: Any, buffers: Any, batch: Sequence[Tensor]
        ) -> Tensor:
            ids = batch[0]
            logits = functional_call(model, (weights, buffers), (ids,))[:, :-1]
            return whole_log_odds(logits, ids[:, 1:])[1][:, None]

    model, (train, target) = make().eval(), sets(text)
    size = sum(p.numel() for p in model.parameters())
    kind = ProjectionType.rademacher
    projector = BasicProjector(size, dim, 0, kind, "cpu", dtype=torch.float32)
    quiet: Any = {"device": "cpu", "use_half_precision": False, "logging_level": logging.ERROR}
    with tempfile.TemporaryDirectory() as folder, sdpa_kernel(SDPBackend.MATH):
        quiet |= {"proj_dim": dim, "projector": projector}
        run = TRAKer(model, Output(), len(train), folder, **quiet)
        for number, state in enumerate(states):
            run.load_checkpoint(dict(state), model_id=number)
            for (ids,) in DataLoader(train, BATCH):
                run.featurize((ids, ids), num_samples=len(ids))
        run.finalize_features()
        for number, state in enumerate(states):
            run.start_scoring_checkpoint(
                "all", dict(state), model_id=number, num_targets=len(target)
            )
            for (ids,) in DataLoader(target, BATCH):
                run.score((ids, ids), num_samples=len(ids))
        return np.asarray(run.finalize_scores("all"), dtype=np.float32).T


def dattri(make: Make, states: States, text: Text, dim: int) -> F32:
    """Its TRAK with the same output."""
    from dattri.algorithm.trak import TRAKAttributor
    from dattri.task import AttributionTask

    model = make().eval()

    def odds(parameters: Any, sample: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        ids = sample[0]
        logits = functional_call(model, parameters, (ids[None],))[0, :-1]
        return whole_log_odds(logits, ids[1:])

    task = AttributionTask(
        loss_func=lambda parameters, sample: odds(parameters, sample)[0],
        model=model,
        checkpoints=[dict(state) for state in states],
    )
    attributor = TRAKAttributor(
        task,
        lambda parameters, sample: (1 - odds(parameters, sample)[1]).reshape(1),
        projector_kwargs={"proj_dim": dim, "proj_max_batch_size": 32, "device": "cpu"},
        regularization=1e-2,
    )
    train, target = sets(text)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        attributor.cache(DataLoader(train, BATCH))
        scores = attributor.attribute(DataLoader(target, BATCH))
    return np.asarray(scores, dtype=np.float32).T


def kronfluence(make: Make, states: States, text: Text, dim: int) -> F32:  # noqa: ARG001
    """Its EK-FAC of all linear layers with its own damping; nothing is projected."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task

    class Language(Task):  # type: ignore[misc]
        def compute_train_loss(
            self, batch: Sequence[Tensor], model: nn.Module, sample: bool = False
        ) -> Tensor:
            logits, labels = model(batch[0])[:, :-1].flatten(0, 1), batch[0][:, 1:].flatten()
            if sample:
                with torch.no_grad():
                    labels = torch.multinomial(logits.softmax(-1), 1)[:, 0]
            return F.cross_entropy(logits, labels, reduction="sum")

        def compute_measurement(self, batch: Sequence[Tensor], model: nn.Module) -> Tensor:
            return self.compute_train_loss(batch, model)

    train, target = sets(text)
    found = []
    for number, state in enumerate(states):
        model = make()
        model.load_state_dict(dict(state))
        model, task = prepare_model(model.eval(), Language()), Language()
        with tempfile.TemporaryDirectory() as folder:
            options = {"output_dir": folder, "cpu": True, "disable_tqdm": True}
            run = Analyzer(f"lm{number}", model, task, disable_model_save=True, **options)
            run.fit_all_factors(
                "ekfac",
                train,
                per_device_batch_size=BATCH,
                factor_args=FactorArguments(strategy="ekfac"),
            )
            run.compute_pairwise_scores(
                "scores",
                "ekfac",
                target,
                train,
                per_device_query_batch_size=BATCH,
                per_device_train_batch_size=BATCH,
                score_args=ScoreArguments(),
            )
            found.append(run.load_pairwise_scores("scores")["all_modules"].numpy())
    return np.asarray(np.mean(found, axis=0), dtype=np.float32)


# Those of the first group project to a number of dimensions.
PROJECTED: dict[str, Callable[..., F32]] = {"traker": traker, "dattri": dattri}
WHOLE: dict[str, Callable[..., F32]] = {"EK-FAC by kronfluence": kronfluence}
