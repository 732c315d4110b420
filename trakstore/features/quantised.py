"""Layers with frozen weights of 4 or 8 bits, below adapters that are featurized.

Most of them turn their weight back into floating point and multiply as any layer does, which is watched
like anything else. bitsandbytes multiplies within a ``torch.autograd.Function``, which cannot be
watched: its layers are known by their names, as products with a constant.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trakstore.features.wording import listed

__all__ = ["hidden_products", "named_without_gradients", "noticing"]

log = logging.getLogger("trakstore")

_PACKAGE = "bitsandbytes."


def hidden_products(model: nn.Module) -> list[nn.Module]:
    """List the modules whose output is a product of their input with a constant, in hidden code."""
    return [module for module in model.modules() if _is_hidden_product(module)]


def _is_hidden_product(module: nn.Module) -> bool:
    names = {one.__name__ for one in type(module).__mro__ if one.__module__.startswith(_PACKAGE)}
    if "Linear8bitLt" in names:
        # With a threshold, columns with an outlier in any row of the batch are treated differently in
        # all rows: a sample's output depends on the others.
        return not getattr(getattr(module, "state", None), "threshold", 1.0)
    return "Linear4bit" in names


@contextmanager
def noticing(
    modules: Sequence[nn.Module], notice: Callable[[Tensor, Tensor], None]
) -> Iterator[None]:
    """Call ``notice`` with the input and the output of some modules, whenever they are called."""

    def called(_module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(out, Tensor):
            notice(args[0], out)

    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(module.register_forward_hook(called))
        yield


@contextmanager
def named_without_gradients(model: nn.Module) -> Iterator[None]:
    """Warn of layers with weights of few bits that pass no gradient to the layers before them."""
    lost: dict[str, str] = {}
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if _holds_integers(module):

                def called(
                    own: nn.Module, args: tuple[Any, ...], out: Any, name: str = name
                ) -> None:
                    before = any(isinstance(one, Tensor) and one.requires_grad for one in args)
                    floating = isinstance(out, Tensor) and out.is_floating_point()
                    if torch.is_grad_enabled() and before and floating and not out.requires_grad:
                        lost[name] = type(own).__name__

                stack.enter_context(module.register_forward_hook(called))
        yield
    if lost:
        log.warning(
            "%d layers (%s) give no gradients to what is before them, so adapters there have features "
            "of zeros: load them with kernels that can train; they are %s",
            *(len(lost), ", ".join(sorted(set(lost.values()))), listed(list(lost))),
        )


def _holds_integers(module: nn.Module) -> bool:
    """Tell whether a module has a weight of its own that is not floating point."""
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return any(one.ndim > 1 and not (one.is_floating_point() or one.is_complex()) for one in own)
