"""Training of one model on many subsets of its data at once."""

from __future__ import annotations

import hashlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.utils import _pytree as tree
from torch.utils.data import default_collate

from trakstore.errors import TrakStoreError
from trakstore.evaluation.function_descriptions import code, plain
from trakstore.evaluation.retraining import Retrained
from trakstore.evaluation.trained import (
    Attributes,
    NotStackable,
    Trained,
    slots_of,
    tensors_of,
    untouched,
)
from trakstore.features.fingerprint import dataset_rows
from trakstore.features.gradients import FAILURES
from trakstore.features.outputs import ModelOutput, as_output
from trakstore.features.reading import read_sample
from trakstore.quantities import as_mask, as_whole

# The docs have a page about this module, which shows these names.
__all__ = ["SubsetTrainer"]

log = logging.getLogger("trakstore")

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


@dataclass(frozen=True)
class SubsetTrainer:
    """Trainer of a small model from scratch on each of several subsets; all is held in memory.

    Models of one subset size are trained together, as one: their parameters and buffers are stacked
    (``torch.func``), and an optimiser that works element by element, such as SGD or Adam, does for each
    what it would do alone. If ``vmap`` has no rule for the model, or modules hold tensors or numbers
    beside parameters and buffers that differ or change, models are trained one after the other, with a
    line in the log. A model depends on its subset and seed, not on those beside it, except for rounding
    and dropout.

    Attributes
    ----------
    make_model : callable
        Makes the model with new weights from torch's generator, which is seeded before the call.
    train, targets : dataset
        Samples as a ``DataLoader`` takes them: n train samples and m targets.
    output : str or ModelOutput
        Output for the targets; its loss is minimised.
    epochs, batch_size : int
        Epochs, and samples of a batch; the last, shorter batch of an epoch is also a step.
    optimizer : callable
        Makes an optimiser from a list of parameters; by default SGD with rate 0.1 and momentum 0.9.
    schedule : callable, optional
        Makes a learning rate scheduler from an optimiser and the number of steps; it steps after each
        batch.

    Examples
    --------
    >>> trainer = SubsetTrainer(lambda: nn.Linear(4, 3), train, test, epochs=1)
    >>> trainer(np.ones((2, 24), bool), np.arange(2)).output.shape
    (2, 6)

    With 200 models on random halves, for the linear datamodeling score::

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

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            object.__setattr__(self, name, as_whole(getattr(self, name), name, 1))

    def __call__(self, subsets: NDArray[np.bool_], seeds: NDArray[np.int64]) -> Retrained:
        """Train a model on each subset and ask it about the targets; arguments as in :meth:`fit`."""
        subsets, targets = self._checked(subsets), _all_rows(self.targets)
        train = _all_rows(self.train)
        self._check_outputs(train, np.flatnonzero(subsets.any(axis=0)), targets)
        outputs, classes = [], []
        for trained in self._trained(train, subsets, seeds):
            # The module itself is asked: an output may need more of it than its parameters.
            with trained.in_model() as model:
                values, predicted = self._outputs(model, targets)
            outputs.append(values)
            if predicted is not None:
                classes.append(predicted)
        return Retrained(np.stack(outputs), np.stack(classes) if classes else None)

    def count_targets(self) -> int:
        """Number of targets that models are asked about."""
        return dataset_rows(self.targets)

    def to_dict(self) -> dict[str, Any]:
        """Describe how it trains, in plain values: equal for trainers that train alike.

        Of functions, their names, the arguments that ``functools.partial`` holds, and a digest of what
        people wrote themselves: models of the same
        shapes and rates in a lambda are told apart so. Of the model, a digest of its parameters'
        names and shapes. The data are not part of it.
        """
        model = self._fresh(0)
        shapes = sorted((name, tuple(p.shape)) for name, p in model.named_parameters())
        spec = as_output(self.output).spec
        return {
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "output": spec.to_dict(),
            "optimizer": plain(self.optimizer),
            "schedule": plain(self.schedule),
            "model": hashlib.sha256(str(shapes).encode()).hexdigest(),
            "code": {
                "python": f"{sys.version_info.major}.{sys.version_info.minor}",
                **{
                    name: digest
                    for name in ("make_model", "optimizer", "schedule")
                    if (digest := code(getattr(self, name)))
                },
            },
        }

    def fit(self, subsets: NDArray[np.bool_], seeds: NDArray[np.int64]) -> list[dict[str, Tensor]]:
        """Train a model on each subset, and return the weights of all.

        Parameters
        ----------
        subsets : ndarray of bool, shape (models, n)
            Train rows of each model.
        seeds : ndarray of int64, shape (models,)
            Seeds of the weights, the order of samples and what is random in the model.

        Returns
        -------
        list of state dicts
            In the order of the subsets, each with the names of the model's ``state_dict()``: tied
            weights by all their names, no buffers that are not persistent. A ``Job`` takes them for
            checkpoints.

        Raises
        ------
        TrakStoreError
            Subsets of another number of rows, or empty ones.
        """
        subsets, states = self._checked(subsets), []
        for trained in self._trained(_all_rows(self.train), subsets, seeds):
            with trained.in_model() as model:
                states.append({name: value.clone() for name, value in model.state_dict().items()})
        return states

    def _checked(self, subsets: NDArray[np.bool_]) -> NDArray[np.bool_]:
        count, subsets = dataset_rows(self.train), as_mask(subsets, "subsets")
        if subsets.ndim != 2 or subsets.shape[1] != count or not subsets.any(axis=1).all():
            raise TrakStoreError(
                f"needed subsets of {count} train rows, none empty, got shape {subsets.shape}"
            )
        return subsets

    def _trained(
        self, train: Any, subsets: NDArray[np.bool_], seeds: NDArray[np.int64]
    ) -> list[Trained]:
        """Train a model on each subset, those of one size together; in the order of the subsets."""
        sizes = subsets.sum(axis=1)
        by_number: dict[int, Trained] = {}
        # Stacked models step together: they need batches of one shape, so subsets of one size.
        for size in np.unique(sizes):
            which = np.flatnonzero(sizes == size)
            rows = np.stack([np.flatnonzero(subsets[i]) for i in which])
            models = self._fit_equal(train, rows, seeds[which].tolist())
            by_number.update(zip(which.tolist(), models, strict=True))
        return [by_number[i] for i in range(len(sizes))]

    def _fit_equal(self, train: Any, rows: NDArray[np.int64], seeds: list[int]) -> list[Trained]:
        """Train models of one subset size, whose rows are (models, size)."""
        try:
            with warnings.catch_warnings():
                # Where torch loops over the models by itself it is slower, and right.
                warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
                return self._fit_stacked(train, rows, seeds)
        except torch.OutOfMemoryError:
            raise
        except NotStackable as error:
            reason = str(error)
        except FAILURES as error:
            # No rule of vmap, or a fault of the model's own: that one is raised again below.
            reason = f"vmap cannot do this one ({str(error).splitlines()[0][:200]})"
        trained = [self._fit_alone(train, rows[i], seed) for i, seed in enumerate(seeds)]
        log.warning("models are trained one after the other, since %s", reason)
        return trained

    def _check_outputs(self, train: Any, rows: NDArray[np.int64], targets: Any) -> None:
        """Refuse, before any training, samples that the model as it is made has no output of.

        Of the train rows, those that are in a subset: bad ones that a store has masked may be there.
        """
        model, output = self._fresh(0), as_output(self.output)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            values = torch.from_numpy(self._outputs(model, targets)[0])
            pieces = torch.from_numpy(rows).split(self.batch_size)
            losses = torch.cat([output(model, _taken(train, at)).loss for at in pieces])
        for what, at, numbers in (
            ("target", range(len(values)), values),
            ("train row", rows, losses),
        ):
            bad = numbers.isnan().nonzero()
            if len(bad):
                raise TrakStoreError(
                    f"{what} {at[int(bad[0])]} has no {output.name} before anything is trained: look "
                    f"at its label and inputs, or leave it out"
                )

    def _outputs(
        self, model: nn.Module, targets: Any
    ) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
        """Ask a model about the targets: its outputs, and its classes where there are some."""
        output = as_output(self.output)
        with torch.no_grad():
            values = output(model.eval(), targets).output.float().numpy()
            predicted = output.predictions(model, targets)
        return values, None if predicted is None else predicted.numpy()

    def _fresh(self, seed: int) -> nn.Module:
        """Make the model with the weights of a seed; the caller's generator is as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.make_model()

    def _fit_stacked(self, train: Any, rows: NDArray[np.int64], seeds: list[int]) -> list[Trained]:
        """Train models whose rows are (models, size) as one, whose parameters are theirs, stacked."""
        models = [self._fresh(seed).train() for seed in seeds]
        # What vmap leaves in a module is thrown away with it.
        first = deepcopy(models[0])
        attributes = Attributes(first)
        attributes.need_alike(models)
        parameters, buffers = stack_module_state(models)
        losses = vmap(
            partial(_loss, first, slots_of(first), as_output(self.output)), randomness="different"
        )
        # Dropout of stacked models draws from one stream: the first model's seed is that of all.
        with self._steps(rows, seeds, list(parameters.values())) as steps:
            for number, (at, step) in enumerate(steps):
                loss, changed = losses(parameters, buffers, _taken(train, at))
                # No loss depends on another model's parameters: the sum has each one's own gradient.
                step(loss.sum())
                buffers = {name: value.detach() for name, value in changed.items()}
                if not number:
                    # Most that will change do so at once, before hours of training.
                    attributes.need_unchanged()
        attributes.need_unchanged()
        state = {name: value.detach() for name, value in {**parameters, **buffers}.items()}
        return [
            Trained(model, {name: value[i] for name, value in state.items()})
            for i, model in enumerate(models)
        ]

    def _fit_alone(self, train: Any, rows: NDArray[np.int64], seed: int) -> Trained:
        """Train one model, as anybody would."""
        model, output = self._fresh(seed).train(), as_output(self.output)
        with (
            untouched(model),
            self._steps(rows[None], [seed], list(model.parameters())) as steps,
        ):
            for at, step in steps:
                step(output(model, _taken(train, at[0])).loss.mean())
            state = {name: tensor.data for name, tensor in tensors_of(model).items()}
        return Trained(model, state)

    @contextmanager
    def _steps(
        self, rows: NDArray[np.int64], seeds: list[int], parameters: list[Tensor]
    ) -> Iterator[Iterator[tuple[Tensor, Callable[[Tensor], None]]]]:
        """Yield batches (models, batch) of rows, each with the step that a loss of it makes."""
        optimizer = self.optimizer([one for one in parameters if one.requires_grad])
        batches = list(self._batches(rows, seeds))
        schedule = self.schedule and self.schedule(optimizer, len(batches))

        def step(loss: Tensor) -> None:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds[0])
            yield ((at, step) for at in batches)

    def _batches(self, rows: NDArray[np.int64], seeds: list[int]) -> Iterator[Tensor]:
        """Train rows (models, batch), each model's in an order of its own."""
        # A generator for each model: its order does not depend on the models beside it.
        orders = [np.random.default_rng(seed) for seed in seeds]
        for _ in range(self.epochs):
            mixed = np.stack([rng.permutation(own) for rng, own in zip(orders, rows, strict=True)])
            yield from torch.from_numpy(mixed).split(self.batch_size, dim=1)


def _loss(
    model: nn.Module,
    slots: dict[str, str],
    output: ModelOutput,
    parameters: dict[str, Tensor],
    buffers: dict[str, Tensor],
    batch: Any,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the mean loss of one model on its batch, and its buffers afterwards."""
    # A module may give a buffer another tensor instead of writing into it: functional_call leaves in
    # the dict what the names stand for after the call. Each place in a module is named once: a module
    # whose tensors are swapped by two names does not get its own back.
    named = {**parameters, **buffers}
    state = {slot: named[name] for slot, name in slots.items()}

    def called(*arguments: Any, **keywords: Any) -> Any:
        return functional_call(model, state, arguments, keywords, tie_weights=False)

    loss = output(called, batch).loss.mean()
    return loss, {name: state[name] for name in buffers}


def _taken(batch: Any, at: Tensor) -> Any:
    return tree.tree_map(lambda leaf: leaf[at], batch)


def _all_rows(dataset: Any) -> Any:
    """Collate all samples into one batch."""
    return default_collate([read_sample(dataset, i) for i in range(dataset_rows(dataset))])
