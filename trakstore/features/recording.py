"""A watched forward pass: the layers that it calls, and the places of samples in its tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode

from trakstore.features.axes import Axis, Following, Mark, Unplaced, is_meeting, repeated_at
from trakstore.features.layers import MATCHERS, SEEN_THROUGH, Call, Derived, Layer
from trakstore.features.outputs import ModelOutput, RowOutputs
from trakstore.features.plain import each_tensor
from trakstore.features.quantised import noticing
from trakstore.features.sharding import WHOLE, Sharding

__all__ = ["Key", "Recorder", "Untrusted", "expanded"]

# Names of the parameters that a layer uses, and how often they were used before in this pass.
Key = tuple[tuple[str, ...], int]
Observer = Callable[[Key, Layer, Call, Tensor, Mark], Tensor]

_GETTERS = "shape dtype device ndim is_leaf requires_grad grad_fn layout is_cuda is_sparse itemsize"
_METHODS = """
size dim numel nelement stride is_floating_point is_complex is_contiguous element_size ndimension
__len__ storage_offset get_device data_ptr is_inference __hash__
"""
# Getters that return no tensor and reveal nothing of the data: they are called too often to be watched.
_UNWATCHED = {getattr(Tensor, name).__get__ for name in _GETTERS.split()}
_UNWATCHED |= {getattr(Tensor, name) for name in _METHODS.split()}
# Those among them that reveal how many dimensions a tensor has, or their sizes.
_SIZES = {
    getattr(Tensor, name) for name in ("size", "dim", "numel", "nelement", "__len__", "ndimension")
}
_SIZES |= {getattr(Tensor, name).__get__ for name in ("shape", "ndim")}
# Those among them that reveal the sizes.
_LENGTHS = {getattr(Tensor, name) for name in ("size", "numel", "nelement", "__len__")}
_LENGTHS.add(Tensor.shape.__get__)  # type: ignore[attr-defined]


class Untrusted(Exception):
    """Some parameters' gradients cannot be taken from what was recorded."""

    def __init__(self, names: Iterable[str], reason: str) -> None:
        super().__init__(reason)
        self.names, self.reason = frozenset(names), reason


class Recorder(TorchFunctionMode):
    """Watch of a forward pass: an observer sees each layer that uses one of the parameters.

    Parameters
    ----------
    names : mapping of id to str
        Canonical names of parameters.
    observer : callable
        Function that is given the layer's key, the layer, the call, its output and the output's mark;
        it returns the output with which the model goes on.
    following : Following
        Places of the samples.
    products : sequence of Module
        Modules whose products with constants are computed in code that cannot be watched.
    sharding : Sharding
        Spread of the model over ranks.

    Attributes
    ----------
    hidden : set of str
        Parameters that were used while gradients were off.
    autocast : bool
        Whether the model turned on autocast.
    tops : list of Node
        Nodes behind which all parameters are, if these are not simply the output's.
    """

    def __init__(
        self,
        names: Mapping[int, str],
        observer: Observer,
        following: Following,
        products: Sequence[nn.Module] = (),
        sharding: Sharding = WHOLE,
    ) -> None:
        super().__init__()
        self._names, self._observer, self._following = names, observer, following
        self._products, self._sharding = products, sharding
        self._count: dict[tuple[str, ...], int] = {}
        self.hidden: set[str] = set()
        self.autocast = False
        self.tops: list[Node] = []

    def outputs(self, output: ModelOutput, model: nn.Module, batch: Any) -> RowOutputs:
        """Compute outputs of a batch, watched throughout or, if that suffices, in the model's calls."""
        marked = each_tensor(self._following.begin, batch)
        carrying = self._sharding.carrying(self._following.carry)
        with carrying, noticing(self._products, self._following.multiplied):
            return self._outputs(output, model, marked)

    def _outputs(self, output: ModelOutput, model: nn.Module, marked: Any) -> RowOutputs:
        if output.calls_alone:
            # Beyond the model's answers, the output's own graph uses no parameter.
            answers: list[Any] = []
            rows = output(partial(self._watched, model, answers), marked)
            tops: list[Any] = [getattr(answer, "grad_fn", None) for answer in answers]
            self.tops = [] if None in tops else tops
            return rows
        with self:
            rows = output(model, marked)
        self._following.see(rows.output)
        return rows

    def outputs_of_draws(
        self, output: ModelOutput, model: nn.Module, batches: Sequence[Any]
    ) -> list[RowOutputs]:
        """Compute outputs of the same samples with other labels, by one call of the model.

        Raises
        ------
        Untrusted
            When an output calls the model more than once.
        """
        with _called_once(model) as calls:
            rows = [self.outputs(output, model, batch) for batch in batches]
        if calls() != len(batches):
            raise Untrusted((), "the output calls the model more than once")
        return rows

    def _watched(self, model: nn.Module, answers: list[Any], *args: Any, **kwargs: Any) -> Any:
        with self:
            answer = model(*args, **kwargs)
        answers.append(answer)
        self._following.see(getattr(answer, "logits", answer))
        return answer

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _UNWATCHED:
            if func in _SIZES:
                self._following.sized(args[0])
            if func in _LENGTHS:
                self._following.measured(args[0])
            return func(*args, **kwargs)
        if func in SEEN_THROUGH:
            # A mode is off while it handles a function: it is turned on again for the calls within.
            with self:
                return SEEN_THROUGH[func](*args, **kwargs)
        if is_meeting(func) and torch.is_grad_enabled():
            args, kwargs = self._with_rows(args, kwargs)
        matcher = MATCHERS.get(func)
        call = Call(args, kwargs, self._names) if matcher else None
        layer = matcher(call) if matcher and call else None
        # A parameter that enters as an activation, as in `linear(latents, weight)`, is not the layer's
        # weight.
        if layer is not None and call is not None and not call.is_of(layer):
            layer = None
        out = self._following.passed(func, args, kwargs, func(*args, **kwargs))
        if not torch.is_grad_enabled():
            self._note_hidden(args, kwargs)
        elif layer is not None and call is not None:
            self.autocast |= torch._C._is_any_autocast_enabled()
            return self._observer(self._key(layer), layer, call, out, self._following.of(out))
        return out

    def _with_rows(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Give what was derived from parameters a row for each sample, where it meets samples."""
        of = self._following.of
        for one in (*args, *kwargs.values()):
            if isinstance(one, Tensor) and one.grad_fn is not None and of(one) is Unplaced.FREE:
                break
        else:
            return args, kwargs
        tensors = list(Call(args, kwargs, self._names).tensors())
        if all(of(tensor) is Unplaced.FREE for tensor in tensors):
            return args, kwargs

        def given(one: Any) -> Any:
            derived = isinstance(one, Tensor) and one.grad_fn is not None
            if not derived or of(one) is not Unplaced.FREE:
                return one
            return self._rows_of(one, [other for other in tensors if other is not one])

        return tuple(map(given, args)), {name: given(value) for name, value in kwargs.items()}

    def _rows_of(self, tensor: Tensor, others: list[Tensor]) -> Tensor:
        """Return a tensor with an observed row for each sample, or the tensor itself."""
        met = repeated_at(tensor, others, self._following.of)
        if met is None and self._following.batch == 1 and tensor.ndim:
            met = list(tensor.shape), Axis(0, len(tensor))  # of one sample: any rows are its own
        layer = Derived.of(tensor, self._names) if met else None
        if met is None or layer is None:
            return tensor
        shape, axis = met
        # A new leaf ends the backward pass here; the layer continues it to the parameters.
        rows = tensor.detach().expand(shape).requires_grad_()
        self._following.place(rows, axis)
        alone = Call((), {}, self._names)
        return self._observer((layer.names, -1), layer, alone, rows, axis)

    def _note_hidden(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note parameters that are used while gradients are off, as within a reentrant checkpoint."""
        for tensor in Call(args, kwargs, self._names).tensors():
            base = tensor if tensor._base is None else tensor._base
            if id(base) in self._names:
                self.hidden.add(self._names[id(base)])

    def _key(self, layer: Layer) -> Key:
        count = self._count.get(layer.names, 0)
        self._count[layer.names] = count + 1
        return layer.names, count


@contextmanager
def _called_once(model: nn.Module) -> Iterator[Callable[[], int]]:
    """Make a model return its first answer in all later calls; yields a function that counts calls."""
    forward, before = model.forward, "forward" in vars(model)
    answers: list[Any] = []
    calls = 0

    @wraps(forward)
    def answer(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if not answers:
            answers.append(forward(*args, **kwargs))
        return answers[0]

    model.forward = answer
    try:
        yield lambda: calls
    finally:
        if before:
            model.forward = forward
        else:
            del model.forward


def expanded(tensor: Tensor, batch: int) -> Tensor:
    """Repeat a tensor that has no samples for each sample, as a view."""
    if tensor.ndim and tensor.shape[0] == 1:
        return tensor.expand(batch, *tensor.shape[1:])
    return tensor.expand(batch, *tensor.shape)
