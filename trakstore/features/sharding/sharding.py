"""Spread of a model over ranks, as the engines and the worker's loop see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trakstore.features.sharding.carrying import carried
from trakstore.features.sharding.lockstep import Lockstep
from trakstore.features.sharding.places import Unit
from trakstore.features.sharding.slices import Span, Tensors, part_to_add, span_of, whole_gradient

__all__ = ["WHOLE", "Sharding", "Take"]

T = TypeVar("T")
Take = Callable[[str, Tensor], None]  # is given a parameter's name and a gradient of it


@dataclass(frozen=True)
class Sharding:
    """A model that is spread over ranks, or is whole, as by default.

    Attributes
    ----------
    lockstep : Lockstep or None
        Passes that ranks begin together; None for a whole model.
    units : tuple of Unit
        Modules that FSDP2 gathers.
    pairs : mapping of id to Parameter
        What a pass sees of each parameter that FSDP2 shards, by the id of the sharded one.
    replica, replicas : int
        Number of this group of ranks, among those that hold the whole model each.
    number, numbers : int
        Number of this rank among those of its group that have samples of their own.
    tensors : Tensors or None
        Ranks that compute the same samples with this one, each with its part of the layers.
    """

    lockstep: Lockstep | None = None
    units: tuple[Unit, ...] = ()
    pairs: Mapping[int, nn.Parameter] = field(default_factory=dict)
    replica: int = 0
    replicas: int = 1
    number: int = 0
    numbers: int = 1
    tensors: Tensors | None = None

    @property
    def leads(self) -> bool:
        """Tell whether this is the first rank of its group, which speaks for it."""
        return self.lockstep is None or self.lockstep.first

    @property
    def writes(self) -> bool:
        """Tell whether this rank writes the blocks that it computes."""
        return self.tensors is None or self.tensors.rank == 0

    @property
    def tensor_parallel(self) -> bool:
        """Tell whether ranks compute the same samples together."""
        return self.tensors is not None

    def spans(self, parameters: Mapping[str, Tensor]) -> dict[str, Span]:
        """Return the parts of parameters that this rank has, of those that it does not have whole."""
        spans = {name: span_of(name, one) for name, one in parameters.items()}
        return {name: span for name, span in spans.items() if span is not None}

    def counts(self, name: str) -> bool:
        """Tell whether this rank adds a gradient that all ranks of its samples have whole."""
        return self.tensors is None or self.tensors.counts(name)

    def total(self, parts: Tensor) -> Tensor:
        """Sum up what the ranks that compute the same samples have, in place."""
        if self.tensors is not None:
            dist.all_reduce(parts, group=self.tensors.group)
        return parts

    def same(self, value: T) -> T:
        """Return the value of the first rank among those that compute the same samples."""
        if self.tensors is None:
            return value
        given: list[Any] = [value]
        source = dist.get_global_rank(self.tensors.cpu, 0)
        dist.broadcast_object_list(given, src=source, group=self.tensors.cpu)
        first: T = given[0]
        return first

    def of_same_samples(self, value: T) -> list[T]:
        """Return the values of all ranks that compute the same samples."""
        if self.tensors is None:
            return [value]
        values: list[Any] = [None] * self.tensors.size
        dist.all_gather_object(values, value, group=self.tensors.cpu)
        return values

    @property
    def whole(self) -> bool:
        """Tell whether this process has all of the model."""
        return self.lockstep is None

    @contextmanager
    def together(self) -> Iterator[None]:
        """Have this rank's passes begin with those of the others; see :class:`Lockstep`."""
        with nullcontext() if self.lockstep is None else self.lockstep.held():
            yield

    def agreed(self, ask: Callable[[], T]) -> T:
        """Return the answer of the first rank to all ranks of the group."""
        return ask() if self.lockstep is None else self.lockstep.agreed(ask)

    def meet(self) -> None:
        """Wait for the other ranks of the group, or hear that one of them failed."""
        self.agreed(bool)

    def finish(self) -> None:
        """Wait until all ranks of the group have done their passes."""
        if self.lockstep is not None:
            self.lockstep.finish()

    def dealt(self, blocks: Sequence[int]) -> list[int]:
        """Return the blocks that this rank computes of those that its group does."""
        return list(blocks[self.number :: self.numbers])

    def seen(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """Return the parameters as a pass sees them: under FSDP2 they are not those of the model."""
        return {name: self.pairs.get(id(one), one) for name, one in parameters.items()}

    def groups(self, model: nn.Module) -> tuple[tuple[nn.Parameter, ...], ...]:
        """Return a model's parameters, each with what a pass sees of it."""
        pairs = self.pairs
        return tuple(
            (one, pairs[id(one)]) if id(one) in pairs else (one,) for one in model.parameters()
        )

    @contextmanager
    def carrying(self, carry: Callable[[Tensor, Tensor], None]) -> Iterator[None]:
        """Tell of tensors that hooks put in the place of a module's inputs and outputs."""
        with ExitStack() as stack:
            for module in () if self.lockstep is None else self.lockstep.model.modules():
                if module._forward_pre_hooks or module._forward_hooks:
                    stack.enter_context(carried(module, carry))
            yield

    def backward(
        self,
        scalar: Tensor,
        parameters: Mapping[str, nn.Parameter],
        take: Take,
        *,
        alike: bool = False,
    ) -> None:
        """Take gradients of a scalar as they come, one parameter at a time: never all are held.

        Parameters
        ----------
        take : callable
            Is given what this rank adds of each gradient; with ``alike``, on all ranks, the gradients
            that each of them has whole.
        """
        if not scalar.requires_grad:
            return

        def came(name: str, parameter: Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            if gradient is not None:
                own = whole_gradient(gradient) if alike else None
                own = own if alike else part_to_add(name, parameter, gradient, self.tensors)
                if own is not None:
                    take(name, own)

        with ExitStack() as hooks:
            for name, one in parameters.items():
                # No gradient is left for FSDP, which would add it up over the ranks.
                hooks.enter_context(one.register_post_accumulate_grad_hook(partial(came, name)))
            torch.autograd.backward(scalar)


WHOLE = Sharding()
