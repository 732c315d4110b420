"""Splits made from another split's samples: with drawn labels, or with a row for each token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trakstore.errors import NotFoundError, SpecMismatchError, TrakStoreError, did_you_mean
from trakstore.features.outputs import ModelOutput
from trakstore.features.outputs.tokens import need_tokens
from trakstore.quantities import as_whole, is_whole
from trakstore.spec import LossScale
from trakstore.storage import layout
from trakstore.storage.layout import Epoch
from trakstore.storage.store import FeatureStore

__all__ = ["draws_by_split", "need_own_names", "need_same_loss_scale", "runs_by_split"]

_MADE_OF = {
    layout.SAMPLED: ("samples with drawn labels", "with labels='sampled' (of a job: sampled=8)"),
    layout.TOKENS: ("rows of tokens", "with tokens=1"),
}


def need_own_names(datasets: Mapping[str, Any]) -> None:
    """Raise if a data set has the name of such a split.

    Raises
    ------
    TrakStoreError
        When one has.
    """
    for split in datasets:
        for end, (rows, remedy) in _MADE_OF.items():
            if str(split).endswith(end):
                raise TrakStoreError(
                    f"{split!r} names {rows}, and no data set: name the data set without {end!r}, "
                    f"{remedy}"
                )


def need_same_loss_scale(
    store: FeatureStore, epoch: Epoch, split: str, loss_scale: LossScale
) -> None:
    """Refuse to write rows of drawn labels beside some whose losses are scaled otherwise.

    Those of the epoch are compared, and those of another one, since all of a store are alike: a mean
    over epochs would weigh them by what scales their kernels. Rows that were made elsewhere are not.

    Raises
    ------
    SpecMismatchError
        When they differ.
    """
    if not split.endswith(layout.SAMPLED):
        return
    for one in sorted(store.epochs_of(split), key=lambda name: name != epoch):
        spec = store.split(one, split).spec
        if spec.dataset is not None and spec.loss_scale != loss_scale:
            raise SpecMismatchError(
                f"{store.location}: {split} at epoch {one} is of an earlier version, in whose kernel a "
                f"sequence of n tokens weighs n times too little, and is not gone on with: drop it at "
                f"each epoch that has it (store.drop({one!r}, {split!r})) and featurize it again, or "
                f"leave drawn labels out; scores of what is stored stay as they were"
            )
        if spec.dataset is not None and one != epoch:
            return


def draws_by_split(asked: int | Mapping[str, int], datasets: Mapping[str, Any]) -> dict[str, int]:
    """Return the draws of labels of each split; a plain number is for the train split."""
    return _by_split(asked, "train", "draws", "labels are to be drawn for", datasets)


def runs_by_split(
    asked: int | Mapping[str, int], datasets: Mapping[str, Any], output: ModelOutput
) -> dict[str, int]:
    """Return the tokens of a row of each split; a plain number is for the test split.

    Raises
    ------
    TrakStoreError
        When the output is not made of tokens.
    """
    runs = _by_split(asked, "test", "tokens", "rows of tokens are asked of", datasets)
    if runs:
        need_tokens(output)
    return runs


def _by_split(
    asked: int | Mapping[str, int], usual: str, what: str, words: str, datasets: Mapping[str, Any]
) -> dict[str, int]:
    none = is_whole(asked) and not asked
    named = asked if isinstance(asked, Mapping) else {} if none else {usual: asked}
    numbers = {
        split: as_whole(number, f"{what} of {split!r}", 1) for split, number in named.items()
    }
    for split in numbers:
        if split not in datasets:
            raise NotFoundError(
                f"{words} the split {split!r}, which the job does not have"
                f"{did_you_mean(split, tuple(datasets))}"
            )
    return numbers
