"""Passes that the ranks of one model begin together.

A forward or backward pass of a model that FSDP2 shards is a sequence of collective operations: when the
pass reaches a module, its weights are gathered from all ranks. Ranks have different blocks, and so
different numbers of batches, checks and repeats. So before each pass all ranks say what they would do
next, and make one kind of pass together; a rank with another pass to do, or none, gathers the weights
and drops them. A pass that stops early, or leaves modules out, gathers the rest afterwards. Whatever
happens on a rank, all ranks do the same collective operations in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from enum import IntEnum
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils import _pytree as tree

from trakstore.errors import TrakStoreError
from trakstore.features.sharding.places import Unit, param_groups
from trakstore.features.wording import first_line

__all__ = ["Lockstep", "RankGoneError"]

T = TypeVar("T")

# Seconds that a failed rank waits for the others to learn of its error.
_PATIENCE = 20
_NOT_ALIKE = "the ranks of the sharded model do not go through it alike"


class RankGoneError(TrakStoreError):
    """Loss of another rank, which could not say why."""


class Step(IntEnum):
    """Steps that a rank may want to take next; all ranks take the highest of theirs."""

    NOTHING = 0
    FORWARD = 1
    BACKWARD = 2
    AGREEMENT = 3
    FAILURE = 4


class Lockstep:
    """The passes of one sharded model on one of its ranks.

    Parameters
    ----------
    model : nn.Module
    units : sequence of Unit
        Modules whose weights are gathered in a pass.
    group : ProcessGroup
        Ranks that hold parts of this model, on the CPU.
    """

    def __init__(self, model: nn.Module, units: Sequence[Unit], group: Any) -> None:
        self.model, self._units, self._group = model, units, group
        self._step = Step.NOTHING
        # Units in the order in which a pass gathers them, known after the first pass of each kind.
        self._orders: dict[Step, list[Unit]] = {}
        self._met: list[Unit] = []
        # Error of another rank, which is raised by every later call.
        self._lost: TrakStoreError | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Watch the model's passes; at the end all ranks wait for one another.

        Raises
        ------
        TrakStoreError
            When another rank failed, with its error.
        """
        with self._hooks():
            try:
                yield
                self.finish()
            except BaseException as error:
                self._tell(error)
                raise

    def finish(self) -> None:
        """Take part in the passes of other ranks until none has one left to do."""
        self._close()
        while (step := self._vote(Step.NOTHING)) != Step.NOTHING:
            self._take_part(step)

    def agreed(self, ask: Callable[[], T]) -> T:
        """Return the first rank's answer; all ranks call this together."""
        self._close()
        if self._vote(Step.AGREEMENT) != Step.AGREEMENT:
            raise TrakStoreError(_NOT_ALIKE)
        answer: list[Any] = [None, None]
        if self.first:
            try:
                answer = [ask(), None]
            except BaseException as error:
                self._lost = TrakStoreError(_told(error))
                self._spread([None, _told(error)])
                raise
        answer = self._spread(answer)
        if answer[1] is not None:
            self._lost = TrakStoreError(answer[1])
            raise self._lost
        agreed: T = answer[0]
        return agreed

    def _spread(self, answer: list[Any]) -> list[Any]:
        """Give the first rank's answer to all."""
        source = dist.get_global_rank(self._group, 0)
        dist.broadcast_object_list(answer, src=source, group=self._group)
        return answer

    @property
    def first(self) -> bool:
        """Tell whether this is the first rank of the group."""
        return dist.get_rank(self._group) == 0

    def _vote(self, step: Step) -> Step:
        """Vote for the next step, and return the common one; raise the error of another rank."""
        if self._lost is not None:
            raise self._lost
        chosen = torch.tensor([int(step)])
        try:
            dist.all_reduce(chosen, dist.ReduceOp.MAX, group=self._group)
        except RuntimeError as error:
            self._lost = RankGoneError(
                f"another rank of the sharded model is gone ({first_line(error)}): what was committed "
                f"is kept; run again, with any number of ranks"
            )
            raise self._lost from error
        if chosen.item() == Step.FAILURE:
            self._lost = TrakStoreError(_first_of(self._messages(None)))
            raise self._lost
        return Step(int(chosen.item()))

    def _messages(self, own: str | None) -> list[str | None]:
        messages: list[str | None] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(messages, own, group=self._group)
        return messages

    def _tell(self, error: BaseException) -> None:
        """Let the other ranks end with this rank's error."""
        if self._lost is not None:
            return  # this is the error of another rank
        self._lost = TrakStoreError(_told(error))
        with suppress(Exception):  # others may be gone; this rank's own error is what counts
            self._close()
            code = torch.tensor([int(Step.FAILURE)])
            work = dist.all_reduce(code, dist.ReduceOp.MAX, group=self._group, async_op=True)
            work.wait(timedelta(seconds=_PATIENCE))
            self._messages(_told(error))

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        of_module = {one.module: one for one in self._units}
        with ExitStack() as stack:
            for module in {self.model: None, **of_module}:
                unit = of_module.get(module)
                # Before FSDP's own hooks, which gather.
                stack.enter_context(
                    module.register_forward_pre_hook(
                        partial(self._before_forward, unit), prepend=True
                    )
                )
                stack.enter_context(
                    module.register_forward_hook(partial(self._wait_for, unit), prepend=True)
                )
                for other in self._prefetching(module):
                    stack.callback(other)
            stack.enter_context(
                self.model.register_forward_hook(self._after_forward, always_call=True)
            )
            yield

    def _prefetching(self, module: Any) -> Iterator[Callable[[], None]]:
        """Turn off FSDP's gathering in advance, which not every pass would use."""
        if not hasattr(module, "set_modules_to_backward_prefetch"):
            return
        state = module._get_fsdp_state()
        before = list(state._states_to_backward_prefetch)
        module.set_modules_to_backward_prefetch([module])
        yield partial(setattr, state, "_states_to_backward_prefetch", before)

    def _before_forward(self, unit: Unit | None, _module: nn.Module, _args: Any) -> None:
        if self._step == Step.BACKWARD:
            if torch._C._current_graph_task_id() != -1:
                return  # a checkpointed module computes its activations again, and has its weights
            self._close()
        if self._step != Step.FORWARD:
            self._open(Step.FORWARD)
        self._come_to(unit)

    def _wait_for(self, unit: Unit | None, _module: nn.Module, _args: Any, out: Any) -> None:
        """Wait for the gradients of a module's outputs, before FSDP does."""
        if not torch.is_grad_enabled() or self._step != Step.FORWARD:
            return
        for one in tree.tree_leaves(out):
            if isinstance(one, Tensor) and one.requires_grad:
                one.register_hook(partial(self._before_backward, unit))

    def _after_forward(self, *_: Any) -> None:
        if self._step == Step.FORWARD:
            self._close()

    def _before_backward(self, unit: Unit | None, _gradient: Tensor) -> None:
        if self._step != Step.BACKWARD:
            self._open(Step.BACKWARD)
            torch.autograd.Variable._execution_engine.queue_callback(self._close)
        self._come_to(unit)

    def _open(self, step: Step) -> None:
        while (chosen := self._vote(step)) != step:
            self._take_part(chosen)
        self._step, self._met = step, []

    def _come_to(self, unit: Unit | None) -> None:
        """Gather what stands before a unit in the order of this pass, which is gathered next."""
        if unit is None or not unit.sharded:
            return
        order = self._orders.get(self._step)
        if order is not None:
            rest = order[len(self._met) :]
            if unit not in rest:
                name = next(n for n, one in self.model.named_modules() if one is unit.module)
                raise TrakStoreError(
                    f"the module {name!r} is called in an order that depends on the samples, or by the "
                    f"output rather than the model; shard the module that calls it, and not this one"
                )
            for other in rest[: rest.index(unit)]:
                other.gathered()
                self._met.append(other)
        self._met.append(unit)

    def _take_part(self, step: Step) -> None:
        # A kind of pass that this rank never made has no order here; an agreement never has one.
        if step not in self._orders:
            raise TrakStoreError(_NOT_ALIKE)
        for unit in self._orders[step]:
            unit.gathered()

    def _close(self) -> None:
        """End a pass: gather what it left out, and have all weights sharded."""
        step, self._step = self._step, Step.NOTHING
        if step == Step.NOTHING:
            return
        known = self._orders.setdefault(step, self._met)
        self._reset()
        for unit in known[len(self._met) :]:
            unit.gathered()

    def _reset(self) -> None:
        """Have all weights sharded, also where a pass stopped on the way."""
        for unit in self._units:
            state = unit.module._get_fsdp_state()
            idle = type(state._training_state).IDLE
            for one in (state, *param_groups(state)):
                one._training_state = idle
            shared = state._state_ctx
            shared.iter_forward_root, shared.post_backward_final_callback_queued = None, False
            unit.module.reshard()


def _told(error: BaseException) -> str:
    return f"rank {dist.get_rank()} failed: {type(error).__name__}: {error}"


def _first_of(messages: list[str | None]) -> str:
    return next((one for one in messages if one is not None), "another rank failed")
