"""Square roots of damped kernels: rows times their inverse have the kernel's metric for their own."""

from __future__ import annotations

import numpy as np

from trakstore.errors import TrakStoreError
from trakstore.kernels.iterative import DualFactor
from trakstore.kernels.solvers import F64, CholeskyFactor, EigenFactor, Factor


def square_root(factor: Factor) -> F64:
    """Return a matrix S, shape (k, k), with S Sᵀ = K + λI.

    Raises
    ------
    TrakStoreError
        For a factor that does not hold the kernel as a matrix.

    Examples
    --------
    >>> from trakstore.kernels.gram import Gram
    >>> from trakstore.kernels.solvers import Cholesky
    >>> square_root(Cholesky().factor(Gram(np.diag([3.0, 8.0]), rows=11, trace=11.0)))
    array([[2., 0.],
           [0., 3.]])
    """
    if isinstance(factor, CholeskyFactor):
        return np.tril(factor.lower)
    if isinstance(factor, EigenFactor):
        return factor.vectors * np.sqrt(factor.values + factor.damping)
    few = (
        "; for so few train rows, fewer than columns, no index is needed: top_k (`trakstore topk` "
        "without --approximate) is quick"
    )
    raise TrakStoreError(
        f"an index needs the kernel as a matrix, and a {type(factor).__name__} holds none: compute the "
        f"scores with solver=Cholesky() (from trakstore.kernels), or with a larger memory limit"
        f"{few if isinstance(factor, DualFactor) else ''}"
    )
