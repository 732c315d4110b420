"""Ordinary backward passes of the first samples, and how far rounding takes others from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trakstore.features.gradients import batch_size, copied, cut
from trakstore.features.outputs import ModelOutput
from trakstore.features.plain import gradients, only
from trakstore.features.projectors import Projector, make_projector
from trakstore.features.projectors.projector import as_matrix
from trakstore.spec import ParameterSpec, ProjectionSpec

__all__ = ["Samples", "Truth", "disagreeing", "least_tolerance", "most_tolerance"]

_CHECK = ProjectionSpec("sjlt", dim=256, seed=2**63)
_ROUNDINGS = 8  # times what rounding was seen to do that is still laid to rounding


@dataclass(frozen=True)
class Samples:
    """A model and a few samples; parameters have canonical names."""

    model: nn.Module
    output: ModelOutput
    parameters: Mapping[str, nn.Parameter]
    batch: Any

    @property
    def count(self) -> int:
        """Number of samples."""
        return batch_size(self.batch)

    def zeros(self, rows: int, dim: int) -> Tensor:
        """Of shape (rows, dim), float32."""
        device = next(iter(self.parameters.values())).device
        return torch.zeros(rows, dim, dtype=torch.float32, device=device)

    def gradients(self) -> Iterator[tuple[int, str, Tensor]]:
        """Number of a sample, name of a parameter, and the gradient ``(1, rows, rest)``."""
        for i in range(self.count):
            for name, gradient in self._backward(cut(self.batch, i, i + 1), None):
                yield i, name, gradient

    def signed(self, signs: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Gradients ``(1, rows, rest)`` of the outputs' sum with these signs: one backward pass."""
        yield from self._backward(self.batch, signs)

    def _backward(self, batch: Any, signs: Tensor | None) -> Iterator[tuple[str, Tensor]]:
        with only(tuple(self.model.parameters()), self.parameters):
            output = self.output(self.model, copied(batch)).output
            scalar = output.sum() if signs is None else (output * signs.to(output)).sum()
            found = gradients(scalar, list(self.parameters.values()))
        for (name, parameter), gradient in zip(self.parameters.items(), found, strict=True):
            if gradient is not None:
                dense = gradient.to_dense() if gradient.is_sparse else gradient
                yield name, dense.reshape(1, *as_matrix(tuple(parameter.shape)))


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
        Relative error of a gradient that rounding explains: some times the difference between these
        samples one by one and all of them in one backward pass, within what the dtypes suggest.
    """

    samples: Samples
    checker: Projector
    sketches: dict[str, Tensor]
    tolerance: float

    @classmethod
    def of(cls, samples: Samples) -> Truth:
        """One backward pass a sample, and one of all, with nothing of this package in it."""
        shapes = {name: tuple(p.shape) for name, p in samples.parameters.items()}
        checker = make_projector(_CHECK, ParameterSpec(tuple(shapes.items())))
        sketches = {name: samples.zeros(samples.count, checker.dim) for name in shapes}
        for i, name, tile in samples.gradients():
            checker.add(sketches[name][i : i + 1], name, tile)
        signs = torch.ones(samples.count, dtype=torch.float32)
        signs[1::2] = -1
        together = {name: samples.zeros(1, checker.dim) for name in shapes}
        for name, tile in samples.signed(signs):
            checker.add(together[name], name, tile)
        own = torch.cat([together[name] for name in shapes])
        alone = torch.stack([sketches[name] for name in shapes])
        signed = torch.einsum("i,nid->nd", signs.to(alone), alone)
        scale = alone.norm()
        rounding = float((own - signed).norm() / scale) if bool(scale) else 0.0
        least, most = least_tolerance(samples), most_tolerance(samples)
        return cls(samples, checker, sketches, min(max(_ROUNDINGS * rounding, least), most))

    def projects_to(self, features: Tensor, projector: Projector, names: set[str]) -> bool:
        """Whether these are the projected gradients of some parameters."""
        expected = self.samples.zeros(self.samples.count, projector.dim)
        for i, name, tile in self.samples.gradients():
            if name in names:
                projector.add(expected[i : i + 1], name, tile)
        return not bool((features - expected).norm() > self.tolerance * expected.norm())


def least_tolerance(samples: Samples) -> float:
    """Relative difference that is always laid to rounding: 1e-4, or four units of the dtype."""
    return max(1e-4, 4 * _precision(samples))


def most_tolerance(samples: Samples) -> float:
    """Relative difference above which nothing is laid to rounding."""
    return max(2e-3, float(_precision(samples) ** 0.5))


def _precision(samples: Samples) -> float:
    dtypes = {p.dtype for p in samples.parameters.values()} | {samples.output.dtype}
    return max(torch.finfo(dtype).eps for dtype in dtypes if dtype is not None)


def disagreeing(truth: Truth, sketches: Mapping[str, Tensor], names: set[str]) -> set[str]:
    """Those of the parameters whose sketches are not the true ones.

    Gradients that are a millionth of all (a key's bias in attention) are rounding errors anyway.
    """
    scale = torch.stack([truth.sketches[name] for name in sorted(truth.sketches)]).norm()
    wrong = set()
    for name in names:
        true = truth.sketches[name]
        error = (sketches[name] - true).norm() if name in sketches else true.norm()
        if bool(error > truth.tolerance * true.norm() + truth.tolerance * 1e-2 * scale):
            wrong.add(name)
    return wrong
