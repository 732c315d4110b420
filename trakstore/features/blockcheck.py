"""Some rows of every block, compared with an ordinary backward pass.

Rows that a hash of the block chooses are read once more as a batch of their own. One backward pass of
their outputs' sum with random signs gives Σ ±φ, if every row is right: P·∇Σ ±f(x) = Σ ±φ(x). Where it
does not, each of them is computed alone, which tells rows that are wrong from samples that see one
another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trakstore.errors import NumericsError
from trakstore.features.factorised import FactorisedEngine
from trakstore.features.projectors import Projector
from trakstore.features.selfcheck import Samples, most_tolerance

__all__ = ["CheckedRows", "Finding", "checked_rows", "compare", "features_alone", "signs_of"]

CheckedRows = Literal["some", "all"]

# Rows of a block for one that is compared. To compare all of them takes 0.4 to 0.9 times as long as the
# block (`benchmarks/featurize.py blocks`), so that one of 44 costs 2% where it costs most.
_EACH = 44
_MORE = 3  # times the rounding of the compared rows themselves


def checked_rows(start: int, stop: int, most: int) -> NDArray[np.int64]:
    """Rows of a block that are compared, ascending: one of 44, one at least and ``most`` at most.

    Examples
    --------
    >>> len(checked_rows(1000, 1500, 100)), len(checked_rows(0, 10, 100))
    (12, 1)
    """
    count = min(-(-(stop - start) // _EACH), max(1, most))
    chosen = _generator(start, stop).choice(stop - start, count, replace=False)
    return np.sort(chosen).astype(np.int64) + start


def signs_of(rows: NDArray[np.int64]) -> Tensor:
    """A random sign for each row, which no other data set of rows is given."""
    signs = _generator(*rows.tolist()).choice([-1.0, 1.0], len(rows))
    return torch.from_numpy(signs).float()


def _generator(*words: int) -> np.random.Generator:
    return np.random.default_rng([len(words), *words])


@dataclass(frozen=True)
class Finding:
    """What the comparison of some rows gave.

    Attributes
    ----------
    right : bool
        Whether the features are the gradients, but for rounding.
    apart : float
        Relative difference of features from those of each sample alone; 0 where all was right at once.
    """

    right: bool
    apart: float = 0.0


def compare(
    engine: FactorisedEngine, batch: Any, features: Tensor, signs: Tensor, where: str
) -> Finding:
    """Compare features of a batch with ordinary backward passes.

    Parameters
    ----------
    engine : FactorisedEngine
    batch : tree of Tensor
        The samples, as a batch of their own.
    features : Tensor, shape (rows, dim), float32
        On the CPU.
    signs : Tensor, shape (rows,)
    where : str
        Names the rows in errors.

    Raises
    ------
    NumericsError
        When the samples together have other gradients than each of them alone.
    """
    samples, projector = engine.samples(batch), engine.projector
    scale = float(features.norm())
    together = _signed(samples, projector, signs)
    if not _relative(signs @ features - together, scale) > engine.tolerance:
        return Finding(True)
    alone = features_alone(samples, projector)
    scale = float(alone.norm())
    mixed = _relative(signs @ alone - together, scale)
    if mixed > most_tolerance(samples):
        raise NumericsError(
            f"{where}: samples that are computed together have other gradients than each of them "
            f"alone (relative difference {mixed:.2g}): they see one another (batch statistics, padding "
            f"that is not masked, an output that reduces over the batch), or something is random; let "
            f"each sample's output be its own"
        )
    apart = _relative(features - alone, scale)
    return Finding(not apart > max(engine.tolerance, _MORE * mixed), apart)


def _signed(samples: Samples, projector: Projector, signs: Tensor) -> Tensor:
    out = samples.zeros(1, projector.dim)
    for name, tile in samples.signed(signs):
        projector.add(out, name, tile)
    return out[0].cpu()


def features_alone(samples: Samples, projector: Projector) -> Tensor:
    """Features ``(samples, dim)`` on the CPU, by an ordinary backward pass of each sample alone."""
    out = samples.zeros(samples.count, projector.dim)
    for i, name, tile in samples.gradients():
        projector.add(out[i : i + 1], name, tile)
    return out.cpu()


def _relative(difference: Tensor, scale: float) -> float:
    return float(difference.norm()) / max(scale, torch.finfo(torch.float32).tiny)
