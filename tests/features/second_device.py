"""A second device without a second device: tensors that say that they are there, on the CPU.

Torch has a place for one device whose operations are written in Python. Its tensors hold those of the
CPU, and an operation on tensors of both kinds fails, as it does between a GPU and the CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as tree
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["DEVICE", "Elsewhere", "There"]

DEVICE = "there:0"
_AWARE = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class _Backend:
    """The little that torch asks a device's module for."""

    device_count = staticmethod(lambda: 1)
    is_available = staticmethod(lambda: True)
    current_device = staticmethod(lambda: 0)
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16])
    _is_in_bad_fork = staticmethod(lambda: False)
    manual_seed_all = staticmethod(lambda _seed: None)
    get_rng_state = staticmethod(lambda _device: torch.zeros(0))
    set_rng_state = staticmethod(lambda _state, _device: None)


class There(Tensor):
    """A tensor on that device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> There:
        how = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        made: Any = Tensor._make_wrapper_subclass(
            cls, held.shape, dtype=held.dtype, device=DEVICE, **how
        )
        return made  # type: ignore[no-any-return]

    def __init__(self, held: Tensor) -> None:
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _called(func, args, kwargs or {})


class Elsewhere(TorchDispatchMode):
    """While it is on, tensors can be made there."""

    def __init__(self) -> None:
        if torch._C._get_privateuse1_backend_name() == "privateuseone":
            backend_registration._setup_privateuseone_for_python_backend("there", _Backend)  # type: ignore[attr-defined]
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _called(func, args, kwargs or {})


def _called(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the CPU; its results are where its tensors, or the ``device`` asked, are."""
    tensors = [one for one in tree.tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    inside = {id(one.held): one for one in tensors if isinstance(one, There)}
    asked = kwargs.get("device")
    there = bool(inside) if asked is None else torch.device(asked).type == "there"
    mixed = inside and any(one.ndim and not isinstance(one, There) for one in tensors)
    if mixed and func not in _AWARE:
        raise RuntimeError(f"Expected all tensors to be on the same device: {func}")

    def held(one: Any) -> Any:
        return one.held if isinstance(one, There) else one

    own = {name: held(one) for name, one in kwargs.items()}
    if asked is not None:
        own["device"] = torch.device("cpu")
    out = func(*tree.tree_map(held, args), **tree.tree_map(held, own))
    if func is torch.ops.aten.copy_.default:
        return args[0]
    # What is changed in place is the tensor that was given.
    given = inside | {id(one): one for one in tensors if not isinstance(one, There)}

    def back(one: Any) -> Any:
        if not isinstance(one, Tensor) or id(one) in given:
            return given.get(id(one), one)
        return There(one) if there else one

    return tree.tree_map(back, out)
