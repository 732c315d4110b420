"""Splits made from another split's samples: with drawn labels, or with a row for each token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trakstore.errors import NotFoundError, TrakStoreError, did_you_mean
from trakstore.features.outputs import ModelOutput
from trakstore.features.outputs.tokens import need_tokens
from trakstore.quantities import as_whole, is_whole
from trakstore.storage import layout

__all__ = ["draws_by_split", "need_own_names", "runs_by_split"]

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
