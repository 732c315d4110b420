"""Models that are spread over the devices of one process, as ``device_map`` of transformers does it.

Hooks of accelerate take activations from one layer to the next, so that a pass is like any other. Each
layer's part of the features is summed on the layer's own device; the parts are added up at the end.
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
    """Return the device of a model's first parameter, on which its samples are given."""
    return next(model.parameters()).device


class SpreadSums:
    """Features of a batch, a summand of them on each device where layers are.

    Parameters
    ----------
    own : Tensor, shape (batch, dim)
        Zeros, where the batch is.
    """

    def __init__(self, own: Tensor) -> None:
        self._own = own
        self._others: dict[torch.device, Tensor] = {}

    def on(self, device: torch.device) -> Tensor:
        """Return the summand to which a layer on a device adds."""
        if device == self._own.device:
            return self._own
        # Each device has a thread of its own in a backward pass: none but that one asks for this. What
        # waits to be added is folded after the pass, into summands that were asked for before.
        if device not in self._others:
            self._others[device] = torch.zeros_like(self._own, device=device)
        return self._others[device]

    def total(self) -> Tensor:
        """Return the sum, where the batch is."""
        # Devices are in one order, whichever thread came first: a sum has the same bits in every run.
        for _, summand in sorted(self._others.items(), key=lambda pair: str(pair[0])):
            self._own += summand.to(self._own.device)
        return self._own
