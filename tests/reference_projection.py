"""The projections, materialised entry by entry with Python integers from ``storage/FORMAT.md``.

Slow and independent of the library: P is formed, gradients come from plain autograd, one sample at a
time.
"""

from __future__ import annotations

import hashlib
import json
import math
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def mix(x: int) -> int:
    x ^= x >> 16
    x = x * 0x85EBCA6B % 2**32
    x ^= x >> 13
    x = x * 0xC2B2AE35 % 2**32
    return x ^ x >> 16


@cache  # asked for again with each entry of a matrix
def keys(spec: Any, name: str, shape: tuple[int, ...], stream: str) -> list[int]:
    text = json.dumps(
        [spec.kind, spec.version, spec.dim, spec.seed, spec.s, name, list(shape), stream],
        separators=(",", ":"),
    )
    return np.frombuffer(hashlib.sha256(text.encode()).digest()[:12], "<u4").tolist()


def sjlt_entry(spec: Any, name: str, shape: tuple[int, ...], r: int, c: int) -> dict[int, float]:
    entry: dict[int, float] = {}
    for copy in range(spec.s):
        a, b, _ = keys(spec, name, shape, f"runs {copy}")
        d, e, _ = keys(spec, name, shape, f"signs {copy}")
        word = mix((mix(r ^ a) + mix(c // spec.dim ^ b)) % 2**32)
        column = ((word // 2) * spec.dim // 2**31 + c) % spec.dim
        sign = (-1) ** (word % 2) * (-1) ** (mix((mix(c ^ d) + e) % 2**32) % 2)
        entry[column] = entry.get(column, 0.0) + sign / spec.s**0.5
    return entry


def rademacher_entry(
    spec: Any, name: str, shape: tuple[int, ...], r: int, c: int
) -> dict[int, float]:
    a, b, d = keys(spec, name, shape, "signs")
    pair = mix((mix(r ^ a) + mix(c ^ b)) % 2**32)
    words = [mix((pair + mix(w ^ d)) % 2**32) for w in range(-(-spec.dim // 32))]
    return {j: (1 - 2 * (words[j // 32] >> j % 32 & 1)) / spec.dim**0.5 for j in range(spec.dim)}


def gaussian_entry(
    spec: Any, name: str, shape: tuple[int, ...], r: int, c: int
) -> dict[int, float]:
    a, b, d = keys(spec, name, shape, "normal")
    pair = mix((mix(r ^ a) + mix(c ^ b)) % 2**32)
    entry = {}
    for j in range(spec.dim):
        u, v = (
            (mix((pair + mix(w ^ d)) % 2**32) + 0.5) / 2**32 for w in (j - j % 2, j - j % 2 + 1)
        )
        wave = math.sin if j % 2 else math.cos
        entry[j] = math.sqrt(-2 * math.log(u)) * wave(2 * math.pi * v) / spec.dim**0.5
    return entry


def kronecker_entry(
    spec: Any, name: str, shape: tuple[int, ...], r: int, c: int
) -> dict[int, float]:
    """Entry (r, c) of a gradient as part of L·G·Rᵀ, each entry of which is sketched."""
    rows, rest = (shape[0] if shape else 1), int(np.prod(shape[1:]))
    whole = 1 in (rows, rest)
    small = (rows, rest) if whole else (min(rows, spec.side), min(rest, spec.side))

    def column(which: str, at: int, size: int, reduced: int) -> dict[int, float]:
        if reduced == size:
            return {at: 1.0}
        a, b, _ = keys(spec, name, shape, f"{which} {spec.side}")
        bits = [mix((mix(i ^ a) + mix(at ^ b)) % 2**32) % 2 for i in range(reduced)]
        return {i: (-1) ** bit / spec.side**0.5 for i, bit in enumerate(bits)}

    entry: dict[int, float] = {}
    for i, left in column("left", r, rows, small[0]).items():
        for j, right in column("right", c, rest, small[1]).items():
            for k, sign in sjlt_entry(spec, name, small, i, j).items():
                entry[k] = entry.get(k, 0.0) + left * right * sign
    return entry


def matrix(spec: Any, shapes: dict[str, tuple[int, ...]]) -> NDArray[np.float64]:
    """Pᵀ, of shape (parameters, dim), for parameters laid one after the other."""
    total = sum(int(np.prod(shape)) for shape in shapes.values())
    if spec.kind == "identity":
        return np.eye(total)
    entry = {
        "sjlt": sjlt_entry,
        "kronecker": kronecker_entry,
        "rademacher": rademacher_entry,
        "gaussian": gaussian_entry,
    }[spec.kind]
    rows = np.zeros((total, spec.dim))
    at = 0
    for name, shape in shapes.items():
        rest = int(np.prod(shape[1:]))
        for r in range(shape[0] if shape else 1):
            for c in range(rest):
                for column, value in entry(spec, name, shape, r, c).items():
                    rows[at, column] += value
                at += 1
    return rows


def gradients(model: Any, f: Any, samples: Any) -> NDArray[np.float64]:
    """Gradients of f(model, sample), one sample after the other, shape (samples, parameters)."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for sample in samples:
        parts = torch.autograd.grad(f(model, sample), parameters, allow_unused=True)
        rows.append(
            torch.cat(
                [
                    (torch.zeros_like(p) if g is None else g).reshape(-1)
                    for p, g in zip(parameters, parts, strict=True)
                ]
            )
        )
    return torch.stack(rows).double().numpy()


def margin(model: Any, sample: Any) -> torch.Tensor:
    """log p - log(1 - p) of the own class."""
    x, y = sample
    p = torch.softmax(model(x[None])[0], dim=0)
    return torch.log(p[y]) - torch.log(1 - p[y])


def stable_margin(model: Any, sample: Any) -> torch.Tensor:
    """The same in float64 logits, for models so sure that 1 - p is 0 in float32."""
    x, y = sample
    logits = model(x[None])[0].double()
    others = torch.cat([logits[:y], logits[y + 1 :]])
    return logits[y] - torch.logsumexp(others, dim=0)


def cross_entropy(model: Any, sample: Any) -> torch.Tensor:
    x, y = sample
    return -torch.log(torch.softmax(model(x[None])[0], dim=0)[y])
