"""Some rows of every block, compared with an ordinary backward pass.

Rows that a hash of the block chooses are read once more, as a batch of their own. One of them is
computed alone, since a model may treat this batch as it did the others, and a single sample otherwise.
Then one backward pass of the outputs' sum with random signs must give the sum of the stored features:
P·∇Σ ±f(x) = Σ ±φ(x). If it does not, each of the rows is computed alone, which tells wrong rows from
samples that see one another.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trakstore.errors import NumericsError
from trakstore.features.apart import apart_by
from trakstore.features.factorised import FactorisedEngine
from trakstore.features.gradients import cut
from trakstore.features.projectors import Projector
from trakstore.features.selfcheck import Samples, features_alone, most_tolerance

__all__ = [
    "CheckedRows",
    "checked_rows",
    "difference",
    "difference_alone",
    "features_alone",
    "signs_of",
]

CheckedRows = Literal["some", "all"]

# One row in so many is compared. Comparing all of them takes 0.4 to 0.9 times as long as the block
# (`benchmarks/featurize.py blocks`), so that one in 44 costs 2% at most. Blocks of a small split are
# single batches: their one row, compared alone, takes a tenth of the time of a batch of 32. Larger
# blocks would compare the same share, and leave fewer blocks to share out.
_EACH = 44
_MORE = 3  # times the rounding of the compared rows themselves


def checked_rows(
    start: int, stop: int, most: int, usable: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """Choose the rows of a block that are compared: one of 44, one at least and ``most`` at most.

    Parameters
    ----------
    usable : ndarray of bool, shape (stop - start,), optional
        Rows that can be compared; these replace chosen rows that cannot.

    Examples
    --------
    >>> len(checked_rows(1000, 1500, 100)), len(checked_rows(0, 10, 100))
    (12, 1)
    """
    count = min(-(-(stop - start) // _EACH), max(1, most))
    generator = _generator(start, stop)
    chosen = generator.choice(stop - start, count, replace=False)
    if usable is not None and not usable[chosen].all():
        others = usable.copy()
        others[chosen] = False
        kept = chosen[usable[chosen]]
        instead = generator.permutation(np.flatnonzero(others))[: count - len(kept)]
        chosen = np.concatenate([kept, instead])
    return np.sort(chosen).astype(np.int64) + start


def signs_of(rows: NDArray[np.int64]) -> Tensor:
    """Draw a sign for each row, from a generator that all of the compared rows seed."""
    signs = _generator(*rows.tolist()).choice([-1.0, 1.0], len(rows))
    return torch.from_numpy(signs).float()


def _generator(*words: int) -> np.random.Generator:
    # Seeded by the rows alone, so that every worker, and every later run, compares the same ones.
    return np.random.default_rng([len(words), *words])


def difference(
    engine: FactorisedEngine, batch: Any, features: Tensor, signs: Tensor, where: str
) -> float | None:
    """Compare features of a batch with ordinary backward passes: of one sample alone, and of all.

    Parameters
    ----------
    engine : FactorisedEngine
    batch : tree of Tensor
        The samples, as a batch of their own.
    features : Tensor, shape (rows, dim), float32
        Features on the CPU, as they would be stored; finite.
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
        When every sample's output in a batch differs from its output alone, in every batch.
    """
    samples, projector = engine.samples(batch), engine.projector
    drawn = int(_generator(len(signs), *signs.int().add(1).tolist()).integers(len(signs)))
    apart = difference_alone(engine, batch, features, drawn)
    if apart is not None or len(features) == 1:
        return apart
    together = _signed(samples, projector, signs)
    if _relative(signs @ features - together, features) <= engine.tolerance:
        return None
    alone = features_alone(samples, projector)
    # Two computations of the same sum: they differ by rounding unless samples see one another. The
    # rounding seen here is also what the features are allowed.
    mixed = _relative(signs @ alone - together, alone)
    if mixed > most_tolerance(samples):
        # If samples differ in some batches only (an `if` on all of them), rows that were computed alone
        # are right. If all differ in every batch (batch statistics), the model is a function of
        # batches, and one sample alone has no gradient in it.
        if engine.apart.always and engine.all_differ(batch):
            raise NumericsError(
                f"{where}: samples that are computed together have other gradients than each of them "
                f"alone (relative difference {mixed:.2g}): they see one another (batch statistics, "
                f"padding that is not masked, an output that reduces over the batch), or something is "
                f"random; let each sample's output be its own"
            )
        mixed = 0.0
    apart = _relative(features - alone, alone)
    return None if apart <= max(engine.tolerance, _MORE * mixed) else apart


def difference_alone(
    engine: FactorisedEngine, batch: Any, features: Tensor, row: int
) -> float | None:
    """Compare the features of one sample of a batch with those that it has alone."""
    one = engine.samples(cut(batch, row, row + 1))
    scale = float(features.norm()) / len(features) ** 0.5
    return apart_by(one, engine.projector, features[row], scale, engine.tolerance, len(features))


def _signed(samples: Samples, projector: Projector, signs: Tensor) -> Tensor:
    out = samples.zeros(1, projector.dim)
    samples.signed(signs, partial(projector.add, out))
    return samples.sharding.total(out)[0].cpu()


def _relative(difference: Tensor, whole: Tensor) -> float:
    return float(difference.norm()) / max(float(whole.norm()), torch.finfo(torch.float32).tiny)
