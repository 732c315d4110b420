"""Rows of tokens as targets of a page: the text of their sample, with the row's tokens marked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from trakstore.errors import SpecMismatchError
from trakstore.report.sample import LETTERS, shown_text
from trakstore.report.text_parts import ScoredPart, TextPart, token_parts
from trakstore.storage.columns import sample_ids
from trakstore.storage.layout import TOKENS, own_split
from trakstore.storage.split import Split

if TYPE_CHECKING:  # it needs torch
    from trakstore.features import Job
    from trakstore.features.token_samples import ReadTokens

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
    read : callable
        Function that returns a sample's tokens as the model reads them.
    """

    samples: Any
    places: dict[str, int]
    run: int
    read: Callable[[Any], ReadTokens]

    @classmethod
    def of(cls, split: Split, job: Job) -> TokenTargets:
        """Take the samples of a job from which a split of tokens was made."""
        import torch

        from trakstore.features.batches import Batches
        from trakstore.features.outputs import as_output
        from trakstore.features.token_samples import read_tokens, stored_run

        own, output = own_split(split.name), as_output(job.output)
        ids = sample_ids(job.ids.get(own), len(job.datasets[own])).tolist()
        run = stored_run(split.spec.dataset) or 1
        places = {str(one): at for at, one in enumerate(ids)}
        batches = Batches.of(job.model, output, job.datasets[own], torch.device("cpu"), job.collate)

        def read(sample: Any) -> ReadTokens:
            return read_tokens(job.model, output, replace(batches, dataset=[sample]).read(0, 1))

        return cls(job.datasets[own], places, run, read)

    def shown(
        self,
        row: Any,
        tokenizer: Any = None,
        draw: Callable[[Any], Any] | None = None,
        letters: int = LETTERS,
    ) -> Any:
        """Return a row, named by its id, as a page shows it: its tokens are marked in the text."""
        name, _, first = str(row).rpartition("#")
        sample = self.samples[self.places[name]]
        parts = tokenizer and self._parts(sample, tokenizer, int(first))
        if not parts:
            return sample if draw is None else draw(sample)
        return shown_text(map(_marked, parts), letters)

    def _parts(self, sample: Any, tokenizer: Any, first: int) -> tuple[TextPart, ...] | None:
        """Decode a sample; the tokens of a row get a score."""
        tokens = self.read(sample)
        # The tokens of a row are consecutive among those that count, but others may stand between them,
        # as a user's turns do.
        if first not in tokens.numbers:
            raise SpecMismatchError(
                f"token {first} of a sample does not count any more: name the job that was featurized"
            )
        begin = tokens.numbers.tolist().index(first)
        own = tokens.positions[begin : begin + self.run].tolist()
        return token_parts(tokens.read, tokenizer, dict.fromkeys(own, 1.0))


def _marked(part: TextPart) -> TextPart:
    return TextPart(part.text, "asked") if isinstance(part, ScoredPart) else part
