"""Bytes of tensors that are alive at once while something runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as tree
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Need", "Peaks", "peak_bytes", "tensor_bytes"]


def peak_bytes(run: Callable[[], Any]) -> int:
    """Count the most bytes of tensors that are alive at once while ``run`` runs on one thread.

    Tensors are counted, not sampled, so that every worker and device finds the same number. Tensors
    that were there before (parameters, the batch) are not counted, nor is what a kernel allocates for
    itself.

    Examples
    --------
    >>> peak_bytes(lambda: torch.zeros(10) + torch.zeros(10))
    120
    """
    live, threads = _Live(), torch.get_num_threads()
    torch.set_num_threads(1)  # other threads' tensors would not be seen
    try:
        with live:
            run()
    finally:
        torch.set_num_threads(threads)
    return live.peak


class Peaks:
    """Bytes that the first sample of a batch needs, and the first two: counted once for each shape."""

    def __init__(self) -> None:
        self._known: dict[tuple[torch.Size, ...], tuple[int, int]] = {}

    def of(self, batch: Any, run: Callable[[int], Any]) -> tuple[int, int]:
        """Return both, as ``run(count)`` needs them for the first ``count`` samples."""
        shapes = tuple(leaf.shape for leaf in tree.tree_leaves(batch))
        if shapes not in self._known:
            self._known[shapes] = peak_bytes(lambda: run(1)), peak_bytes(lambda: run(2))
        return self._known[shapes]


def tensor_bytes(batch: Any) -> int:
    """Return the bytes of a batch's tensors."""
    return sum(leaf.numel() * leaf.element_size() for leaf in tree.tree_leaves(batch))


@dataclass(frozen=True)
class Need:
    """Bytes that computing a sample takes, as a function of its own bytes: a line through two points.

    A need that grows faster than the length, as that of attention, lies below the line between them.

    Attributes
    ----------
    short, long : tuple of int
        Bytes of a sample itself, and of computing it.
    """

    short: tuple[int, int]
    long: tuple[int, int]

    def of_samples_like(self, size: int) -> float:
        """Return how many samples of ``size`` bytes take what one long sample takes.

        Examples
        --------
        >>> need = Need(short=(10, 100), long=(50, 500))
        >>> need.of_samples_like(25), need.of_samples_like(5), need.of_samples_like(100)
        (2.0, 5.0, 0.5)
        """
        (low, least), (high, most) = self.short, self.long
        slope = max(0, most - least) / max(1, high - low)
        return most / (min(least, most) + slope * max(0, size - low))


class _Live(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known: dict[int, tuple[StorageWeakRef, int]] = {}  # sizes; 0 for what was there
        self._total = self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # `types` is torch's
        self._note((args, kwargs), made=False)
        out = func(*args, **(kwargs or {}))
        self._note(out, made=True)
        return out

    def _note(self, tensors: Any, made: bool) -> None:
        for tensor in tree.tree_leaves(tensors):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage._cdata not in self._known:
                size = storage.nbytes() if made else 0
                self._known[storage._cdata] = StorageWeakRef(storage), size
                self._total += size
        if self._total > self.peak:
            self._forget()
            self.peak = max(self.peak, self._total)

    def _forget(self) -> None:
        """Drop storages that were freed."""
        # The weak reference keeps a freed storage's address taken, so that no new one gets the same
        # key.
        self._known = {
            key: (there, size) for key, (there, size) in self._known.items() if not there.expired()
        }
        self._total = sum(size for _, size in self._known.values())
