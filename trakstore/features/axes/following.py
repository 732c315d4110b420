"""Marks of the tensors of one forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Set
from functools import partial
from typing import Any

from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd.graph import Node

from trakstore.features.axes.alone import Alone
from trakstore.features.axes.broadcast import FROM_BEHIND
from trakstore.features.axes.marked_call import MarkedCall, tensors_of
from trakstore.features.axes.marks import FREE, LOST, SUSPECT, Axis, Mark, Placed, Places, Routed
from trakstore.features.axes.routing import Route, row_by_row
from trakstore.features.axes.table import MAKES, Known, canonical, rule_of

__all__ = ["Following"]

_ATTRIBUTE = "_trakstore_mark"
_RAISED = "_trakstore_raised"
_ONE_BY_ONE = "_trakstore_one_by_one"
_NONE: frozenset[str] = frozenset()
_ALONE = object()
_HOLDERS = (Tensor, tuple, list)
_OF_RANKS = ("torch.distributed.", "trakstore.features.sharding.")


class Following:
    """Places of the samples of a batch in the tensors of a forward pass.

    Marks are kept on the tensors themselves. A tensor may also carry names of parameters whose
    gradients are cut as if its rows were the samples', although no sample went into it (a position
    repeated for every sample). If the samples get lost behind it, so are these parameters' gradients.

    Parameters
    ----------
    batch : int
        Number of samples.
    kept : set of int
        Ids of a model's parameters and buffers, which get no mark: whatever a pass writes to them is
        lost.

    Attributes
    ----------
    misread : set of str
        Parameters of repeated tensors that the model used by their original shape: this pass does not
        compute the model's function.
    mixed : bool
        Whether samples may have seen one another: a function combined several of them, or gave Python
        numbers of theirs on which the output may depend.
    routed : bool
        Whether that may be because an index of unknown origin sent rows somewhere.
    hooked : bool
        Whether the model asked for gradients of its activations, which its hook may change. Layers
        shared by ranks ask for them too, but only to wait for one another.
    decided : list of Tensor, bool, shape (batch,)
        For each question that the model asked of all samples at once: the samples for which the answer
        alone would have been another.
    decided_numbers : list of Tensor, bool, shape (batch,)
        The same for those questions whose answer is a number, which may enter the model's results.
    """

    def __init__(self, batch: int, kept: Set[int] = frozenset()) -> None:
        self.batch, self._kept = batch, kept
        self._pass = object()  # marks of an earlier pass do not count
        self._read = False
        self._claims: set[str] = set()
        self._repeated: set[str] = set()
        self.misread: set[str] = set()
        self.mixed = self.routed = self.hooked = False
        self.decided: list[Tensor] = []
        self.decided_numbers: list[Tensor] = []
        self._lost = self._sent = False
        self._losses: list[tuple[Node, frozenset[str]]] = []
        # Keys are addresses of memory. The tensors are held too: freed memory would be given to another
        # tensor, which would then pass for spoiled.
        self._spoiled: dict[int, Tensor] = {}
        self._written: dict[int, Tensor] = {}

    def begin(self, tensor: Tensor) -> Tensor:
        """Return a copy of a batch's tensor, marked as having its samples first.

        A forward may write to what it is given, and the batch is passed through it again.
        """
        own = tensor.detach().clone()
        self._mark(own, Axis(0), _NONE)
        return own

    def of(self, tensor: Tensor) -> Mark:
        """Return the mark of a tensor."""
        if self._spoiled and _storage(tensor) in self._spoiled:
            return LOST
        noted = tensor.__dict__.get(_ATTRIBUTE)
        if noted is None or noted[0] is not self._pass:
            return self._unmarked(tensor)
        mark: Mark = noted[1]
        if mark is FREE and self._written and _storage(tensor) in self._written:
            return LOST
        return mark

    def _unmarked(self, tensor: Tensor) -> Mark:
        """Return the mark of a tensor without one: constant, unless it has a gradient history."""
        if tensor.grad_fn is None and not is_functorch_wrapped_tensor(tensor):
            # Once Python has read numbers of samples, a new constant may hold some of them. The model's
            # own weights do not, frozen or not.
            new = not tensor.requires_grad and id(tensor) not in self._kept
            return SUSPECT if self._read and new else FREE
        self._lost = True
        self._lose(tensor, frozenset(self._claims))
        return LOST

    def _lose(self, tensor: Tensor, claims: frozenset[str]) -> None:
        if claims and tensor.grad_fn is not None:
            self._losses.append((tensor.grad_fn, claims))

    def doubtful(self, nodes: Set[Node]) -> set[str]:
        """Return parameters whose rows got lost on the way to the output of these nodes."""
        lost = {name for node, claims in self._losses if node in nodes for name in claims}
        self.misread |= lost & self._repeated
        return lost

    def close(self) -> None:
        """Drop the graph."""
        self._losses.clear()

    def see(self, value: Any) -> None:
        """Look at the output of a pass: its samples may have been lost out of sight."""
        for tensor in tensors_of((value,)):
            mark = self.of(tensor)
            self.mixed |= mark is LOST or isinstance(mark, Routed | Places)

    def claims(self, tensor: Tensor) -> frozenset[str]:
        """Return the names of parameters that rely on the rows of a tensor."""
        noted = tensor.__dict__.get(_ATTRIBUTE)
        return noted[2] if noted is not None and noted[0] is self._pass else _NONE

    def claim(self, tensor: Tensor, names: Iterable[str]) -> None:
        """Mark a tensor made without samples as having a row for each, on which parameters rely."""
        own = frozenset(names)
        self._claims |= own
        self._mark(tensor, Axis(0), own)

    def multiplied(self, x: Tensor, out: Tensor) -> None:
        """Mark a product with a constant along the last dimension that was computed out of sight."""
        mark = self.of(x)
        samples = self.batch == 1 and mark is not FREE
        if samples or (isinstance(mark, Axis | Routed) and mark.dim < x.ndim - 1):
            # Functions that were seen on the way may have lost the samples, and marked the memory
            # spoiled.
            self._spoiled.pop(_storage(out), None)
            self._mark(out, _ALONE if samples else mark, self.claims(x))

    def carry(self, tensor: Tensor, other: Tensor) -> None:
        """Mark a tensor that replaced another one out of sight."""
        self._mark(other, self.of(tensor), self.claims(tensor))

    def place(self, tensor: Tensor, axis: Placed) -> None:
        """Mark a tensor made for a single function, in which it meets the samples."""
        self._mark(tensor, axis, _NONE)

    def claim_repeated(self, tensor: Tensor, names: Iterable[str], ndim: int) -> None:
        """Mark a tensor that the model expects without its rows, with ``ndim`` dimensions.

        If it has one dimension more now, only functions that count dimensions from the end do to it
        what they would do in the model.
        """
        self.claim(tensor, names)
        self._repeated |= self.claims(tensor)
        if tensor.ndim > ndim:
            self._raise(tensor)

    def _raise(self, tensor: Tensor) -> None:
        tensor.__dict__[_RAISED] = self._pass

    def _is_raised(self, tensor: Tensor) -> bool:
        return tensor.__dict__.get(_RAISED) is self._pass

    def sized(self, value: Any) -> None:
        """Note that the model asks for the size of a tensor."""
        if self._repeated and isinstance(value, Tensor) and self._is_raised(value):
            self.misread |= self.claims(value)

    def measured(self, value: Any) -> None:
        """Note that the model asks for a tensor's number of entries, which may depend on the data."""
        asked = (self._lost or self._sent) and not self.mixed
        if not asked or not isinstance(value, Tensor) or not value.ndim:
            return
        mark = self.of(value)
        self.mixed = mark is LOST or (isinstance(mark, Routed) and mark.rows.picked)

    def tell(self, function: Any, args: tuple[Any, ...], out: Any) -> None:
        """Note that a function gave Python something from the data of some tensors."""
        known = [tensor for tensor in tensors_of(args) if self.of(tensor) is not FREE]
        if not known:
            return
        self._read = True
        alone = self._alone(known[0]) if len(known) == 1 else None
        if alone is None or not isinstance(out, bool | int | float):
            self.mixed = True
            return
        values = alone.values.bool() if isinstance(out, bool) else alone.values
        self.decided.append(values != out)
        if rule_of(function).name != "__bool__":
            self.decided_numbers.append(values != out)

    def _alone(self, tensor: Tensor) -> Alone | None:
        """Return the number that each sample alone would give in place of one number of all."""
        noted = tensor.__dict__.get(_ONE_BY_ONE)
        return noted[1] if noted is not None and noted[0] is self._pass else None

    def _note_alone(self, call: MarkedCall, known: Known) -> None:
        if known.alone is None or not isinstance(call.out, Tensor) or call.out.ndim:
            return
        try:
            own = known.alone(call, self._alone)
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
            return  # a call of another form, or of tensors that have no entries
        if own is not None:
            call.out.__dict__[_ONE_BY_ONE] = (self._pass, own)

    def _from_behind(self, function: Any, tensors: list[Tensor], raised: list[Tensor]) -> bool:
        """Tell whether a function treats each row of raised tensors as it would the original."""
        # The model's own tensor lacks the dimension of the samples. A function that aligns dimensions
        # at the end does the same with the new one in front, as long as nothing else reaches into it:
        # other tensors must have their samples there, and constants must end before it or have size 1.
        name, ndim = canonical(function), max(tensor.ndim for tensor in raised)
        others = [tensor for tensor in tensors if not self._is_raised(tensor)]
        if name not in FROM_BEHIND:
            # These work on the last dimensions of their first argument.
            if name not in ("linear", "layer_norm", "rms_norm", "matmul"):
                return False
            return self._is_raised(tensors[0]) and all(one.ndim < 3 for one in others)
        if any(one.ndim != ndim for one in raised):
            return False
        places = [self.of(one) for one in others if one.ndim >= ndim and self.of(one) is not FREE]
        free = [one for one in others if self.of(one) is FREE]
        return all(place == Axis(0) for place in places) and all(
            one.ndim < ndim or (one.ndim == ndim and one.shape[0] == 1) for one in free
        )

    def passed(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        """Mark the results of a function, and return them."""
        known = rule_of(function)
        if known.tells(out):
            self.tell(function, args, out)
        if known.odd:
            out = self._note_side_effects(known, args, out)
        if not isinstance(out, _HOLDERS) and known.name != "__setitem__":
            self.sized(args[0] if args else None)
            return out
        tensors = tensors_of((*args, *kwargs.values()) if kwargs else args)
        call = MarkedCall(args, kwargs, out, tensors, self.of, self.batch)
        route = self._route_of(call, known)
        mark = self._mark_of(call, known) if route is None else route.marks
        # Most passes lose nothing, and need not look at all tensors again.
        if route is not None:
            self._sent = True
            self.routed |= not route.certain
            self.mixed |= self.routed
        elif self._lost and isinstance(mark, Axis | Routed) and not self.mixed:
            self.mixed = any(self.of(tensor) is LOST for tensor in tensors)
        claims = self._carried(tensors) if self._claims else _NONE
        raised = [one for one in tensors if self._is_raised(one)] if self._repeated else []
        if raised and not self._from_behind(function, tensors, raised):
            self.misread |= self._carried(raised)
        elif raised and all(self._is_raised(one) or self.of(one) is FREE for one in tensors):
            self._raise(out)
        if known.name == "__setitem__" or (args and out is args[0] and isinstance(out, Tensor)):
            self._write(args[0], mark, claims)
        else:
            self._mark_all(out, mark, claims)
        if kwargs and isinstance(kwargs.get("out"), Tensor):
            self._write(kwargs["out"], LOST, claims)
        if mark is LOST and self.batch > 1:
            self._note_alone(call, known)
        return iter(out) if known.name == "__iter__" else out

    def _note_side_effects(self, known: Known, args: tuple[Any, ...], out: Any) -> Any:
        """Note the side effects of a function; return its result, an iterator as a list."""
        if known.name in ("__iter__", "unbind"):
            self.measured(args[0])
        if known.name == "register_hook":
            self.hooked |= not (len(args) > 1 and _waits_for_ranks(args[1]))
        if known.name == "__set__" and isinstance(args[1], Tensor):  # x.data = y
            self._write(args[0], LOST, self.claims(args[0]))
        return list(out) if known.name == "__iter__" else out

    def _route_of(self, call: MarkedCall, known: Known) -> Route | None:
        """Return where a function sends rows of the samples; None for a function that sends none."""
        if known.route is None or self.batch == 1:
            return None
        try:
            return known.route(call)
        except (AttributeError, IndexError, TypeError, ValueError):
            return None  # a call of another form than the rule reads

    def _mark_of(self, call: MarkedCall, known: Known) -> Any:
        """Return the mark of a call's result, or a list of marks, one for each of its results."""
        of = self.of
        for tensor in call.tensors:
            if of(tensor) is not FREE:
                break
        else:
            return SUSPECT if self._read and known.name in MAKES else FREE
        if self.batch == 1:
            return _ALONE
        if known.rule is None:
            return LOST
        kinds = {type(of(tensor)) for tensor in call.tensors}
        try:
            if Routed in kinds:
                return row_by_row(call, known.rule)
            return LOST if Places in kinds else known.rule(call)
        except (AttributeError, IndexError, TypeError, ValueError):
            # Rules read arguments in the usual form. In a call of any other form they fail, as if there
            # were no rule.
            return LOST

    def _carried(self, tensors: list[Tensor]) -> frozenset[str]:
        """Return the claims of all tensors given to a function."""
        carried = _NONE
        for tensor in tensors:
            own = self.claims(tensor)
            if own and own is not carried:
                carried = carried | own
        return carried

    def _write(self, tensor: Tensor, mark: Any, claims: frozenset[str]) -> None:
        """Mark a tensor that was changed in place, and all that share its memory."""
        before = self.of(tensor)
        placed = isinstance(mark, Axis | Routed | Places)
        if placed and before is FREE and id(tensor) not in self._kept:
            # Samples were written into a constant: the tensor itself has them now. Its views, which
            # keep the mark of a constant, are lost.
            self._lost = True
            self._written[_storage(tensor)] = tensor
        elif mark is not _ALONE and (mark is LOST or mark != before):
            # Other views of the same memory may have other marks.
            mark = LOST
            self._lose(tensor, claims)
            self._lost = True
            self._spoiled[_storage(tensor)] = tensor
        self._mark(tensor, mark, claims)

    def _mark_all(self, value: Any, mark: Any, claims: frozenset[str]) -> None:
        if isinstance(value, Tensor):
            if mark is LOST:
                self._lose(value, claims)
            self._mark(value, mark, claims)
        elif isinstance(value, tuple | list):
            marks = mark if isinstance(mark, list) else [mark] * len(value)
            for one, own in zip(value, marks, strict=True):
                self._mark_all(one, own, claims)

    def _mark(self, tensor: Tensor, mark: Any, claims: frozenset[str]) -> None:
        if mark is LOST:
            self._lost = True
        if mark is _ALONE:  # with one sample, any rows are its own
            mark = Axis(0, len(tensor)) if tensor.ndim else Axis(0)
        if id(tensor) not in self._kept:
            tensor.__dict__[_ATTRIBUTE] = (self._pass, mark, claims)


def _storage(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address


def _waits_for_ranks(hook: Any) -> bool:
    """Tell whether a hook belongs to layers shared by ranks, by the file of its code."""
    while isinstance(hook, partial):
        hook = hook.func
    return str(getattr(hook, "__module__", None)).startswith(_OF_RANKS)
