"""What ordinary backward passes say about the first samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as tree

from trakstore.features.outputs import ModelOutput
from trakstore.features.projectors import Projector, make_projector
from trakstore.features.projectors.base import as_matrix
from trakstore.spec import ParameterSpec, ProjectionSpec

__all__ = ["Samples", "Truth", "disagreeing"]

_CHECK = ProjectionSpec("sjlt", dim=256, seed=2**63)


@dataclass(frozen=True)
class Samples:
    """A model and a few samples; parameters have canonical names."""

    model: nn.Module
    output: ModelOutput
    parameters: Mapping[str, nn.Parameter]
    batch: Any

    def zeros(self, dim: int) -> Tensor:
        """Of shape (samples, dim)."""
        first = tree.tree_leaves(self.batch)[0]
        return torch.zeros(len(first), dim, device=first.device)

    def gradients(self) -> Iterator[tuple[int, str, Tensor]]:
        """Number of a sample, name of a parameter, and the gradient ``(1, rows, rest)``."""
        for i in range(len(tree.tree_leaves(self.batch)[0])):
            sample = tree.tree_map(lambda t, i=i: t[i : i + 1], self.batch)
            with torch.enable_grad():
                scalar = self.output(self.model, sample).output.sum()
            if not scalar.requires_grad:
                continue
            parameters = list(self.parameters.values())
            gradients = torch.autograd.grad(scalar, parameters, allow_unused=True)
            for (name, parameter), gradient in zip(self.parameters.items(), gradients, strict=True):
                if gradient is not None:
                    yield i, name, gradient.reshape(1, *as_matrix(tuple(parameter.shape)))


@dataclass(frozen=True)
class Truth:
    """Sketches of each parameter's gradients, and their projections.

    A wrong gradient has another sketch, but for a chance that no test will live to see; gradients
    themselves are held for one sample at a time, like in training.

    Attributes
    ----------
    samples : Samples
    checker : Projector
        What the sketches are made with.
    sketches : dict of name to Tensor, shape (samples, dim)
    tolerance : float
        Relative error of a gradient that rounding explains.
    """

    samples: Samples
    checker: Projector
    sketches: dict[str, Tensor]
    tolerance: float

    @classmethod
    def of(cls, samples: Samples) -> Truth:
        """One backward pass a sample, with nothing of this package in it."""
        shapes = {name: tuple(p.shape) for name, p in samples.parameters.items()}
        checker = make_projector(_CHECK, ParameterSpec(tuple(shapes.items())))
        sketches = {name: samples.zeros(checker.dim) for name in shapes}
        for i, name, tile in samples.gradients():
            checker.add(sketches[name][i : i + 1], name, tile)
        dtypes = {p.dtype for p in samples.parameters.values()} | {samples.output.dtype}
        precision = max(torch.finfo(dtype).eps for dtype in dtypes if dtype is not None)
        return cls(samples, checker, sketches, 3 * precision**0.5)

    def projects_to(self, features: Tensor, projector: Projector, names: set[str]) -> bool:
        """Whether these are the projected gradients of some parameters."""
        expected = self.samples.zeros(projector.dim)
        for i, name, tile in self.samples.gradients():
            if name in names:
                projector.add(expected[i : i + 1], name, tile)
        return not bool((features - expected).norm() > self.tolerance * expected.norm())


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
