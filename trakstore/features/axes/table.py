"""Rules by the names of torch functions, and those that need none.

A function goes by one name whether it is a method, an operator or changes its first argument in place:
``torch.add``, ``Tensor.__radd__`` and ``Tensor.add_``. What no rule is known of loses the samples.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from trakstore.features.axes import (
    along,
    broadcast,
    contraction,
    losses,
    picking,
    recurrent,
    reorder,
)
from trakstore.features.axes.asked import Rule

__all__ = ["DATA", "TELLS", "Known", "canonical", "rule_of"]


class Known(NamedTuple):
    """Own name of a function, the rule of what goes by its canonical name, and whether it is odd."""

    name: str
    rule: Rule | None
    odd: bool


_RULES: dict[str, Rule] = {
    **broadcast.RULES,
    **reorder.RULES,
    **along.RULES,
    **picking.RULES,
    **contraction.RULES,
    **recurrent.RULES,
    **losses.RULES,
}
# functions whose result is not all that they change, or no tensor
_ODD = frozenset(["__iter__", "__set__", "__setitem__"])
# functions that hand data over to Python
_TELLS = "item tolist numpy __bool__ __int__ __float__ __index__ __array__ __contains__"
TELLS = frozenset(_TELLS.split())
# functions that make tensors of what Python has
DATA = frozenset(["tensor", "as_tensor", "asarray", "scalar_tensor", "new_tensor", "from_numpy"])

# modules whose functions have names of others
_OTHERS = (
    "torch.masked",
    "torch.sparse",
    "torch.nested",
    "torch.fft",
    "torch.signal",
    "torch._ops",
)
_KNOWN: dict[Any, Known] = {}


def canonical(function: Any) -> str:
    """Name that a function goes by.

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
    """What is known of a function."""
    known = _KNOWN.get(function)
    if known is None:
        name = getattr(function, "__name__", "")
        rule = None if _foreign(function, name) else _RULES.get(canonical(function))
        known = _KNOWN[function] = Known(name, rule, name in TELLS or name in _ODD)
    return known


def _foreign(function: Any, name: str) -> bool:
    """True for functions that have a known name and another meaning.

    Those of other modules, and those that give a tensor another shape in place, after which its old one
    is not known any more.
    """
    module = getattr(function, "__module__", None) or "torch"
    if not module.startswith("torch") or module.startswith(_OTHERS):
        return True
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place and canonical(function) in reorder.RULES
