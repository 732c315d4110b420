"""Autograd's graph behind an output: what it leads to that no layer accounts for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node

__all__ = ["Reached", "reached"]

_Accumulate: type = torch._C._functions.AccumulateGrad  # type: ignore[attr-defined]


@dataclass
class Reached:
    """Ends of a graph.

    Attributes
    ----------
    leaves : list of Node
        Those that accumulate gradients of tensors.
    python : bool
        Whether a ``torch.autograd.Function`` is on the way, which may hide tensors from the graph.
    nodes : set of Node
        All that were met.
    """

    leaves: list[Node] = field(default_factory=list)
    python: bool = False
    nodes: set[Node] = field(default_factory=set)


def reached(
    tops: Iterable[Node | None], passed: Mapping[Node, Sequence[Node]] | None = None
) -> Reached:
    """Ends of the graph behind some functions.

    Parameters
    ----------
    tops : iterable of Node
        Functions of what gradients are taken of.
    passed : mapping of Node to sequence of Node, optional
        Functions that are stepped over, with the nodes behind them: layers, whose weights are known.
    """
    known, found = passed or {}, Reached()
    todo, seen = list(tops), found.nodes
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        behind = known.get(node)
        if behind is not None:
            todo += behind
        elif isinstance(node, _Accumulate):
            found.leaves.append(node)
        else:
            found.python |= isinstance(node, BackwardCFunction)
            todo += [one for one, _ in node.next_functions]
    return found
