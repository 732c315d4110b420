"""Some rows of every block, compared with an ordinary backward pass.

Rows that a hash of the block chooses are read once more as a batch of their own. One backward pass of
their outputs' sum with random signs gives Σ ±φ, if every row is right: P·∇Σ ±f(x) = Σ ±φ(x). Where it
does not, each of them is computed alone, which tells rows that are wrong from samples that see one
another.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trakstore.errors import NumericsError
from trakstore.features.factorised import FactorisedEngine
from trakstore.features.projectors import Projector
from trakstore.features.selfcheck import Samples, features_alone, most_tolerance

__all__ = ["CheckedRows", "checked_rows", "difference", "features_alone", "signs_of"]

CheckedRows = Literal["some", "all"]

# Rows of a block for one that is compared. To compare all of them takes 0.4 to 0.9 times as long as the
# block (`benchmarks/featurize.py blocks`), so that one of 44 costs 2% where it costs most.
_EACH = 44
_MORE = 3  # times the rounding of the compared rows themselves


def checked_rows(start: int, stop: int, most: int) -> NDArray[np.int64]:
    """Choose the rows of a block that are compared: one of 44, one at least and ``most`` at most.

    Examples
    --------
    >>> len(checked_rows(1000, 1500, 100)), len(checked_rows(0, 10, 100))
    (12, 1)
    """
    count = min(-(-(stop - start) // _EACH), max(1, most))
    chosen = _generator(start, stop).choice(stop - start, count, replace=False)
    return np.sort(chosen).astype(np.int64) + start


def signs_of(rows: NDArray[np.int64]) -> Tensor:
    """Draw a sign for each row: which one depends on all rows that are compared with it."""
    signs = _generator(*rows.tolist()).choice([-1.0, 1.0], len(rows))
    return torch.from_numpy(signs).float()


def _generator(*words: int) -> np.random.Generator:
    # Seeded by the rows alone, so that every worker, and every later run, compares the same ones.
    return np.random.default_rng([len(words), *words])


def difference(
    engine: FactorisedEngine, batch: Any, features: Tensor, signs: Tensor, where: str
) -> float | None:
    """Compare features of a batch with ordinary backward passes.

    Parameters
    ----------
    engine : FactorisedEngine
    batch : tree of Tensor
        The samples, as a batch of their own.
    features : Tensor, shape (rows, dim), float32
        Features on the CPU, as they would be stored.
    signs : Tensor, shape (rows,)
    where : str
        Name of the rows in errors.

    Returns
    -------
    float or None
        Relative difference from the features of each sample alone, where rounding does not explain it;
        None where the features are right.

    Raises
    ------
    NumericsError
        When the samples together have other gradients than each of them alone.
    """
    samples, projector = engine.samples(batch), engine.projector
    together = _signed(samples, projector, signs)
    # As everywhere here NaN counts as right: rows that are not finite are refused, or skipped, by
    # themselves when they are stored.
    if not _relative(signs @ features - together, features) > engine.tolerance:
        return None
    alone = features_alone(samples, projector)
    # One by one and together the same backward passes must give the same sum, but for rounding; these
    # samples' own rounding is also what their features are allowed.
    mixed = _relative(signs @ alone - together, alone)
    if mixed > most_tolerance(samples):
        raise NumericsError(
            f"{where}: samples that are computed together have other gradients than each of them "
            f"alone (relative difference {mixed:.2g}): they see one another (batch statistics, padding "
            f"that is not masked, an output that reduces over the batch), or something is random; let "
            f"each sample's output be its own"
        )
    apart = _relative(features - alone, alone)
    return apart if apart > max(engine.tolerance, _MORE * mixed) else None


def _signed(samples: Samples, projector: Projector, signs: Tensor) -> Tensor:
    out = samples.zeros(1, projector.dim)
    samples.signed(signs, partial(projector.add, out))
    return samples.sharding.total(out)[0].cpu()


def _relative(difference: Tensor, whole: Tensor) -> float:
    return float(difference.norm()) / max(float(whole.norm()), torch.finfo(torch.float32).tiny)
