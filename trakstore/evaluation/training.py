"""Training one model on many subsets of its data at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.utils import _pytree as tree
from torch.utils.data import default_collate

from trakstore.errors import TrakStoreError
from trakstore.evaluation.retraining import Retrained
from trakstore.features.fingerprint import dataset_rows
from trakstore.features.outputs import ModelOutput, as_output

__all__ = ["SubsetTrainer"]

log = logging.getLogger("trakstore")

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
State: TypeAlias = "tuple[dict[str, Tensor], dict[str, Tensor]]"  # parameters, buffers


@dataclass(frozen=True)
class SubsetTrainer:
    """Trains a small model anew on each of several subsets; data and models are held in memory.

    Models of one subset size are trained together, as one: their parameters are stacked
    (``torch.func``), and an optimiser that works element by element, as SGD and Adam do, does for
    each what it would do alone. Where ``vmap`` has no rule for the model, one is trained after the
    other, with one line in the log. What a model becomes depends on its subset and seed, not on
    those beside it, but for rounding and for dropout.

    Attributes
    ----------
    make_model : callable
        Makes the model with new weights from torch's generator, which is seeded before.
    train, targets : dataset
        Samples as a ``DataLoader`` takes them, with n and m of them.
    output : str or ModelOutput
        What is told of the targets; its loss is what is trained.
    epochs, batch_size : int
        The last, short batch of an epoch is a step too.
    optimizer : callable
        Makes an optimiser of a list of parameters; SGD of rate 0.1 and momentum 0.9 by default.
    schedule : callable, optional
        Makes a learning rate scheduler of an optimiser and the number of steps; it steps with each
        batch.

    Examples
    --------
    ::

        trainer = SubsetTrainer(make_model, train, test, epochs=10,
                                optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9))
        retrain(trainer, store, "halves", SubsetPlan(rows=len(train)), models=200)
    """

    make_model: Callable[[], nn.Module]
    train: Any
    targets: Any
    output: str | ModelOutput = "margin"
    epochs: int = 10
    batch_size: int = 64
    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer] = SGD
    schedule: Callable[[torch.optim.Optimizer, int], Any] | None = None

    def __call__(self, subsets: NDArray[np.bool_], seeds: NDArray[np.int64]) -> Retrained:
        """Train a model on each subset.

        Parameters
        ----------
        subsets : ndarray of bool, shape (models, n)
        seeds : ndarray of int64, shape (models,)
            Of the weights, the order of samples and what is random in the model.

        Raises
        ------
        TrakStoreError
            Subsets of another number of rows, or empty ones.
        """
        count = dataset_rows(self.train)
        if subsets.ndim != 2 or subsets.shape[1] != count or not subsets.any(axis=1).all():
            raise TrakStoreError(
                f"needed subsets of {count} train rows, none empty, got shape {subsets.shape}"
            )
        train, targets = (_all_rows(data) for data in (self.train, self.targets))
        sizes = subsets.sum(axis=1)
        found: list[Retrained] = []
        order: list[int] = []
        for size in np.unique(sizes):
            which = np.flatnonzero(sizes == size)
            rows = np.stack([np.flatnonzero(subsets[i]) for i in which])
            order += which.tolist()
            found += self._trained(train, targets, rows, seeds[which].tolist())
        back = np.argsort(order)
        output = np.stack([one.output for one in found])[back]
        classes = [one.predicted for one in found if one.predicted is not None]
        return Retrained(output, np.stack(classes)[back] if classes else None)

    def _trained(
        self, train: Any, targets: Any, rows: NDArray[np.int64], seeds: list[int]
    ) -> Iterator[Retrained]:
        """What models of one subset size give, whose rows are (models, size)."""
        try:
            state = self._fit(train, rows, seeds, together=True)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            fits = [self._fit(train, rows[i : i + 1], [seed]) for i, seed in enumerate(seeds)]
            log.warning(
                "models are trained one after the other, since vmap cannot do this one (%s)",
                str(error).splitlines()[0][:200],
            )
            state = tree.tree_map(lambda *leaves: torch.cat(leaves), *fits)
        model = self._fresh(seeds[0]).eval()
        for i in range(len(seeds)):
            yield self._told(model, tree.tree_map(lambda leaf, i=i: leaf[i], state), targets)

    def _fresh(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.make_model()

    def _fit(
        self, train: Any, rows: NDArray[np.int64], seeds: list[int], together: bool = False
    ) -> State:
        """Weights and buffers after training, stacked over the models."""
        models = [self._fresh(seed).train() for seed in seeds]
        parameters, buffers = stack_module_state(models)
        optimizer = self.optimizer([p for p in parameters.values() if p.requires_grad])
        batches = list(self._batches(rows, seeds))
        schedule = self.schedule and self.schedule(optimizer, len(batches))
        one = partial(_loss, models[0], as_output(self.output))
        losses = vmap(one, randomness="different") if together else partial(_single, one)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds[0])
            for at in batches:
                batch = tree.tree_map(lambda leaf, at=at: leaf[at], train)
                optimizer.zero_grad()
                losses(parameters, buffers, batch).sum().backward()
                optimizer.step()
                if schedule is not None:
                    schedule.step()
        return {name: p.detach() for name, p in parameters.items()}, buffers

    def _batches(self, rows: NDArray[np.int64], seeds: list[int]) -> Iterator[Tensor]:
        """Train rows (models, batch), each model's in an order of its own."""
        orders = [np.random.default_rng(seed) for seed in seeds]
        for _ in range(self.epochs):
            mixed = np.stack([rng.permutation(own) for rng, own in zip(orders, rows, strict=True)])
            yield from torch.from_numpy(mixed).split(self.batch_size, dim=1)

    def _told(self, model: nn.Module, state: State, targets: Any) -> Retrained:
        output = as_output(self.output)
        called = partial(functional_call, model, state)
        with torch.no_grad():
            told = output(lambda *a, **k: called(a, k), targets).output
            predicted = output.predictions(lambda *a, **k: called(a, k), targets)
        return Retrained(
            np.asarray(told.float().numpy()), None if predicted is None else predicted.numpy()
        )


def _loss(
    model: nn.Module,
    output: ModelOutput,
    parameters: dict[str, Tensor],
    buffers: dict[str, Tensor],
    batch: Any,
) -> Tensor:
    """The mean loss of one model on its batch."""

    def called(*arguments: Any, **keywords: Any) -> Any:
        return functional_call(model, (parameters, buffers), arguments, keywords)

    return output(called, batch).loss.mean()


def _single(one: Callable[..., Tensor], *stacked: Any) -> Tensor:
    """``one`` without ``vmap``, of a stack of one."""
    return one(*(tree.tree_map(lambda leaf: leaf[0], each) for each in stacked))


def _all_rows(dataset: Any) -> Any:
    """A batch of all samples."""
    return default_collate([dataset[i] for i in range(dataset_rows(dataset))])
