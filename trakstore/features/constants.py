"""Layers that are given no samples: positions, class tokens, values made from weights alone.

Their outputs are the same for every sample. Without a batch dimension (a position embedding of
``arange``), their gradients would arrive summed over the batch: such outputs are repeated for each
sample before the model goes on. Where the model makes a row for each sample itself (an embedding of
zeros of shape (batch, time)), these rows are taken as the samples'. Passes with one and with two
samples tell the two cases apart. A model that cannot go on with repeated outputs (T5 permutes its
position biases) keeps its own, which are treated as derived from parameters: they are repeated where
they meet the samples.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as tree

from trakstore.features.axes import Following, Mark, Unplaced
from trakstore.features.gradients import FAILURES, cut
from trakstore.features.layers import Call, Layer
from trakstore.features.recording import Key, Untrusted

__all__ = ["Constant", "Constants", "derived_instead", "find_constants"]

Constant = Literal["rows", "repeated", "derived"]
Constants = dict[Key, Constant]


def find_constants(
    forward: Callable[[Any, Any, Following], Any], first: Any, names: frozenset[str]
) -> Constants:
    """Find the layers that are given no samples, and those of them that have a row for each.

    Parameters
    ----------
    forward : callable
        Runs the model on a batch, with an observer and the places of the samples.
    first : tree of Tensor
        Batch whose first sample is used.
    names : frozenset of str
        All parameters: an error of the model makes each of them doubtful.

    Raises
    ------
    Untrusted
        When the model cannot be watched.
    """
    once = cut(first, 0, 1)
    twice = tree.tree_map(lambda t: torch.cat([t, t]), once)
    one: dict[Key, torch.Size] = {}
    two: dict[Key, torch.Size] = {}
    for count, batch, shapes in ((1, once, one), (2, twice, two)):
        try:
            forward(batch, partial(_note, shapes), Following(count))
        except torch.OutOfMemoryError:
            raise
        except FAILURES as error:  # the model is broken, or cannot be watched: a later check tells
            raise Untrusted(names, f"of an error ({error})") from error
    constants: Constants = {}
    for key in one.keys() & two.keys():
        if one[key] == two[key]:
            constants[key] = "repeated"
        elif one[key][0] == 1 and two[key] == (2, *one[key][1:]):
            constants[key] = "rows"
    return constants


def derived_instead(constants: Constants, names: Set[str]) -> bool:
    """Leave some parameters' repeated constants as the model has them; tell whether there were any."""
    repeated = [
        key for key, how in constants.items() if how == "repeated" and not names.isdisjoint(key[0])
    ]
    constants.update(dict.fromkeys(repeated, "derived"))
    return bool(repeated)


def _note(
    shapes: dict[Key, torch.Size],
    key: Key,
    layer: Layer,  # noqa: ARG001
    call: Call,  # noqa: ARG001
    output: Tensor,
    mark: Mark,
) -> Tensor:
    """Note the shape of an output that has no samples; an observer of :class:`.recording.Recorder`."""
    if mark is Unplaced.FREE:
        shapes[key] = output.shape
    return output
