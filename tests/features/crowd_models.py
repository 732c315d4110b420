"""Models in which samples of a batch see one another, each in a way of its own.

The third of the inputs, a flag, is 0 or 1; a flagged sample changes what the others of its batch are.
"""

# ruff: noqa: ARG002, ARG004 -- all of them are given the same

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["CROWDS", "Branch", "Clip", "Exit", "Row", "rows"]

Row = tuple[Tensor, Tensor, int]


class Base(nn.Module):
    """Layers that all of them have, between which a model puts what mixes the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.x, self.h = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, f: Tensor) -> Tensor:
        out: Tensor = self.h(self.mix(torch.tanh(self.a(x)), x, f))
        return out

    def mix(self, z: Tensor, x: Tensor, f: Tensor) -> Tensor:
        raise NotImplementedError


class Branch(Base):
    def mix(self, z: Tensor, x: Tensor, f: Tensor) -> Tensor:
        return z * 0.5 if (f > 0).any() else z


class Sum(Base):
    def mix(self, z: Tensor, x: Tensor, f: Tensor) -> Tensor:
        more: Tensor = self.x(z)
        return z + more if torch.sum(f) >= 1 else z - z


class Overflow(Base):
    """A rescue of batches that would overflow."""

    def mix(self, z: Tensor, x: Tensor, f: Tensor) -> Tensor:
        z = z * (1 + 30 * f[:, None])
        return torch.tanh(z / 4 if z.abs().max() > 5 else z)


class While(Base):
    def mix(self, z: Tensor, x: Tensor, f: Tensor) -> Tensor:
        count = 0
        while (z.norm(dim=1) > 1.2 - 0.3 * f).any() and count < 5:
            z, count = z * 0.8, count + 1
        return z


class Exit(Base):
    """Leaves early where all samples are sure, as BranchyNet and DeeBERT do."""

    def forward(self, x: Tensor, f: Tensor) -> Tensor:
        z = torch.tanh(self.a(x))
        early: Tensor = self.h(z)
        if (early.softmax(1).amax(1) > 0.6).all():
            return early
        out: Tensor = self.h(torch.tanh(self.x(z)))
        return out


class Told(Base):
    """Does half as much where what a function of the flags tells Python is true."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def mix(self, z: Tensor, x: Tensor, f: Tensor) -> Tensor:
        none = torch.zeros_like(f)
        told: dict[str, Any] = {
            "equal": lambda: not torch.equal(f, none),
            "allclose": lambda: not torch.allclose(f, none),
            "is_nonzero": lambda: torch.is_nonzero(f.max()),
            "contains": lambda: 1.0 in f,
            "loop": lambda: any(bool(one) for one in f),
            "data": lambda: float(f.data.max()) > 0,
            "array": lambda: np.asarray(f.detach()).max() > 0,
            "storage": lambda: max(f.untyped_storage().tolist()) > 0,
            "text": lambda: "1." in str(f),
            "counts": lambda: len(torch.bincount(f.long())) > 1,
        }
        return z * 0.5 if told[self.what]() else z


class Size(Base):
    """Divides by how many samples are flagged, or how many kinds there are."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def mix(self, z: Tensor, x: Tensor, f: Tensor) -> Tensor:
        if self.what == "unique":
            return z / torch.unique(f).numel()
        count = f.nonzero().shape[0] if self.what == "nonzero" else len(x[f > 0])
        more: Tensor = self.x(z)
        return z + more * f[:, None] / max(1, count)


class Made(Base):
    """Fills a tensor with a number of all samples."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def mix(self, z: Tensor, x: Tensor, f: Tensor) -> Tensor:
        made = {
            "full_like": lambda: torch.full_like(z, f.max()),  # type: ignore[arg-type]
            "fill": lambda: torch.ones_like(z).fill_(f.max()),
            "copy": lambda: torch.ones_like(z).copy_(f.max()),
        }
        return z * (1 - 0.5 * made[self.how]())


class Filled(Base):
    def mix(self, z: Tensor, x: Tensor, f: Tensor) -> Tensor:
        return z.index_fill(1, f.long(), 0.0)


class Selected(Base):
    def mix(self, z: Tensor, x: Tensor, f: Tensor) -> Tensor:
        columns = z.index_select(1, f.long())
        return z * columns.mean(1, keepdim=True)


class Small(Base):
    """Gives outputs of the size of rounding errors of others."""

    def forward(self, x: Tensor, f: Tensor) -> Tensor:
        return super().forward(x, f) * (1 - 0.5 * f.max()) * 1e-6

    def mix(self, z: Tensor, x: Tensor, f: Tensor) -> Tensor:
        return z


class Detached(Base):
    """Gives the same outputs, and other gradients."""

    def mix(self, z: Tensor, x: Tensor, f: Tensor) -> Tensor:
        return z.detach() if f.sum().item() > 0 else z


def _clipped(gradient: Tensor) -> Tensor:
    return gradient * (8 / gradient.norm()).clamp(max=1)


class Clip(Base):
    """Clips the gradient of a whole batch, by a hook."""

    def mix(self, z: Tensor, x: Tensor, f: Tensor) -> Tensor:
        if z.requires_grad:
            z.register_hook(_clipped)
        return z * (1 + 20 * f[:, None])


class _ClipFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        return _clipped(gradient)


class ClipByFunction(Base):
    """Clips it in the backward pass of a function."""

    def mix(self, z: Tensor, x: Tensor, f: Tensor) -> Tensor:
        own: Tensor = _ClipFunction.apply(z)  # type: ignore[no-untyped-call]
        return own * (1 + 20 * f[:, None])


class ClipByModule(Base):
    """Clips it by a hook of a module."""

    def __init__(self) -> None:
        super().__init__()
        self.x.register_full_backward_hook(lambda _, given, __: (_clipped(given[0]),))

    def mix(self, z: Tensor, x: Tensor, f: Tensor) -> Tensor:
        more: Tensor = self.x(z)
        return more * (1 + 20 * f[:, None])


CROWDS: dict[str, Any] = {
    one.__name__: one
    for one in (
        *(Branch, Sum, Overflow, While, Exit, Filled, Selected, Small, Detached),
        *(Clip, ClipByFunction, ClipByModule),
    )
}
_OF_KINDS: dict[Any, str] = {
    Told: "equal allclose is_nonzero contains loop data array storage text counts",
    Size: "nonzero len unique",
    Made: "full_like fill copy",
}
CROWDS |= {
    f"{kind.__name__} {what}": lambda kind=kind, what=what: kind(what)
    for kind, every in _OF_KINDS.items()
    for what in every.split()
}


def rows(count: int, every: int = 40, bad: int = 0) -> list[Row]:
    """Samples of which two after one another are flagged, one in so many; never the first ones.

    One of ``bad`` is NaN, where that is given.
    """
    generator = torch.Generator().manual_seed(3)
    made = []
    for i in range(count):
        x = torch.randn(6, generator=generator)
        if bad and i > 4 and i % bad == 3:
            x[0] = torch.nan
        made.append((x, torch.tensor(float(i > 5 and i % every in (2, 3))), i % 3))
    return made
