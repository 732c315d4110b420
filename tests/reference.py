"""Dense, independent float64 NumPy: what the blocked code must agree with."""

from __future__ import annotations

import numpy as np


def gram(features, weights=None):
    """K = Σᵢ wᵢ φᵢ φᵢᵀ."""
    features = np.asarray(features, dtype=np.float64)
    weights = np.ones(len(features)) if weights is None else np.asarray(weights)
    return np.einsum("i,ij,ik->jk", weights, features, features, optimize=True)


def damping(features, c):
    """λ = c times the mean squared norm of a row."""
    return c * np.mean([np.dot(row, row) for row in np.asarray(features, dtype=np.float64)])


def whitened(targets, features, lam):
    """T (ΦᵀΦ + λI)⁻¹ Φᵀ, with the inverse written down."""
    kernel = gram(features) + lam * np.eye(features.shape[1])
    return np.asarray(targets, np.float64) @ np.linalg.inv(kernel) @ np.asarray(features, float).T


def trak(targets, trains, scales, *, c=1.0, lam=None, average="factors"):
    """TRAK over checkpoints: lists of (m, k), (n, k) and (n,) arrays -> (m, n).

    ``average="factors"``: mean of the whitened products times the mean of the scales;
    ``"scores"``: mean of each checkpoint's product times its own scale.
    """
    products = [
        whitened(target, train, damping(train, c) if lam is None else lam)
        for target, train in zip(targets, trains, strict=True)
    ]
    if average == "factors":
        return np.mean(products, axis=0) * np.mean(scales, axis=0)
    return np.mean([product * scale for product, scale in zip(products, scales, strict=True)], 0)


def top_k(scores, k, order="largest"):
    """Positions (m, k) by a full stable sort of each row; ties keep the order of the train rows."""
    turn = {"largest": np.negative, "smallest": np.asarray, "magnitude": lambda row: -np.abs(row)}
    return np.array([np.argsort(turn[order](row), kind="stable")[:k] for row in scores])


def spectrum(features, c):
    """Eigenvalues of the gram by singular values of the features, and what follows from them."""
    features = np.asarray(features, dtype=np.float64)
    values = np.zeros(features.shape[1])
    singular = np.linalg.svd(features, compute_uv=False)
    values[: len(singular)] = singular**2
    lam, share = damping(features, c), values[values > 0] / values.sum()
    return {
        "eigenvalues": values,
        "trace": np.sum(features**2),
        "lam": lam,
        "damped_condition": (values[0] + lam) / (values[-1] + lam),
        "stable_rank": np.sum(features**2) / np.linalg.norm(features, 2) ** 2,
        "effective_rank": np.exp(-np.sum(share * np.log(share))),
        "effective_dim": np.trace(
            gram(features) @ np.linalg.inv(gram(features) + lam * np.eye(features.shape[1]))
        ),
    }
