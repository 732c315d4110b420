"""Ordinary backward passes of the first samples, and the differences that rounding makes in them."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trakstore.features.gradients import batch_size, cut
from trakstore.features.outputs import ModelOutput
from trakstore.features.plain import backward
from trakstore.features.precision import TF32_UNIT, are_tf32
from trakstore.features.projectors import Projector, Sliced, make_projector
from trakstore.features.sharding import WHOLE, Sharding, Take
from trakstore.features.spread import first_device
from trakstore.spec import ParameterSpec, ProjectionSpec

__all__ = ["Samples", "Truth", "disagreeing", "features_alone", "most_tolerance"]

_CHECK = ProjectionSpec("sjlt", dim=256, seed=2**63)
_ROUNDINGS = 8  # times the observed rounding: smaller differences are taken to be rounding


@dataclass(frozen=True)
class Samples:
    """A model and a few samples; parameters have canonical names."""

    model: nn.Module
    output: ModelOutput
    parameters: Mapping[str, nn.Parameter]
    batch: Any
    sharding: Sharding = WHOLE

    @property
    def count(self) -> int:
        """Number of samples."""
        return batch_size(self.batch)

    def zeros(self, rows: int, dim: int) -> Tensor:
        """Return zeros of shape (rows, dim), float32, where the first parameter is."""
        return torch.zeros(rows, dim, dtype=torch.float32, device=first_device(self.model))

    def gradients(self, take: Callable[[int, str, Tensor], None]) -> None:
        """Call ``take`` with a sample's number, a name, and the gradient ``(1, rows, rest)``."""
        for i in range(self.count):
            self._backward(cut(self.batch, i, i + 1), partial(take, i))

    def signed(self, signs: Tensor, take: Take) -> None:
        """Call ``take`` with gradients ``(1, rows, rest)`` of the outputs' sum with signs: one pass."""
        self._backward(self.batch, take, signs)

    def _backward(self, batch: Any, take: Take, signs: Tensor | None = None) -> None:
        home = first_device(self.model)
        at_home: Take = lambda name, tile: take(name, tile.to(home))  # noqa: E731
        backward(self.model, self.output, self.parameters, batch, at_home, signs, self.sharding)


def features_alone(
    samples: Samples, projector: Projector, names: Container[str] | None = None
) -> Tensor:
    """Compute features by an ordinary backward pass of each sample alone.

    Parameters
    ----------
    names : container of str, optional
        Parameters that count; all of them by default.

    Returns
    -------
    Tensor, shape (samples, dim), float32, on the CPU
    """
    out = samples.zeros(samples.count, projector.dim)

    def take(sample: int, name: str, tile: Tensor) -> None:
        if names is None or name in names:
            projector.add(out[sample : sample + 1], name, tile)

    samples.gradients(take)
    return samples.sharding.total(out).cpu()


@dataclass(frozen=True)
class Truth:
    """Sketches of each parameter's true gradients.

    A wrong gradient has another sketch, except with negligible probability. Gradients themselves are
    held for one sample at a time, as in training.

    Attributes
    ----------
    samples : Samples
    checker : Projector
        Projector that makes the sketches.
    sketches : dict of name to Tensor, shape (samples, dim)
    features : Tensor, shape (samples, features)
        Sum of all projected gradients, by the engine's own projector.
    tolerance : float
        Relative error of a gradient that rounding explains: a multiple of the difference between these
        samples one by one and all in one backward pass, within bounds that the dtypes suggest.
    """

    samples: Samples
    checker: Projector
    sketches: dict[str, Tensor]
    features: Tensor
    tolerance: float

    @classmethod
    def of(cls, samples: Samples, projector: Projector) -> Truth:
        """Sketch gradients of a pass for each sample, and compare one pass of all; no engine runs."""
        shapes = {name: tuple(p.shape) for name, p in samples.parameters.items()}
        checker = make_projector(_CHECK, ParameterSpec(tuple(shapes.items())))
        if spans := samples.sharding.spans(samples.parameters):
            checker = Sliced(checker, spans)
        sketches = {name: samples.zeros(samples.count, checker.dim) for name in shapes}
        features = samples.zeros(samples.count, projector.dim)

        def take(i: int, name: str, tile: Tensor) -> None:
            checker.add(sketches[name][i : i + 1], name, tile)
            projector.add(features[i : i + 1], name, tile)

        samples.gradients(take)
        # The same gradients are summed once more, with signs and in one pass: the difference shows what
        # another order of the same sums changes in this model and these dtypes.
        signs = torch.ones(samples.count, dtype=torch.float32)
        signs[1::2] = -1
        together = {name: samples.zeros(1, checker.dim) for name in shapes}
        samples.signed(signs, lambda name, tile: checker.add(together[name], name, tile))
        total = samples.sharding.total
        own = total(torch.cat([together[name] for name in shapes]))
        alone = total(torch.stack([sketches[name] for name in shapes]))
        sketches = dict(zip(shapes, alone, strict=True))
        signed = torch.einsum("i,nid->nd", signs.to(alone), alone)
        scale = alone.norm()
        # Samples that are not finite reveal nothing about rounding, and may be skipped: others follow.
        known = bool(scale) and bool(scale.isfinite())
        rounding = float((own - signed).norm() / scale) if known else 0.0
        least = max(1e-4, 4 * _precision(samples))
        tolerance = min(max(_ROUNDINGS * rounding, least), most_tolerance(samples))
        return cls(samples, checker, sketches, total(features), tolerance)

    def projects_to(self, features: Tensor, projector: Projector, names: set[str]) -> bool:
        """Tell whether features are the projected gradients of some parameters."""
        expected = self.features
        if names != self.samples.parameters.keys():
            expected = features_alone(self.samples, projector, names).to(features)
        # NaN passes: rows that are not finite are refused or skipped when they are stored, and are no
        # fault of an engine.
        return not bool((features - expected).norm() > self.tolerance * expected.norm())


def most_tolerance(samples: Samples) -> float:
    """Return the relative difference above which rounding explains nothing."""
    return max(2e-3, float(_precision(samples) ** 0.5))


def _precision(samples: Samples) -> float:
    """Return the rounding unit of the coarsest dtype with which the model computes."""
    dtypes = {p.dtype for p in samples.parameters.values()} | {samples.output.dtype}
    own = max(torch.finfo(dtype).eps for dtype in dtypes if dtype is not None)
    on_gpu = any(parameter.is_cuda for parameter in samples.parameters.values())
    return max(own, TF32_UNIT) if on_gpu and are_tf32() else own


def disagreeing(truth: Truth, sketches: Mapping[str, Tensor], names: set[str]) -> set[str]:
    """Return those parameters whose sketches differ from the true ones.

    Gradients of about a millionth of the whole (a key's bias in attention) are rounding errors anyway.
    """
    scale = torch.stack([truth.sketches[name] for name in sorted(truth.sketches)]).norm()
    wrong = set()
    for name in names:
        true = truth.sketches[name]
        error = (sketches[name] - true).norm() if name in sketches else true.norm()
        if bool(error > truth.tolerance * true.norm() + truth.tolerance * 1e-2 * scale):
            wrong.add(name)
    return wrong
