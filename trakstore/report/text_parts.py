"""Texts as a page shows them: in parts that are prompt, learned, or special tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trakstore.report.units import colour_level, written

Kind: TypeAlias = Literal["plain", "prompt", "learned", "special", "asked"]
Scored: TypeAlias = Mapping[int, float]

_NO_SCORES: Scored = {}
_IGNORED = -100  # label of tokens without a loss, as in transformers
_MARK = "…"
_BROKEN, _BYTES = "\N{REPLACEMENT CHARACTER}", 4  # part of a character, and most parts of one
# Characters and lines up to which a text is shown whole, and those of the preview of a longer one.
_SHORT, _PREVIEW = (900, 18), (600, 12)


@dataclass(frozen=True)
class TextPart:
    """Piece of a text, not escaped.

    Attributes
    ----------
    text : str
        The characters, with their line breaks.
    kind : {"plain", "prompt", "learned", "special", "asked"}
        Prompt and learned tokens, if a text has both; special tokens such as an end of sequence, and
        marks of a cut; tokens that are asked about; otherwise plain.
    """

    text: str
    kind: Kind = "plain"


@dataclass(frozen=True)
class ScoredPart(TextPart):
    """Piece of a text that is a token with its own score, or several that make one character.

    Attributes
    ----------
    tokens : tuple of int
        Positions of the tokens in the row, or their numbers once these replaced the positions.
    score, share : float
        Sum of their scores, and its share, -1 to 1, of the sample's largest magnitude.
    """

    tokens: tuple[int, ...] = ()
    score: float = 0.0
    share: float = 0.0

    @property
    def level(self) -> int:
        """Colour, -4 to 4."""
        return colour_level(self.share, 1.0)

    @property
    def number(self) -> str:
        """Score, written."""
        return written("+.2g", self.score)


def is_tokenizer(value: Any) -> bool:
    """Tell whether an object turns token ids into text, as tokenizers of transformers do.

    Examples
    --------
    >>> is_tokenizer("a name"), is_tokenizer(print)
    (False, False)
    """
    # Its methods decide, since transformers may not be installed. Bytes and arrays may have `decode`
    # too.
    return callable(getattr(value, "decode", None)) and hasattr(value, "all_special_ids")


def token_parts(
    sample: Any, tokenizer: Any, scores: Scored = _NO_SCORES
) -> tuple[TextPart, ...] | None:
    """Decode the tokens of a sample, and tell its prompt from what is learned.

    Parameters
    ----------
    sample : object
        A mapping with ``input_ids``, or a row of integers, alone or as the first entry of a tuple.
        Tokens whose ``attention_mask`` is 0 are left out. Tokens whose ``labels`` are -100 are prompt.
        Labels that are other tokens than the input, as in encoder-decoders, follow it as learned
        tokens. Of a pair, as for :class:`trakstore.features.DPO`, both continuations are shown.
    tokenizer : transformers.PreTrainedTokenizerBase
    scores : mapping of int to float
        Scores of some tokens, by their positions in the row, padding included, or in the labels if
        these are other tokens than the input; each such token becomes a :class:`ScoredPart`.

    Returns
    -------
    tuple of TextPart, or None
        None for a sample without tokens.
    """
    if isinstance(sample, tuple | list) and sample and hasattr(sample[0], "__array__"):
        sample = sample[0]
    row = sample if isinstance(sample, Mapping) else {"input_ids": sample}
    if "chosen_input_ids" not in row:
        return _row_parts(row, "", tokenizer, scores)
    chosen, rejected = (_row_parts(row, side, tokenizer) for side in ("chosen_", "rejected_"))
    if chosen is None or rejected is None:
        return None
    heads = (TextPart("chosen:\n", "special"), TextPart("\nrejected:\n", "special"))
    return (heads[0], *chosen, heads[1], *rejected)


def string_parts(sample: Any) -> tuple[TextPart, ...]:
    r"""Find the texts that stand beside the tokens of a sample; none where there are no tokens.

    Examples
    --------
    >>> string_parts({"input_ids": [7, 8], "text": "a b"})
    (TextPart(text='a b', kind='plain'),)
    """
    if not isinstance(sample, Mapping) or "input_ids" not in sample:
        return ()
    texts = {str(name): value for name, value in sample.items() if isinstance(value, str)}
    if texts.keys() == {"text"}:
        return (TextPart(texts["text"]),)
    parts = (
        (TextPart(f"{name}:\n", "special"), TextPart(f"{one}\n")) for name, one in texts.items()
    )
    return tuple(chain.from_iterable(parts))


def _row_parts(
    row: Mapping[str, Any], side: str, tokenizer: Any, scores: Scored = _NO_SCORES
) -> tuple[TextPart, ...] | None:
    """Decode the columns of a row whose names begin with ``side``."""
    ids = _numbers(row.get(f"{side}input_ids"))
    if ids is None:
        return None
    mask, labels = (_numbers(row.get(side + name)) for name in ("attention_mask", "labels"))
    kept = np.ones(len(ids), dtype=bool) if mask is None or len(mask) != len(ids) else mask != 0
    places = np.flatnonzero(kept).tolist()
    if labels is None:
        return _decoded(ids[kept], ["plain"] * len(places), tokenizer, places, scores)
    learned = labels != _IGNORED
    if len(labels) != len(ids) or (labels != ids)[learned].any():
        answer = labels[learned]
        asked = np.flatnonzero(learned).tolist()
        source = _decoded(ids[kept], ["prompt"] * len(places), tokenizer)
        target = _decoded(answer, ["learned"] * len(answer), tokenizer, asked, scores)
        return (*source, TextPart("\n"), *target)
    told = learned[kept].any() and not learned[kept].all()
    kinds: list[Kind] = [
        "plain" if not told else "learned" if one else "prompt" for one in learned[kept].tolist()
    ]
    return _decoded(ids[kept], kinds, tokenizer, places, scores)


def _numbers(values: Any) -> NDArray[np.int64] | None:
    """Return a row of integers as an array; None for anything else."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    if not hasattr(values, "__array__") and not isinstance(values, list | tuple):
        return None
    array = np.asarray(values)
    return array.astype(np.int64) if array.ndim == 1 and array.dtype.kind in "iu" else None


def _decoded(
    ids: NDArray[np.int64],
    kinds: Sequence[Kind],
    tokenizer: Any,
    places: Sequence[int] = (),
    scores: Scored = _NO_SCORES,
) -> tuple[TextPart, ...]:
    """Decode runs of tokens of one kind, and each token that has a score."""
    special = set(tokenizer.all_special_ids)
    every: list[int] = ids.tolist()
    named: list[Kind] = [
        "special" if one in special else kind for one, kind in zip(every, kinds, strict=True)
    ]
    parts, start = [], 0
    for kind, run in groupby(named):
        stop = start + len(list(run))
        # A run ends where tokens with a score and tokens without one meet.
        has_score = [bool(scores) and places[at] in scores for at in range(start, stop)]
        for scored, some in groupby(has_score):
            end = start + len(list(some))
            if scored:
                parts += _scored(every, start, end, kind, tokenizer, places, scores)
            else:
                parts.append(TextPart(_run_text(every, start, end, tokenizer), kind))
            start = end
    return tuple(parts)


def _scored(
    ids: list[int],
    start: int,
    stop: int,
    kind: Kind,
    tokenizer: Any,
    places: Sequence[int],
    scores: Scored,
) -> list[TextPart]:
    """Decode the tokens from start to stop one by one, with their scores."""
    parts: list[TextPart] = []
    most = max(map(abs, scores.values())) or 1.0
    while start < stop:
        end = start + 1
        text = _run_text(ids, start, end, tokenizer)
        # Several tokens may make one character, and none of them is a text alone.
        while text.endswith(_BROKEN) and end < min(stop, start + _BYTES):
            end += 1
            text = _run_text(ids, start, end, tokenizer)
        own = tuple(places[start:end])
        score = sum(scores[one] for one in own)
        parts.append(ScoredPart(text, kind, own, score, score / most))
        start = end
    return parts


def _run_text(ids: list[int], start: int, stop: int, tokenizer: Any) -> str:
    """Decode the tokens from start to stop, with the space at their beginning."""

    def decode(some: list[int]) -> str:
        options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        return str(tokenizer.decode(some, **options))

    # Many tokenizers drop the space of the first word that they decode: the token before it keeps it.
    before = decode(ids[start - 1 : start]) if start else ""
    whole = decode(ids[max(start - 1, 0) : stop])
    # A token may be a part of a character, which alone decodes to another text than with the rest.
    return whole[len(before) :] if whole.startswith(before) else decode(ids[start:stop])


def preview(parts: Sequence[TextPart]) -> tuple[TextPart, ...]:
    """Return the part of a long text that is shown first; nothing for a short one."""
    text = "".join(part.text for part in parts)
    short = len(text) <= _SHORT[0] and text.count("\n") <= _SHORT[1]
    return () if short else excerpt(parts, *_PREVIEW)


def excerpt(
    parts: Iterable[TextPart], letters: int, lines: int | None = None
) -> tuple[TextPart, ...]:
    r"""Cut a text to so many characters and lines, at ends of lines if possible.

    If the prompt would fill the excerpt, it gets the last third of its length, so that learned text is
    seen.

    Parameters
    ----------
    parts : iterable of TextPart
        Parts of the text.
    letters, lines : int
        Most characters and lines; any number of lines by default.

    Examples
    --------
    >>> "".join(one.text for one in excerpt([TextPart("one\ntwo\nthree\n")], 100, lines=2))
    'one\ntwo\n…'
    """
    parts = tuple(parts)
    text = "".join(part.text for part in parts)
    lines = text.count("\n") + 1 if lines is None else lines
    start = _start(text, parts, letters, lines)
    stop = _stop(text, start, letters, lines)
    if start == 0 and stop == len(text):
        return parts
    cut, place = [], 0
    for part in parts:
        kept = part.text[max(start - place, 0) : max(stop - place, 0)]
        cut += [replace(part, text=kept)] if kept else []
        place += len(part.text)
    first = TextPart(_MARK + ("\n" if text[start - 1 : start] == "\n" else ""), "special")
    return (
        *[first][: int(start > 0)],
        *cut,
        *[TextPart(_MARK, "special")][: int(stop < len(text))],
    )


def _start(text: str, parts: Sequence[TextPart], letters: int, lines: int) -> int:
    """Choose where an excerpt begins: at 0, or shortly before the learned text."""
    learned = 0
    wanted = "asked" if any(part.kind == "asked" for part in parts) else "learned"
    for part in parts:
        if part.kind == wanted:
            break
        learned += len(part.text)
    else:
        return 0
    if 3 * learned <= 2 * letters and 3 * text.count("\n", 0, learned) <= 2 * lines:
        return 0
    at = max(0, learned - letters // 3)
    breaks = [place + 1 for place in range(at, learned) if text[place] == "\n"]
    # The last lines of the prompt, whole, as far as there is room for them.
    return breaks[-(lines // 3) :][0] if breaks else at


def _stop(text: str, start: int, letters: int, lines: int) -> int:
    """Choose where an excerpt ends: after a line, unless that would leave out half of it."""
    stop = start
    for _ in range(lines):
        stop = text.find("\n", stop) + 1
        if stop == 0:
            stop = len(text)
            break
    if stop - start <= letters:
        return stop
    line = text.rfind("\n", start, start + letters) + 1
    return line if 2 * (line - start) > letters else start + letters
