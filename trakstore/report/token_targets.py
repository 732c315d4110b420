"""Rows of tokens as targets of a page: the text of their sample, with the row's tokens marked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trakstore.report.sample import LETTERS, shown_text
from trakstore.report.text_parts import ScoredPart, TextPart, token_parts
from trakstore.storage.columns import sample_ids
from trakstore.storage.layout import TOKENS, own_split
from trakstore.storage.split import Split

if TYPE_CHECKING:  # it needs torch
    from trakstore.features import Job

__all__ = ["TokenTargets", "is_of_tokens"]


def is_of_tokens(split: str) -> bool:
    """Tell whether the rows of a split are tokens of another split's samples."""
    return split.endswith(TOKENS)


@dataclass(frozen=True)
class TokenTargets:
    """Samples whose tokens are the rows of a split.

    Attributes
    ----------
    samples : map-style data set
    places : mapping of str to int
        Position of each sample, by its id.
    run : int
        Tokens of a row.
    """

    samples: Any
    places: dict[str, int]
    run: int

    @classmethod
    def of(cls, split: Split, job: Job) -> TokenTargets:
        """Take the samples of a job that a split of tokens was made of."""
        own = own_split(split.name)
        ids = sample_ids(job.ids.get(own), len(job.datasets[own])).tolist()
        _, _, made = (split.spec.dataset or "").partition("#")
        run = int(made.partition(":")[0] or 1)
        return cls(job.datasets[own], {str(one): at for at, one in enumerate(ids)}, run)

    def shown(
        self,
        row: Any,
        tokenizer: Any = None,
        draw: Callable[[Any], Any] | None = None,
        letters: int = LETTERS,
    ) -> Any:
        """Return what a page shows of a row, by its id: tokens that are decoded are marked."""
        name, _, first = str(row).rpartition("#")
        sample = self.samples[self.places[name]]
        own = range(int(first), int(first) + self.run)
        parts = tokenizer and token_parts(sample, tokenizer, dict.fromkeys(own, 1.0))
        if not parts:
            return sample if draw is None else draw(sample)
        return shown_text(map(_marked, parts), letters)


def _marked(part: TextPart) -> TextPart:
    return TextPart(part.text, "asked") if isinstance(part, ScoredPart) else part
