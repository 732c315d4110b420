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


def cosines(targets, features):
    """⟨t, φ⟩/(‖t‖ ‖φ‖); 0 where a row is 0."""
    t, f = (np.asarray(rows, np.float64) for rows in (targets, features))
    norms = np.outer(np.linalg.norm(t, axis=1), np.linalg.norm(f, axis=1))
    return np.where(norms > 0, t @ f.T / np.where(norms > 0, norms, 1), 0)


def root(matrix):
    """The symmetric square root of the inverse."""
    values, vectors = np.linalg.eigh(matrix)
    return vectors / np.sqrt(values) @ vectors.T


def influence(targets, features, target_q, q, curvature, c=1.0):
    """∇l(t)ᵀ (H + λI)⁻¹ ∇l(z) with ∇l = −q·φ, H = Σ curvature φφᵀ, λ = c·tr(H)/n."""
    hessian = gram(features, curvature)
    damped = hessian + c * np.trace(hessian) / len(features) * np.eye(len(hessian))
    loss_t, loss_z = -target_q[:, None] * targets, -q[:, None] * features
    return loss_t @ np.linalg.inv(damped) @ loss_z.T


def tempered(q, temperature):
    """1/(1 + exp(f/T)) of the f whose 1/(1 + exp(f)) is q."""
    return 1 / (1 + np.exp(-np.log(q / (1 - q)) / temperature))


def trak(targets, trains, scales, *, c=1.0, lam=None, average="factors", temperature=None):
    """TRAK over checkpoints: lists of (m, k), (n, k) and (n,) arrays -> (m, n).

    ``average="factors"``: mean of the whitened products times the mean of the scales;
    ``"scores"``: mean of each checkpoint's product times its own scale. With a temperature kernels are
    weighted by q (1 - q) of tempered scales q.
    """
    weights = [np.ones(len(train)) for train in trains]
    if temperature is not None:
        scales = [tempered(np.asarray(scale, np.float64), temperature) for scale in scales]
        weights = [scale * (1 - scale) for scale in scales]
    products = []
    for target, train, weight in zip(targets, trains, weights, strict=True):
        rows = np.asarray(train, np.float64)
        kernel = gram(rows, weight)
        damped = c * np.trace(kernel) / len(rows) if lam is None else lam
        inverse = np.linalg.inv(kernel + damped * np.eye(len(kernel)))
        products.append(np.asarray(target, np.float64) @ inverse @ rows.T)
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
