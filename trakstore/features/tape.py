"""The backward pass: each layer's projection is added as soon as its output gradient is there."""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from trakstore.features.axes import Axis, Following, Mark, Placed, Routed, Unplaced
from trakstore.features.constants import Constants
from trakstore.features.gradients import FAILURES
from trakstore.features.layers import Call, Layer, Some
from trakstore.features.projectors import Collecting, Piece, Projector
from trakstore.features.recording import Key, Untrusted, expanded
from trakstore.features.sharding import is_part, local_part

__all__ = ["OutOf", "Tape"]

Counts = Callable[[Piece], bool]
# Returns the tensor, on a device, to which a parameter's projection is added.
OutOf = Callable[[str, torch.device], Tensor]


@dataclass
class Tape:
    """An observer of layers; see :class:`~trakstore.features.recording.Recorder`.

    Attributes
    ----------
    following : Following
        Places of the samples.
    constants : dict of Key
        Layers that are given no samples, with the way in which they are treated.
    projector : Projector
    out_of : callable
    counts : callable
        Tells whether this rank adds a piece of a gradient that every rank has whole.
    passed : dict of Node
        Autograd nodes of layers, with the nodes behind their activations; those behind weights are left
        out.
    doubtful : set of str
        Parameters of layers whose rows may not be the samples'.
    """

    following: Following
    constants: Constants
    projector: Projector
    out_of: OutOf
    counts: Counts
    passed: dict[Node, list[Node]] = field(default_factory=dict)
    doubtful: set[str] = field(default_factory=set)
    _first: list[GradientEdge] = field(default_factory=list)
    _hooks: list[RemovableHandle] = field(default_factory=list)
    _running: bool = False
    _pieces: dict[torch.device, Collecting] = field(default_factory=dict)
    _of_input: dict[Tensor, list[str]] = field(default_factory=dict)

    def __call__(self, key: Key, layer: Layer, call: Call, output: Tensor, mark: Mark) -> Tensor:
        """Note a layer; return its output, repeated for each sample if it has no samples."""
        if not output.requires_grad:
            return output
        if mark is Unplaced.FREE and self.constants.get(key) == "derived":
            return output  # layers behind it, which derive something from it, show up in the graph
        before = call.given()
        behind = [tensor.grad_fn or get_gradient_edge(tensor).node for tensor in before]
        base = _unchanged(output)
        # An output may be a view: the layer's own node is then behind the tensor that it views.
        for tensor in (output, base):
            if tensor.grad_fn is not None:
                self.passed[tensor.grad_fn] = behind
        if not before:
            # Nothing before the layer requires gradients, so that the backward pass may end here.
            self._first.append(get_gradient_edge(base))
        if mark is Unplaced.FREE:
            return self._constant(key, layer, output, base)
        self._watch(layer, self._places(layer, mark), output, base)
        return output

    def _places(self, layer: Layer, mark: Mark) -> list[Placed] | None:
        """Return the samples' places in a layer's inputs and output; None if they are not certain."""
        beside = [mark] * len(layer.beside)
        marks = [*map(self.following.of, layer.inputs), *beside, mark]
        axes = [own for own in marks if isinstance(own, Axis | Routed)]
        routed = {axis.rows if isinstance(axis, Routed) else None for axis in axes}
        first = any(axis.dim for axis in axes) and (layer.samples_first or bool(beside))
        return axes if len(axes) == len(marks) and len(routed) == 1 and not first else None

    def _constant(self, key: Key, layer: Layer, output: Tensor, base: Tensor) -> Tensor:
        how = self.constants.get(key)
        batch = self.following.batch
        if how == "repeated":
            # The model continues with a row for each sample, so that each row's gradient belongs to
            # one.
            repeated = expanded(output, batch)
            self.following.claim_repeated(repeated, layer.names, output.ndim)
            self._watch(layer, [], repeated, repeated)
            return repeated
        rows = [bool(one.ndim) and len(one) == batch for one in (output, *layer.inputs)]
        if how == "rows" and rows[0]:
            self.following.claim(output, layer.names)
        certain = how == "rows" and all(rows)
        self._watch(layer, [Axis(0)] * len(rows) if certain else None, output, base)
        return output

    def _watch(self, layer: Layer, axes: list[Placed] | None, output: Tensor, base: Tensor) -> None:
        """Have :meth:`_arrived` called with the output's gradient.

        Parameters
        ----------
        axes : list of Axis or Routed, or None
            Places of the samples in the inputs and the output; empty where these have none and are the
            same for each sample. None where places are not certain: the layer's parameters are then
            doubtful.
        """
        if axes is None:
            self.doubtful.update(layer.names)
            return
        inputs = [local_part(tensor).detach() for tensor in (*layer.inputs, *layer.beside)]
        versions = [tensor._version for tensor in inputs]
        if layer.inputs:
            names = self._of_input.setdefault(layer.inputs[0], [])
            names.extend(layer.names)
            layer.same_input = names
        shape = local_part(output).shape
        arrived = partial(self._arrived, layer, axes, inputs, versions, shape)
        self._hooks.append(base.register_hook(arrived))

    def _arrived(
        self,
        layer: Layer,
        axes: list[Placed],
        inputs: list[Tensor],
        versions: list[int],
        shape: torch.Size,
        gradient: Tensor,
    ) -> None:
        if not self._running or self.doubtful.issuperset(layer.names):
            return  # the model itself may differentiate during its forward pass
        # Inputs are detached, so that autograd does not notice later changes of them in place.
        if [tensor._version for tensor in inputs] != versions:
            raise Untrusted(layer.names, "an activation was changed in place")
        size, part = self.following.batch, is_part(gradient)
        gradient = local_part(gradient)
        if gradient.shape != shape:
            gradient = gradient.reshape(shape)
        if not axes:
            gradient = gradient.unsqueeze(1)
            ready = tuple(expanded(tensor, size).unsqueeze(1) for tensor in inputs)
        else:
            *tensors, gradient = map(self._front, [*inputs, gradient], axes)
            ready = tuple(tensors)
        try:
            for piece in layer.pieces(ready, gradient):
                self._add(piece, part, gradient.device)
        except torch.OutOfMemoryError:
            raise
        except FAILURES as error:
            raise Untrusted(layer.names, f"their layer fails ({error})") from error

    def _add(self, piece: Piece | Some, part: bool, device: torch.device) -> None:
        own = piece.piece if isinstance(piece, Some) else piece
        if own.name in self.doubtful or not (part or self.counts(own)):
            return
        out = self.out_of(own.name, device)
        if isinstance(piece, Some):
            self.projector.add_piece(out[piece.samples], own)
        else:
            self._collecting(device).add(out, own)

    def _collecting(self, device: torch.device) -> Collecting:
        """Return the collector of pieces of a device; in a pass the device's own thread asks for it.

        Threads that shared one would take one another's memory; and where one adds pieces between those
        of another, sums would be cut differently in each run.
        """
        if device not in self._pieces:
            self._pieces[device] = self.projector.collecting()
        return self._pieces[device]

    def _front(self, tensor: Tensor, axis: Placed) -> Tensor:
        front = axis.front(tensor, self.following.batch)
        if front is None:
            raise Untrusted((), "a tensor has another shape than its layer's")
        return front

    def close(self) -> None:
        """Drop the graph: its nodes hold hooks, these hold the tape, and nothing would be freed."""
        self.passed.clear()
        self._first.clear()
        self._hooks.clear()
        self._of_input.clear()
        self.following.close()

    def backward(
        self, output: Tensor, leaves: list[Node], doubtful: Set[str], again: bool = False
    ) -> None:
        """Differentiate from the outputs down to the first layers and the leaves.

        The graph is kept if another pass goes through it ``again``.
        """
        self.doubtful |= doubtful
        ends = [*self._first, *(GradientEdge(leaf, 0) for leaf in leaves)]
        if not ends or not output.requires_grad:
            return
        self._come_last()
        self._running = True
        try:
            torch.autograd.grad(
                output, ends, torch.ones_like(output), retain_graph=again, allow_unused=True
            )
            for collecting in self._pieces.values():
                collecting.finish()
        finally:
            self._running = False

    def _come_last(self) -> None:
        """Move the tape's hooks behind those that the model gave its activations meanwhile.

        A weight's gradient is made from what those hooks leave of an activation's gradient.
        """
        for handle in self._hooks:
            hooks = handle.hooks_dict_ref()
            if hooks and handle.id in hooks:
                hooks[handle.id] = hooks.pop(handle.id)


def _unchanged(output: Tensor) -> Tensor:
    """Return the tensor of which all of an output is a view, or else the output itself.

    Its gradient is the output's, even if the output is changed in place after the layer.
    """
    base = output._base
    same = base is not None and base.grad_fn is not None and base.numel() == output.numel()
    return base if base is not None and same else output
