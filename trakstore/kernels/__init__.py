"""Kernels of stored rows: a choice of solvers, factored kernels, and the explicit inverse.

Score methods choose a solver by themselves, unless they are given another as ``solver=``:

>>> from trakstore.kernels import BlockedCholesky
>>> BlockedCholesky(memory_limit="2GB").form
'tiles'
"""

from __future__ import annotations

from trakstore.kernels.blocked_cholesky import BlockedCholesky
from trakstore.kernels.choice import factor_split
from trakstore.kernels.inverse_metric import inverse, save_inverse
from trakstore.kernels.iterative import ConjugateGradients, Dual
from trakstore.kernels.solvers import Cholesky, Damping, Eigen, Factor, Solver

__all__ = [
    "BlockedCholesky",
    "Cholesky",
    "ConjugateGradients",
    "Damping",
    "Dual",
    "Eigen",
    "Factor",
    "Solver",
    "factor_split",
    "inverse",
    "save_inverse",
]
