"""Tokens of a listed train sample, each with its part of the sample's score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import SpecMismatchError, TrakStoreError
from trakstore.report.sample import LETTERS, Shown, shown_text, strongest_of
from trakstore.report.text_parts import ScoredPart, TextPart, token_parts
from trakstore.scores.factored import Scores
from trakstore.scores.row_parts import of_row_parts, parts_apart
from trakstore.spec.rounding import is_rounded, rounding_of
from trakstore.storage.eight_bits import EIGHT_BITS

if TYPE_CHECKING:  # it needs torch
    from trakstore.features.query_rows import LoadedModels
    from trakstore.features.token_samples import ReadTokens

__all__ = ["ScoredTokens", "scored_tokens"]

# Largest error of a sum of float32 scores, as a share of the sum of their magnitudes.
_SUMS_APART = 1e-3
_OTHERS = "the job gives another sample, or other tokens, than were featurized"
_IGNORED = -100  # label of tokens without a loss, as in transformers


@dataclass(frozen=True)
class ScoredTokens:
    """Tokens of a sample, with scores that add up to the sample's.

    Attributes
    ----------
    parts : tuple of TextPart
        The sample's text; each token that counts is a part of its own with its score. If the text is
        hidden, only tokens with a score, named by their numbers.
    hidden : bool
        True if the caller may not see the text.
    """

    parts: tuple[TextPart, ...]
    hidden: bool = False

    def __repr__(self) -> str:
        strongest = ", ".join(f"{one.text!r} {one.number}" for one in strongest_of(self.parts))
        return f"ScoredTokens({len(self.scored)} tokens; strongest: {strongest or 'none'})"

    @property
    def scored(self) -> tuple[ScoredPart, ...]:
        """Parts that have a score, in the order of the text."""
        return tuple(one for one in self.parts if isinstance(one, ScoredPart))

    def shown(self, before: Shown | None = None, letters: int = LETTERS) -> Shown:
        """Return the text as a page shows it, with the image that was shown before.

        If the text is hidden, the earlier content stays, with the tokens of largest score.
        """
        before = before or Shown()
        if self.hidden:
            return replace(before, strongest=strongest_of(self.parts))
        made = shown_text(self.parts, letters)
        return replace(made, image=before.image, width=before.width, height=before.height)

    def without_text(self) -> ScoredTokens:
        """Return the same scores with tokens named by their numbers alone."""
        named = (
            replace(one, text=f"token {', '.join(map(str, one.tokens))}", kind="plain")
            for one in self.scored
        )
        return ScoredTokens(tuple(named), hidden=True)

    def to_list(self) -> list[dict[str, Any]]:
        """Return a list for JSON: positions, text unless it is hidden, and score of each token."""
        return [
            {"tokens": list(one.tokens)}
            | ({} if self.hidden else {"text": one.text})
            | {"score": one.score}
            for one in self.scored
        ]


class _Numbers:
    """Tokens as their numbers, where no tokenizer turns them into text."""

    all_special_ids: Sequence[int] = ()

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return "".join(f"{one} " for one in ids)


def scored_tokens(
    models: LoadedModels,
    scores: Scores,
    column: int,
    sample: Any,
    tokenizer: Any = None,
    go_on: Callable[[], None] = lambda: None,
) -> ScoredTokens:
    """Compute the parts that a train sample's tokens contribute to its score with one target.

    The tokens' features are computed now, at all epochs of the scores, each by a pass of its own over
    the sample; they are scored by the same kernel, with the sample's Q.

    Parameters
    ----------
    models : LoadedModels
        Models of the epochs.
    scores : Scores
        Scores of one target, shape (1, n).
    column : int
        Position of the sample among the train rows.
    sample : object
        The sample in the form of the job's data set.
    tokenizer : transformers.PreTrainedTokenizerBase, optional
        Tokenizer that decodes tokens; without it they are shown as numbers.
    go_on : callable
        Called between passes; it raises when nobody waits for the answer any more.

    Raises
    ------
    TrakStoreError
        When the job's output is not made of tokens, or the scores are not sums over them.
    SpecMismatchError
        When the tokens' rows do not add up to the stored one, or their scores to the sample's, within
        the store's precision: the store then has features of another sample.
    """
    own = models.tokens(sample, scores.epochs[0])
    if not len(own.numbers):
        raise TrakStoreError("the sample has no token that counts, whose score could be shown")
    values = np.zeros(len(own.numbers), dtype=np.float32)
    spec, most = models.spec, rounding_of(models.spec)
    # The rows of one epoch are dropped before those of the next are made: they may be many.
    for epoch, parts in models.token_rows(sample, len(own.numbers), scores.epochs, go_on):
        apart = parts_apart(scores, column, epoch, parts, eight_bits=spec.dtype == EIGHT_BITS)
        if not apart < most:
            raise SpecMismatchError(
                f"rows of the tokens add up to another row than the stored one (relative difference "
                f"{apart:.2g}; the store's precision explains {most:g}): {_OTHERS}"
            )
        values += of_row_parts(scores, column, epoch, parts)[0]
    # If rows are rounded, a small score may be smaller than the error of rounding.
    if not is_rounded(spec):
        _need_sum(values, float(np.asarray(scores.isel(train=column)).item()))
    return ScoredTokens(_parts(own, tokenizer or _Numbers(), values.astype(float).tolist()))


def _need_sum(values: NDArray[np.float32], score: float) -> None:
    """Raise a :class:`SpecMismatchError` where scores of tokens do not add up to their sample's."""
    total, size = float(values.sum(dtype=np.float64)), float(np.abs(values).sum(dtype=np.float64))
    if not abs(total - score) <= _SUMS_APART * size:
        raise SpecMismatchError(
            f"scores of the tokens add up to {total:.6g}, and the sample's score is {score:.6g}: "
            f"{_OTHERS}"
        )


def _parts(own: ReadTokens, tokenizer: Any, values: Sequence[float]) -> tuple[TextPart, ...]:
    """Return the text of a sample whose counting tokens have these scores, in their order."""
    read, scores = own.read, dict(zip(own.positions.tolist(), values, strict=True))
    parts = token_parts(read, tokenizer, scores)
    # The input may be sound or images: then only the labels are text.
    if parts is None and isinstance(read, Mapping) and "labels" in read:
        labels = np.asarray(read["labels"])
        alone = {"input_ids": labels, "attention_mask": (labels != _IGNORED).astype(np.int64)}
        parts = token_parts(alone, tokenizer, scores)
    if parts is None:
        raise TrakStoreError(
            "the samples have neither 'input_ids' nor 'labels', whose text is shown"
        )
    return _numbered(parts, own)


def _numbered(parts: Sequence[TextPart], own: ReadTokens) -> tuple[TextPart, ...]:
    """Name tokens by their numbers instead of their positions, which depend on padding.

    Raises
    ------
    TrakStoreError
        When the text lacks a token with a score: the shown parts would not add up to the sample's
        score.
    """
    numbers = dict(zip(own.positions.tolist(), own.numbers.tolist(), strict=True))
    shown = [at for one in parts if isinstance(one, ScoredPart) for at in one.tokens]
    if sorted(shown) != sorted(numbers):
        raise TrakStoreError(
            f"the text of the sample has {len(shown)} of its {len(numbers)} tokens that count, and "
            f"scores would not add up: ask without tokens, or give 'input_ids' and 'labels'"
        )
    return tuple(
        replace(one, tokens=tuple(numbers[at] for at in one.tokens))
        if isinstance(one, ScoredPart)
        else one
        for one in parts
    )
