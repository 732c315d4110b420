"""Models spread over the devices of one process, as by ``device_map`` of transformers.

Hooks of accelerate move activations from one layer's device to the next, so that a pass is like any
other. Each layer's part of the features is summed on the layer's own device; the parts are added up at
the end.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["SpreadSums", "first_device", "is_spread"]


def is_spread(model: nn.Module) -> bool:
    """Tell whether accelerate spread a model over several devices of this process."""
    placed = any(hasattr(module, "hf_device_map") for module in model.modules())
    return placed and len({parameter.device for parameter in model.parameters()}) > 1


def first_device(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter, to which its samples are moved."""
    return next(model.parameters()).device


class SpreadSums:
    """Features of a batch, as one summand on each device that has layers.

    Parameters
    ----------
    own : Tensor, shape (batch, dim)
        Zeros on the device of the batch.
    """

    def __init__(self, own: Tensor) -> None:
        self._own = own
        self._others: dict[torch.device, Tensor] = {}

    def on(self, device: torch.device) -> Tensor:
        """Return the summand for layers on a device."""
        if device == self._own.device:
            return self._own
        # In a backward pass each device has a thread of its own, and only that one asks for its
        # summand. Pieces that wait are added after the pass, to summands that exist by then.
        if device not in self._others:
            self._others[device] = torch.zeros_like(self._own, device=device)
        return self._others[device]

    def total(self) -> Tensor:
        """Return the sum, on the device of the batch."""
        # Devices are added in a fixed order, whichever thread came first, so that every run gives the
        # same bits.
        for _, summand in sorted(self._others.items(), key=lambda pair: str(pair[0])):
            self._own += summand.to(self._own.device)
        return self._own
