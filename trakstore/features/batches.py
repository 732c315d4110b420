"""Batches of a data set, and a model that is lent for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as tree
from torch.utils.data import default_collate

from trakstore.errors import TrakStoreError

__all__ = ["Batches", "Collate", "evaluated"]

Collate = Callable[[list[Any]], Any]


@dataclass(frozen=True)
class Batches:
    """Samples of a data set, collated and moved to a device.

    Attributes
    ----------
    dataset : map-style data set
    device : torch.device
    collate : callable or None
        torch's default where None.
    """

    dataset: Any
    device: torch.device
    collate: Collate | None = None

    def read(self, start: int, stop: int) -> Any:
        """Samples ``start`` to ``stop`` as a tree of tensors with the batch dimension first.

        Mappings of any class, and dataclasses, come as dicts.
        """
        samples = [self.dataset[index] for index in range(start, stop)]
        batch = _as_tree(self._collated(samples, start))
        for leaf in tree.tree_leaves(batch):
            if not isinstance(leaf, Tensor) or leaf.ndim == 0 or len(leaf) != stop - start:
                got = tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__
                raise TrakStoreError(
                    f"a batch is a tree of tensors with the batch dimension first; samples "
                    f"{start} to {stop - 1} collate to one that holds {got}; pass collate="
                )
        return self._moved(batch)

    def _collated(self, samples: list[Any], start: int) -> Any:
        if self.collate is not None:
            return self.collate(samples)
        try:
            return default_collate(samples)
        except (RuntimeError, TypeError) as error:
            last = start + len(samples) - 1
            raise TrakStoreError(
                f"samples {start} to {last} cannot be put into one batch ({error}): make them "
                f"tensors of one shape, or pass collate="
            ) from error

    def _moved(self, batch: Any) -> Any:
        """The batch on the device: to a GPU from pinned memory, beside what it computes.

        The thread that reads waits for the copy, and nobody else.
        """
        if self.device.type != "cuda":
            return tree.tree_map(lambda tensor: _usable(tensor.to(self.device)), batch)
        copies, user = _copies(self.device), torch.cuda.default_stream(self.device)
        with torch.cuda.stream(copies):
            pinned = tree.tree_map(lambda tensor: tensor.cpu().pin_memory(), batch)
            moved = tree.tree_map(lambda t: t.to(self.device, non_blocking=True), pinned)
        copies.synchronize()
        for tensor in tree.tree_leaves(moved):
            tensor.record_stream(user)  # memory is not used again while that computes with it
        return moved


def _usable(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of one that was made in inference mode, which autograd cannot keep."""
    return tensor.clone() if tensor.is_inference() else tensor


def _as_tree(batch: Any) -> Any:
    """Mappings of any class become dicts, objects with fields dicts of those."""
    if isinstance(batch, Mapping):
        return dict(batch)
    if is_dataclass(batch) and not isinstance(batch, type):
        return {field.name: getattr(batch, field.name) for field in fields(batch)}
    return batch


@cache
def _copies(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _exact(device: str = "cpu") -> torch.autocast:
    """Autocast turned off."""
    return torch.autocast(device, enabled=False)


@contextmanager
def evaluated(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The model in eval mode on a device; every module's mode, and the device, are put back.

    What surrounds the call stays outside: inference mode, autocast, and the autocast that accelerate
    wraps a trained model's forward in.
    """
    modes = [(module, module.training) for module in model.modules()]
    first = next(model.parameters(), None)
    home = first.device if first is not None else device
    model.eval()
    wrapped = model.__dict__.get("forward")
    try:
        if "_original_forward" in model.__dict__ and wrapped is not None:
            model.forward = model._original_forward  # type: ignore[assignment]
        if home != device:
            model.to(device)
        with torch.inference_mode(False), _exact(), _exact(device.type):
            yield
    finally:
        if wrapped is not None:
            model.forward = wrapped
        for module, training in modes:
            module.training = training
        if home != device:
            model.to(home)
