"""Tensors that other hooks of a module replace: knowledge about them is carried over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as tree

__all__ = ["carried"]


@contextmanager
def carried(module: nn.Module, carry: Callable[[Tensor, Tensor], None]) -> Iterator[None]:
    """Call ``carry`` for each tensor that a hook of a module replaces by another, as FSDP's hooks do.

    Parameters
    ----------
    module : nn.Module
    carry : callable
        Function of a tensor before the module's hooks, and the one after them.
    """
    held: list[list[Tensor]] = []

    def keep(_module: nn.Module, args: Any, last: Any) -> None:
        held.append(_tensors((args, last)))

    def keep_output(_module: nn.Module, _args: Any, out: Any) -> None:
        held.append(_tensors(out))

    def tell(now: list[Tensor]) -> None:
        before = held.pop()
        if len(before) == len(now):
            for one, other in zip(before, now, strict=True):
                if one is not other:
                    carry(one, other)

    def inputs(_module: nn.Module, args: Any, kwargs: Any) -> None:
        tell(_tensors((args, kwargs)))

    def outputs(_module: nn.Module, _args: Any, out: Any) -> None:
        tell(_tensors(out))

    with ExitStack() as hooks:
        for handle in (
            module.register_forward_pre_hook(keep, prepend=True, with_kwargs=True),
            module.register_forward_pre_hook(inputs, with_kwargs=True),
            module.register_forward_hook(keep_output, prepend=True),
            module.register_forward_hook(outputs),
        ):
            hooks.enter_context(handle)
        yield


def _tensors(value: Any) -> list[Tensor]:
    return [one for one in tree.tree_leaves(value) if isinstance(one, Tensor)]
