"""Changes of TRAK's formula that need no more stored numbers, on whole arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import trakstore as ts

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Parts:
    """Of each checkpoint: train features (n, k), target features (m, k), Q (n,)."""

    train: list[F64]
    target: list[F64]
    q: list[F64]

    @classmethod
    def read(cls, store: ts.FeatureStore, epochs: Sequence[int]) -> Parts:
        def column(split: str, name: str) -> list[F64]:
            rows = [store.split(epoch, split).column(name) for epoch in epochs]
            return [np.asarray(one.read(0, one.shape[0]), dtype=np.float64) for one in rows]

        return cls(
            column("train", "features"), column("test", "features"), column("train", "out_to_loss")
        )


def solved(kernel: F64, train: F64, target: F64, c: float = 1.0) -> F64:
    """T (K + λI)⁻¹ Φᵀ with λ = c·tr(K)/n."""
    size, count = len(kernel), len(train)
    damped = kernel + c * np.trace(kernel) / count * np.eye(size)
    found: F64 = target @ np.linalg.solve(damped, train.T)
    return found


def trak(parts: Parts, power: float = 1.0, c: float = 1.0) -> F64:
    """TRAK with Q to a power."""
    made = [solved(p.T @ p, p, t, c) for p, t in zip(parts.train, parts.target, strict=True)]
    return np.asarray(np.mean(made, axis=0) * np.mean(parts.q, axis=0) ** power)


def heated(parts: Parts, power: float, of_kernel: float) -> F64:
    """Q to a power, and a kernel whose rows have the weight (Q (1 - Q)) to another."""
    made = []
    for p, t, q in zip(parts.train, parts.target, parts.q, strict=True):
        weighting = (q * (1 - q)) ** of_kernel
        made.append(solved((p * weighting[:, None]).T @ p, p, t))
    return np.asarray(np.mean(made, axis=0) * np.mean(parts.q, axis=0) ** power)


def mixed(parts: Parts, share: float) -> F64:
    """The kernel with a share of the targets' own."""
    made = []
    for p, t in zip(parts.train, parts.target, strict=True):
        kernel = (1 - share) * p.T @ p + share * len(p) / len(t) * t.T @ t
        made.append(solved(kernel, p, t))
    return np.asarray(np.mean(made, axis=0) * np.mean(parts.q, axis=0))


def leveraged(parts: Parts) -> F64:
    """Each sample's score over 1 - h, as leaving it out whole would have it."""
    made = []
    for p, t in zip(parts.train, parts.target, strict=True):
        kernel = p.T @ p
        damped = kernel + np.trace(kernel) / len(p) * np.eye(len(kernel))
        own = np.einsum("ij,ji->i", p, np.linalg.solve(damped, p.T))
        made.append(solved(kernel, p, t) / (1 - own))
    return np.asarray(np.mean(made, axis=0) * np.mean(parts.q, axis=0))


def unit(parts: Parts) -> F64:
    """Rows of unit length on both sides."""
    rows = [[x / np.linalg.norm(x, axis=1, keepdims=True) for x in side]
            for side in (parts.train, parts.target)]  # fmt: skip
    return trak(Parts(rows[0], rows[1], parts.q))


def ranks(parts: Parts) -> F64:
    """The mean of each checkpoint's scores over their standard deviation, target by target."""
    made = []
    for p, t, q in zip(parts.train, parts.target, parts.q, strict=True):
        one = solved(p.T @ p, p, t) * q
        made.append(one / one.std(axis=1, keepdims=True))
    return np.asarray(np.mean(made, axis=0))


VARIANTS: dict[str, Callable[[Parts], Any]] = {
    "Q, plain kernel (the paper's formula)": trak,
    "without Q, plain kernel": lambda parts: trak(parts, 0.0),
    "Q to 1/2, plain kernel": lambda parts: trak(parts, 0.5),
    "Q to 1/3, plain kernel": lambda parts: trak(parts, 1 / 3),
    "Q to 1/2, kernel with (Q(1-Q)) to 1/2": lambda parts: heated(parts, 0.5, 0.5),
    "Q to 1/2, kernel with Q(1-Q)": lambda parts: heated(parts, 0.5, 1.0),
    "plain kernel with 0.25 of targets": lambda parts: mixed(parts, 0.25),
    "plain kernel with half of targets": lambda parts: mixed(parts, 0.5),
    "plain kernel, scores over 1 - leverage": leveraged,
    "plain kernel, rows of unit length": unit,
    "plain kernel, each model's scores standardised": ranks,
}
