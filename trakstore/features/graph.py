"""Autograd's graph behind an output, and the tensors at its ends."""

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
        Functions that accumulate gradients of tensors.
    functions : list of Node
        Nodes of ``torch.autograd.Function`` classes on the way, which may hide tensors from the graph.
    nodes : set of Node
        All nodes that were met.
    """

    leaves: list[Node] = field(default_factory=list)
    functions: list[Node] = field(default_factory=list)
    nodes: set[Node] = field(default_factory=set)

    @property
    def python(self) -> bool:
        """Tell whether the graph has a node of a ``torch.autograd.Function`` class."""
        return bool(self.functions)


def reached(
    tops: Iterable[Node | None], passed: Mapping[Node, Sequence[Node]] | None = None
) -> Reached:
    """Find the ends of the graph behind some functions.

    Parameters
    ----------
    tops : iterable of Node
        Nodes whose outputs gradients are taken of.
    passed : mapping of Node to sequence of Node, optional
        Nodes of layers whose weights are known, which are stepped over to the nodes given here.
    """
    known, ends = passed or {}, Reached()
    todo, seen = list(tops), ends.nodes
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        behind = known.get(node)
        if behind is not None:
            todo += behind
        elif isinstance(node, _Accumulate):
            ends.leaves.append(node)
        else:
            if isinstance(node, BackwardCFunction):
                ends.functions.append(node)
            todo += [one for one, _ in node.next_functions]
    return ends
