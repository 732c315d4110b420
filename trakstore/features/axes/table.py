"""Rules by the names of torch functions, and those that need none.

A function has one name, whether it is a method, an operator or works in place: ``torch.add``,
``Tensor.__radd__`` and ``Tensor.add_`` are ``add``. A function without a rule loses the samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from trakstore.features.axes import (
    alone,
    along,
    broadcast,
    contraction,
    picking,
    reorder,
    routing,
)
from trakstore.features.axes.marked_call import MarkedCall, Rule

__all__ = ["MAKES", "READS", "Known", "canonical", "rule_of"]


class Known(NamedTuple):
    """Rule of a function.

    Attributes
    ----------
    name : str
        Name that the function has itself.
    rule : callable or None
        Rule of functions with its canonical name.
    route : callable or None
        Rule for the same functions, if the data send rows somewhere.
    alone : callable or None
        Rule for the number that each sample alone would give.
    odd : bool
        Whether it does anything besides returning a tensor.
    """

    name: str
    rule: Rule | None
    route: Callable[[MarkedCall], routing.Route | None] | None
    alone: alone.AloneRule | None
    odd: bool

    def tells(self, out: Any) -> bool:
        """Tell whether a result that is no tensor reveals something of the data."""
        if self.name in READS:
            return True
        if not isinstance(out, bool | int | float):
            return False
        return self.name == "is_nonzero" or not self.name.startswith(_QUIET)


_RULES: dict[str, Rule] = {
    **broadcast.RULES,
    **reorder.RULES,
    **along.RULES,
    **picking.RULES,
    **contraction.RULES,
}
# Functions that change more than their result, return no tensor, or as many as the data say.
_ODD = frozenset(["__iter__", "unbind", "__set__", "__setitem__", "register_hook"])
# Functions that hand data over to Python.
_READS = """
item tolist numpy __bool__ __int__ __float__ __complex__ __index__ __array__ __contains__ __dlpack__
untyped_storage storage _typed_storage __repr__ __format__
"""
READS = frozenset(_READS.split())
# Beginnings of names of functions that reveal only a tensor's dtype, memory or shape.
_QUIET = (
    *("is_", "_is_", "has_", "__get__", "sparse_dim", "dense_dim", "dim", "ndimension", "numel"),
    *("nelement", "size", "__len__", "element_size", "storage_offset", "get_device", "data_ptr"),
)
# Functions that make tensors from Python values.
MAKES = frozenset(["tensor", "as_tensor", "asarray", "scalar_tensor", "new_tensor", "from_numpy"])

# Modules in which functions have the names of other functions.
_NAMESAKES = (
    "torch.masked",
    "torch.sparse",
    "torch.nested",
    "torch.fft",
    "torch.signal",
    "torch._ops",
)
_KNOWN: dict[Any, Known] = {}


def canonical(function: Any) -> str:
    """Return the name that a function goes by.

    Examples
    --------
    >>> import torch
    >>> canonical(torch.Tensor.__iadd__), canonical(torch.relu_), canonical(torch.Tensor.mT.__get__)
    ('iadd', 'relu', 'mT')
    """
    name: str = getattr(function, "__name__", "")
    if name == "__get__":
        name = getattr(function.__self__, "__name__", "")
    return name.strip("_").removeprefix("linalg_").removeprefix("special_")


def rule_of(function: Any) -> Known:
    """Return the rule of a function, looked up once."""
    known = _KNOWN.get(function)
    if known is None:
        name = getattr(function, "__name__", "")
        own = "" if _foreign(function, name) else canonical(function)
        odd = name in _ODD
        known = _KNOWN[function] = Known(
            name, _RULES.get(own), routing.RULES.get(own), alone.RULES.get(own), odd
        )
    return known


def _foreign(function: Any, name: str) -> bool:
    """Tell whether a function has a known name but another meaning.

    Functions of other modules do, and those that change a tensor's shape in place, after which its old
    shape is unknown.
    """
    module = getattr(function, "__module__", None) or "torch"
    if not module.startswith("torch") or module.startswith(_NAMESAKES):
        return True
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place and canonical(function) in reorder.RULES
