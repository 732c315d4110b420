"""What ordinary backward passes say about the first samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as tree

from trakstore.features.outputs import ModelOutput
from trakstore.features.parameters import canonical_name
from trakstore.features.projectors import Projector, make_projector
from trakstore.features.projectors.base import as_matrix
from trakstore.spec import ParameterSpec, ProjectionSpec

__all__ = ["Truth", "disagreeing"]

_CHECK = ProjectionSpec("sjlt", dim=256, seed=2**63)


@dataclass(frozen=True)
class Truth:
    """Sketches of each parameter's gradients, and their projections.

    A wrong gradient has another sketch, but for a chance that no test will live to see; gradients
    themselves are held for one sample at a time, like in training.

    Attributes
    ----------
    checker : Projector
        What the sketches are made with.
    sketches, projections : dict of name to Tensor, shape (samples, dim)
    tolerance : float
        Relative error of a gradient that rounding explains.
    """

    checker: Projector
    sketches: dict[str, Tensor]
    projections: dict[str, Tensor]
    tolerance: float

    @classmethod
    def of(
        cls,
        model: nn.Module,
        output: ModelOutput,
        parameters: Mapping[str, nn.Parameter],
        batch: Any,
        projector: Projector,
    ) -> Truth:
        """One backward pass a sample, with nothing of this package in it."""
        shapes = {canonical_name(name): tuple(p.shape) for name, p in parameters.items()}
        checker = make_projector(_CHECK, ParameterSpec(tuple(shapes.items())))
        size = len(tree.tree_leaves(batch)[0])
        device = tree.tree_leaves(batch)[0].device
        sketches = {n: torch.zeros(size, checker.dim, device=device) for n in shapes}
        projections = {n: torch.zeros(size, projector.dim, device=device) for n in shapes}
        for i in range(size):
            with torch.enable_grad():
                scalar = output(
                    model, tree.tree_map(lambda t, i=i: t[i : i + 1], batch)
                ).output.sum()
            gradients = torch.autograd.grad(scalar, list(parameters.values()), allow_unused=True)
            for name, gradient in zip(shapes, gradients, strict=True):
                if gradient is not None:
                    tile = gradient.reshape(1, *as_matrix(shapes[name]))
                    checker.add(sketches[name][i : i + 1], name, tile)
                    projector.add(projections[name][i : i + 1], name, tile)
        precisions = [torch.finfo(p.dtype).eps for p in parameters.values()]
        return cls(checker, sketches, projections, 3 * max(precisions) ** 0.5)

    def projects_to(self, features: Tensor, names: set[str]) -> bool:
        """Whether these are the projected gradients of some parameters."""
        expected = torch.stack([self.projections[name] for name in sorted(names)]).sum(0)
        error, size = (features - expected).norm(), expected.norm()
        return not bool(error > self.tolerance * size)


def disagreeing(truth: Truth, sketches: Mapping[str, Tensor], names: set[str]) -> set[str]:
    """Those of the parameters whose sketches are not the true ones.

    Gradients that are a millionth of all (a key's bias in attention) are rounding errors anyway.
    """
    scale = torch.stack([truth.sketches[name] for name in sorted(truth.sketches)]).norm()
    wrong = set()
    for name in names:
        true = truth.sketches[name]
        error = (sketches[name] - true).norm() if name in sketches else true.norm()
        if bool(error > truth.tolerance * true.norm() + 1e-6 * scale):
            wrong.add(name)
    return wrong
