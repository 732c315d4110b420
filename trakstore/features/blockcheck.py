"""Some rows of every block, compared with an ordinary backward pass.

Rows that a hash of the block chooses are read once more as a batch of their own. One of them, with most
padding where any was padded, is read and computed alone: a model may do the same with this batch as it
did with the others, and something else with a single sample. Then one backward pass of the outputs' sum
with random signs gives Σ ±φ, if every row is right: P·∇Σ ±f(x) = Σ ±φ(x). Where it does not, each of
them is computed alone, which tells rows that are wrong from samples that see one another.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as tree

from trakstore.errors import NumericsError
from trakstore.features.apart import apart_by
from trakstore.features.factorised import FactorisedEngine
from trakstore.features.projectors import Projector
from trakstore.features.selfcheck import Samples, features_alone, most_tolerance

__all__ = [
    "CheckedRows",
    "changed_by_padding",
    "checked_rows",
    "difference",
    "difference_alone",
    "drawn",
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


def drawn(signs: Tensor) -> int:
    """Draw one of the rows that are compared: the one that is compared with its sample alone."""
    return int(_generator(len(signs), *signs.int().add(1).tolist()).integers(len(signs)))


def difference(
    engine: FactorisedEngine, batch: Any, features: Tensor, signs: Tensor, where: str
) -> float | None:
    """Compare features of a batch with one ordinary backward pass, or with those of each sample.

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
    engine: FactorisedEngine, one: Any, features: Tensor, row: int
) -> float | None:
    """Compare the features of one of some samples with those that it has as a batch of ``one``."""
    return _apart(engine, one, features[row], features)


def changed_by_padding(engine: FactorisedEngine, one: Any, padded: Any, features: Tensor) -> bool:
    """Tell whether a sample that is padded has other gradients than without, each time alone.

    Parameters
    ----------
    engine : FactorisedEngine
    one, padded : tree of Tensor
        The sample as a batch of its own, as it is by itself and as it is among others.
    features : Tensor, shape (rows, dim), float32
        Features of like samples, whose size says what rounding may be.
    """
    shapes = [[leaf.shape for leaf in tree.tree_leaves(batch)] for batch in (one, padded)]
    if shapes[0] == shapes[1]:
        return False
    row = features_alone(engine.samples(padded), engine.projector)[0]
    return _apart(engine, one, row, features) is not None


def _apart(engine: FactorisedEngine, one: Any, row: Tensor, features: Tensor) -> float | None:
    scale = float(features.norm()) / len(features) ** 0.5
    own = engine.samples(one)
    return apart_by(own, engine.projector, row, scale, engine.tolerance, len(features))


def _signed(samples: Samples, projector: Projector, signs: Tensor) -> Tensor:
    out = samples.zeros(1, projector.dim)
    samples.signed(signs, partial(projector.add, out))
    return samples.sharding.total(out)[0].cpu()


def _relative(difference: Tensor, whole: Tensor) -> float:
    return float(difference.norm()) / max(float(whole.norm()), torch.finfo(torch.float32).tiny)
