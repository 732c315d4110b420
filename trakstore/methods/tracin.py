"""TracInCP scores from a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trakstore.errors import NotFoundError, did_you_mean
from trakstore.methods.epochs import EpochPair, check_of, epoch_pairs, part_of, scores_of
from trakstore.quantities import as_number
from trakstore.scores.factored import Scores
from trakstore.storage.layout import Epoch, as_epoch
from trakstore.storage.store import FeatureStore


def tracin_scores(
    store: FeatureStore,
    targets: str = "test",
    train: str = "train",
    epochs: Epoch | Sequence[Epoch] | None = None,
    *,
    learning_rates: Mapping[Epoch, float] | float | None = None,
    allow_other_weights: bool = False,
) -> Scores:
    r"""Compute TracInCP: the effect of gradient steps on each train sample on each target's loss.

    .. math:: \tau(t, z) = \sum_c \eta_c \langle \nabla l_c(t), \nabla l_c(z) \rangle

    over the stored checkpoints c, with projected gradients of the loss on both sides. A positive score
    means that training on the sample lowered the target's loss (a proponent).

    Parameters
    ----------
    store : FeatureStore
        Open store that holds both splits.
    targets, train : str
        Names of splits with m and n rows.
    epochs : epoch or sequence of epochs, optional
        Checkpoints; by default all that have both splits.
    learning_rates : mapping of epoch to float, or float, optional
        Rates η; by default those stored with the train split.
    allow_other_weights : bool
        Whether to compute scores even if targets and train rows of an epoch were made with different
        checkpoints.

    Returns
    -------
    Scores
        (target, train), shape (m, n), float32.

    Raises
    ------
    NotFoundError
        When there is no such epoch, split or column, or an epoch has no learning rate.
    IncompleteError
        When rows of a split are missing.
    SpecMismatchError
        When dimensions differ, an epoch's splits were made with different weights, or epochs have other
        samples, another order of them, or other masked samples.

    Notes
    -----
    Features of the last layers alone (``featurize(..., parameters=["head.*"])``) are cheaper, but give
    another method, since contributions of different layers may cancel.

    References
    ----------
    Pruthi, Liu, Sundararajan, Kale: "Estimating Training Data Influence by Tracing Gradient
    Descent", NeurIPS 2020, section 3.2; on cancellation: Yeh, Taly, Sundararajan, Liu, Ravikumar:
    "First is Better Than Last for Language Data Influence", NeurIPS 2022.

    Examples
    --------
    >>> scores = ts.tracin_scores(store, learning_rates={2: 0.1, 5: 0.1, 15: 0.01})
    >>> scores
    <Scores tracin (target: 6, train: 24), epochs 2, 5, 15>
    >>> ts.top_k(scores, 3)["train"].values[0].tolist()
    ['train-18', 'train-3', 'train-9']
    """
    check_of("loss", store)
    pairs = epoch_pairs(store, targets, train, epochs, allow_other_weights=allow_other_weights)
    rates = _rates(pairs, learning_rates)
    parts = [
        part_of(pair, weight=rate, **pair.gradient_scales())
        for pair, rate in zip(pairs, rates, strict=True)
    ]
    # The steps of a training add up: this is a sum over checkpoints, not their mean.
    return scores_of("tracin", parts, pairs, reduce="sum")


def _rates(pairs: Sequence[EpochPair], given: Mapping[Epoch, float] | float | None) -> list[float]:
    if isinstance(given, Mapping):
        known = [pair.epoch for pair in pairs]
        # Epochs may come as text, as on the command line.
        given = {as_epoch(epoch): rate for epoch, rate in given.items()}
        for epoch in given:
            if epoch not in known:
                raise NotFoundError(
                    f"a learning rate for epoch {epoch!r}, which is not scored"
                    f"{did_you_mean(epoch, known)}"
                )
    return [_rate(pair, given) for pair in pairs]


def _rate(pair: EpochPair, given: Mapping[Epoch, float] | float | None) -> float:
    if given is not None and not isinstance(given, Mapping):
        return _above_zero(given, pair)
    # Rates describe the training, and are stored with the train split.
    stored = pair.train.stored.spec.learning_rate if given is None else given.get(pair.epoch)
    if stored is None:
        raise NotFoundError(
            f"no learning rate for epoch {pair.epoch!r}: give learning_rates= (--learning-rate on the "
            f"command line), or featurize with learning_rate= (a Job's learning_rates)"
        )
    return _above_zero(stored, pair)


def _above_zero(rate: object, pair: EpochPair) -> float:
    return as_number(
        rate, f"the learning rate of epoch {pair.epoch!r}", above=0, needed="must be above 0"
    )
