"""Watch for forward passes that change the model: features would depend on earlier samples."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn

from trakstore.errors import NumericsError, TrakStoreError
from trakstore.features.fingerprint import Weights, checkpoint_checksum
from trakstore.features.outputs import RowOutputs
from trakstore.features.sharding import local_part
from trakstore.features.weights import Kept
from trakstore.features.wording import listed

__all__ = ["WeightWatch", "blaming_changes"]

log = logging.getLogger("trakstore")

Ask: TypeAlias = Callable[[], RowOutputs | None]  # None where memory does not suffice

_SMALL = 2**26  # bytes of parameters
_CLOSE = 1e-5  # relative difference that a GPU, or another order of sums, may make
_REMEDY = "features of a sample would depend on those before it"


class WeightWatch:
    """Watch over a model's tensors: they must stay as they were before any pass.

    A forward that changes a parameter (``Embedding(max_norm=)``, a weight normalised in place) is
    refused. Buffers may change if the outputs stay the same to the bit, as with counters that nothing
    reads: they are put back, with a line in the log. Outputs that change by themselves are refused:
    something is random in eval mode, or counts calls.

    Small models are copied, so that all can be put back. Of larger ones only buffers are, and
    parameters of modules with ``max_norm``. The other parameters have a checksum, and torch's version
    counters, which show any change but one through ``.data`` without a reading; they are left as the
    forward left them.

    Parameters
    ----------
    model : nn.Module
        Before any pass.

    Attributes
    ----------
    put_back : set of str
        Names of buffers that passes changed though outputs do not depend on them.
    """

    def __init__(self, model: nn.Module) -> None:
        # From here on each rank of a sharded model checks its own parts, whenever it has to.
        self.hash, self._checksum = Weights.of(model)
        self._model = model
        self._copied = _to_copy(model)
        self._kept = Kept.of(model, also=self._copied)
        self._seen = self._counters()
        self.put_back: set[str] = set()
        self._ask: Ask | None = None
        self._first: RowOutputs | None = None

    def asks(self, ask: Ask) -> None:
        """Compute the outputs of a sample now; later ones are compared with them."""
        self.check()
        self._first = ask()
        self._ask = ask
        self.check()

    def check(self, *, surely: bool = False) -> None:
        """Compare the model with its state before the passes, and put back what may change.

        Parameters
        ----------
        surely : bool
            Whether to read all weights and compute the outputs again even if nothing seems to have
            changed.

        Raises
        ------
        TrakStoreError
            When a parameter changed, or a buffer that the outputs depend on, or the outputs themselves.
        """
        now = self._counters()
        moved = {
            name for name in now.keys() | self._seen.keys() if now.get(name) != self._seen.get(name)
        }
        if not moved and not surely:
            return
        changed = self._kept.differing
        parameters = dict(self._model.named_parameters(remove_duplicate=False))
        self._refuse([name for name in changed if name in parameters])
        if changed or surely:
            self._compare(changed)
        # For tensors that were not copied the counters show only that they were written to.
        unread = moved - set(changed) - self._copied
        if surely or any(name in parameters for name in unread):
            self._refuse_others([name for name in unread if name in parameters])
        self._seen = self._counters()

    def give_back(self) -> None:
        """Put back everything that was copied."""
        self._kept.give_back()

    def _refuse(self, names: list[str]) -> None:
        if names:
            raise TrakStoreError(
                f"a forward pass changed {_named('parameter', names)} of the model, as "
                f"Embedding(max_norm=) does: {_REMEDY}; do it to the weights once (such as by "
                f"weight.data.renorm_(2, 0, max_norm), then max_norm = None), and featurize that model"
            )

    def _refuse_others(self, names: list[str]) -> None:
        """Refuse a change of parameters that were not copied; if only counters moved, copy them now."""
        if checkpoint_checksum(self._model) != self._checksum:
            self._refuse(names or ["(written through .data)"])
        if names:
            self._copied.update(names)
            self._kept = Kept.of(self._model, also=self._copied)

    def _compare(self, changed: tuple[str, ...]) -> None:
        """Refuse outputs that differ from those before the passes."""
        again = None if self._ask is None else self._ask()
        self._kept.give_back()
        if again is None or self._first is None:
            return
        # With a changed buffer, outputs must be equal to the bit. Without one, or on a GPU, the same
        # sums may have been added in another order.
        pairs = list(zip(self._first, again, strict=True))
        exact = bool(changed) and pairs[0][0].device.type == "cpu"
        if all(_close(*pair, exact=exact) for pair in pairs):
            self._warn([name for name in changed if name not in self.put_back])
            return
        if changed:
            raise TrakStoreError(
                f"a forward pass changed {_named('buffer', changed)} of the model, and its outputs "
                f"with that: {_REMEDY}; let it change in training only (if self.training:)"
            )
        raise TrakStoreError(
            f"the same sample has other outputs when the model is asked again: {_REMEDY}; something "
            f"is random in eval mode (F.dropout without training=self.training), or counts calls"
        )

    def _warn(self, names: list[str]) -> None:
        if names:
            self.put_back.update(names)
            log.warning(
                "forward passes change %s of the model, which its outputs do not depend on: put back",
                _named("buffer", names),
            )

    def _counters(self) -> dict[str, tuple[int, int, int]]:
        """Return numbers of each tensor that differ after it was changed in place or replaced."""
        named = [
            *self._model.named_parameters(remove_duplicate=False),
            *self._model.named_buffers(remove_duplicate=False),
        ]
        return {
            name: (id(one), _version(local_part(one)), _address(local_part(one)))
            for name, one in named
        }


@contextmanager
def blaming_changes(watch: WeightWatch) -> Iterator[None]:
    """Raise the error that the model changed, if it did, instead of one about rows that are wrong."""
    try:
        yield
    except NumericsError:
        watch.check(surely=True)
        raise


def _to_copy(model: nn.Module) -> set[str]:
    """Return the names of the parameters to be copied before any pass."""
    named = dict(model.named_parameters(remove_duplicate=False))
    held = map(local_part, model.parameters())
    if sum(one.numel() * one.element_size() for one in held) <= _SMALL:
        return set(named)
    return {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules(remove_duplicate=False)
        if getattr(module, "max_norm", None) is not None
        for name, _ in module.named_parameters(recurse=False)
    }


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _address(tensor: Tensor) -> int:
    return tensor.data_ptr() if tensor.layout == torch.strided else 0


def _close(first: Tensor, again: Tensor, *, exact: bool) -> bool:
    how = {"rtol": 0.0, "atol": 0.0} if exact else {"rtol": _CLOSE, "atol": _CLOSE}
    return torch.allclose(first, again, equal_nan=True, **how)


def _named(what: str, names: Sequence[str]) -> str:
    return f"the {what}{'' if len(names) == 1 else 's'} {listed(names, most=4)}"
