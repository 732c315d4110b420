"""Kernels in Triton, which torch brings along where it is built for a GPU; imported when used."""

from __future__ import annotations

import logging
from functools import cache
from importlib.util import find_spec

import torch

__all__ = ["gathers", "usable"]

log = logging.getLogger("trakstore")


@cache
def usable(device: torch.device, generation: int = 7) -> bool:
    """Tell whether kernels run on a device; on a GPU without Triton a line in the log says so.

    Parameters
    ----------
    device : torch.device
    generation : int
        First number of the compute capability that they need; 8 for products of bfloat16.

    Examples
    --------
    >>> usable(torch.device("cpu"))
    False
    """
    if device.type != "cuda":
        return False
    if find_spec("triton") is None:
        log.warning(
            "Triton is not installed: projections on %s are plain torch, which is right but slow; "
            "pip install triton",
            device,
        )
        return False
    return torch.cuda.get_device_capability(device)[0] >= generation


@cache
def gathers() -> bool:
    """Tell whether Triton can gather within a tile: it can since version 3.2."""
    if find_spec("triton") is None:
        return False
    import triton.language

    return hasattr(triton.language, "gather")
